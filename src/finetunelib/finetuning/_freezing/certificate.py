"""What a training proved about the tensors that were frozen in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetunelib._messages import quoted
from finetunelib._public import public
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.finetuning._digests import loaded_digests
from finetunelib.finetuning._freezing.fingerprint import fingerprint


@public("finetunelib.finetuning")
@dataclass(frozen=True, slots=True)
class Certificate:
    """Which frozen tensors a training left bit for bit as they were.

    It is in `History.certificate` after a `fit`, and covers every `fit` of the Trainer from the
    first one's beginning. A tensor that was unfrozen in between, or that somebody else wrote to
    between two of them, is no longer in it.

    Attributes:
        digests: The sha256 of every tensor that was frozen before and after and did not change,
            by its name in `trainer.model`.
        loaded: The names among them whose bits are those that `load_weights` put there.
        moved: The names of tensors that were frozen before and after and changed nevertheless.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp, freeze_and_replace_head
        >>> model = freeze_and_replace_head(build_mlp(4, [8], 3), num_classes=2)
        >>> data = (torch.zeros(6, 4), torch.zeros(6).long())
        >>> history = Trainer(model, progress=False).fit(data, epochs=1)
        >>> print(history.certificate)
        2 of 2 frozen tensors are bit for bit what they were before the training.
    """

    digests: Mapping[str, str]
    loaded: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()

    def __str__(self) -> str:
        stayed, total = len(self.digests), len(self.digests) + len(self.moved)
        noun, verb = ("tensor", "is") if total == 1 else ("tensors", "are")
        text = f"{stayed} of {total} frozen {noun} {verb} bit for bit what "
        text += "it was before the training" if total == 1 else "they were before the training"
        if self.loaded:
            verb, one = ("is", "one") if len(self.loaded) == 1 else ("are", "ones")
            text += f"; {len(self.loaded)} of them {verb} bitwise the loaded {one}"
        if self.moved:
            text += f"; moved though frozen: {', '.join(self.moved)}"
        return f"{text}."


class Witness:
    """Looks at the frozen tensors of one model before and after each of its trainings."""

    def __init__(self) -> None:
        self._first: dict[str, str] | None = None
        self._last: dict[str, str] = {}

    def look_before(self, model: nn.Module) -> None:
        """Take the fingerprint at a training's beginning."""
        now = fingerprint(model)
        if self._first is None:
            self._first = now
        else:
            # What changed between two trainings was changed by somebody else.
            same = {name for name, seen in self._last.items() if now.get(name) == seen}
            self._first = {name: seen for name, seen in self._first.items() if name in same}
        self._last = now

    def state_dict(self) -> dict[str, Any]:
        """Return what was frozen at the first beginning, and what the last look saw."""
        return {"first": self._first, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; the next look is a training's beginning."""
        self._first, self._last = state["first"], state["last"]

    def look_after(self, model: nn.Module) -> Certificate | None:
        """Return what stayed since the first beginning, `None` where nothing stayed frozen.

        Warns about tensors that moved in this training though they were frozen.
        """
        before, self._last = self._last, fingerprint(model) if self._first else {}
        now = self._last
        self._first = {name: seen for name, seen in (self._first or {}).items() if name in now}
        if not self._first:
            return None
        moved = tuple(name for name, seen in self._first.items() if now[name] != seen)
        fresh = [name for name in moved if before.get(name) != now[name]]
        if fresh:
            warnings.warn(
                f"{len(fresh)} frozen tensors changed in the training: {quoted(fresh)}. Something "
                "other than the optimizer wrote to them, or they were unfrozen for a while; the "
                "certificate leaves them out.",
                UserWarning,
                stacklevel=2,
            )
        loaded = _loaded(model)
        digests = {name: seen for name, seen in self._first.items() if name not in moved}
        return Certificate(
            digests,
            tuple(name for name, seen in digests.items() if loaded.get(name) == seen),
            moved,
        )


def _loaded(model: nn.Module) -> dict[str, str]:
    """Return the digests of what was loaded, also into a submodule alone."""
    return {
        own_name(f"{prefix}.{name}" if prefix else name): seen
        for prefix, module in reversed(list(unwrapped(model).named_modules()))
        for name, seen in loaded_digests(module).items()
    }
