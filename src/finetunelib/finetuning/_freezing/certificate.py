"""The frozen tensors that a training run left unchanged, and the trainable ones that it did too."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetunelib._escapes import one_line
from finetunelib._html import Row, html_table
from finetunelib._messages import listed, quoted
from finetunelib._public import public
from finetunelib._tables import wrapped
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.finetuning._digests import loaded_digests
from finetunelib.finetuning._freezing.fingerprint import (
    affordable,
    digests_of,
    fingerprint,
    frozen_tensors,
    known_fingerprint,
    trainable_tensors,
)
from finetunelib.finetuning._freezing.known_digests import computed_digest, known_digest

#: How many names of tensors a repr shows.
_SHOWN = 3


@public("finetunelib.finetuning")
@dataclass(frozen=True, slots=True, repr=False)
class Certificate:
    """Lists the frozen tensors that training left unchanged, bit for bit.

    `fit` stores it in `History.certificate`. It covers every call of the Trainer's `fit`, from the
    start of the first one. A tensor is left out if it was unfrozen between two calls, or changed
    by other code between them.

    The digests are computed from all bytes at the end of each `fit`. At its start, those that
    `freeze`, `fingerprint` or the last `fit` computed are used, except for tensors that were
    written to since. A write that leaves no trace, not even in a sum over the bits, is reported as
    a change during training: it can make a certificate shorter, but not wrong.

    It also lists trainable parameters that the last `fit` did not change, such as adapters that no
    gradient reached. A parameter may keep its bits for a good reason, such as a single step in
    which its gradient was zero; the certificate only says what was seen. At most 256 MiB of
    trainable parameters are compared, the smallest ones first.

    Attributes:
        digests: The sha256 of each tensor that was frozen before and after training and did not
            change, by its name in `trainer.model`.
        loaded: The names in `digests` of tensors that still have the bits that `load_weights`
            wrote.
        moved: The names of tensors that changed although they were frozen before and after.
        idle: The names of parameters that were trainable before and after the last `fit`, which
            took at least one step, and that have the bits from before it.
        uncompared: The number of trainable parameters that were not compared, because they are
            too large.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp, freeze_and_replace_head
        >>> model = freeze_and_replace_head(build_mlp(4, [8], 3), num_classes=2)
        >>> data = (torch.zeros(6, 4), torch.zeros(6).long())
        >>> history = Trainer(model, progress=False).fit(data, epochs=1)
        >>> print(history.certificate)
        2 of 2 frozen tensors are bit for bit what they were before training.
    """

    digests: Mapping[str, str]
    loaded: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    uncompared: int = 0

    def __repr__(self) -> str:
        counts = f"{len(self.digests)} unchanged, {len(self.loaded)} of them loaded"
        moved = f", moved={one_line(str(list(self.moved[:_SHOWN])), 30)}" if self.moved else ""
        more = f" and {len(self.moved) - _SHOWN} more" if len(self.moved) > _SHOWN else ""
        idle = f", {len(self.idle)} idle" if self.idle else ""
        return f"Certificate({counts}{moved}{more}{idle})"

    def __str__(self) -> str:
        stayed, total = len(self.digests), len(self.digests) + len(self.moved)
        noun, verb = ("tensor", "is") if total == 1 else ("tensors", "are")
        text = f"{stayed} of {total} frozen {noun} {verb} bit for bit what "
        text += "it was before training" if total == 1 else "they were before training"
        if self.loaded:
            verb, one = ("is", "one") if len(self.loaded) == 1 else ("are", "ones")
            text += f"; {len(self.loaded)} of them {verb} bitwise the loaded {one}"
        if self.moved:
            text += f"; changed although frozen: {listed(self.moved)}"
        if self.idle:
            verb = "is" if len(self.idle) == 1 else "are"
            text += f"; {len(self.idle)} trainable {'one' if verb == 'is' else 'ones'} {verb} "
            text += f"unchanged by the last fit too: {listed(self.idle)}"
        return "\n".join(wrapped(f"{text}."))

    def _repr_html_(self) -> str:
        kinds = (
            ("Unchanged", tuple(self.digests)),
            ("Unchanged since they were loaded", self.loaded),
            ("Changed although frozen", self.moved),
            ("Unchanged by the last fit although trainable", self.idle),
        )
        return html_table(
            ("Tensors", "Number", "Names"),
            [
                Row(
                    (kind, f"{len(names):,}", listed(names)),
                    "failed" if names in (self.moved, self.idle) else "",
                )
                for kind, names in kinds
                if names
            ],
            title=str(self),
            numeric=("Number",),
            wide=("Names",),
        )


class FreezeAudit:
    """Compares the frozen tensors of a model before and after each training run."""

    def __init__(self) -> None:
        self._first: dict[str, str] | None = None
        self._last: dict[str, str] = {}
        self._trainable: dict[str, str] = {}
        self._uncompared = 0

    def start(self, model: nn.Module) -> None:
        """Record the digests of the frozen tensors at the start of a run."""
        now = known_fingerprint(model)
        if self._first is None:
            self._first = now
        else:
            # What changed between two runs was not changed by training.
            same = {name for name, seen in self._last.items() if now.get(name) == seen}
            self._first = {name: seen for name, seen in self._first.items() if name in same}
        self._last = now
        compared = trainable_tensors(model) if self._first else {}
        self._trainable = digests_of(affordable(compared), known_digest)
        self._uncompared = len(compared) - len(self._trainable)

    def unchanged(self, model: nn.Module) -> dict[int, str]:
        """Return the digests of the frozen tensors that no run of this audit has trained, by id.

        They were frozen at the start of every run and have their bits from the start of the first
        one. Before the first run, these are all frozen tensors. Like `start`, it computes digests
        only of tensors that were written to.
        """
        tensors = {own_name(n): tensor for n, tensor in frozen_tensors(unwrapped(model)).items()}
        if self._first is not None:
            tensors = {name: tensor for name, tensor in tensors.items() if name in self._first}
        now = digests_of(tensors, known_digest)
        first = now if self._first is None else self._first
        return {id(tensors[name]): seen for name, seen in now.items() if seen == first[name]}

    def state_dict(self) -> dict[str, Any]:
        """Return the digests from the start of the first run and from the last comparison."""
        return {"first": self._first, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Call `start` next."""
        self._first, self._last = state["first"], state["last"]

    def finish(self, model: nn.Module, *, trained: bool = True) -> Certificate | None:
        """Return what has not changed since the first `start`, or `None` if nothing is frozen.

        Warns about frozen tensors that changed during this run.

        Args:
            model: The model.
            trained: Whether the run took a step.
        """
        before, self._last = self._last, fingerprint(model) if self._first else {}
        now = self._last
        self._first = {name: seen for name, seen in (self._first or {}).items() if name in now}
        if not self._first:
            return None
        moved = tuple(name for name, seen in self._first.items() if now[name] != seen)
        moved_now = [name for name in moved if before.get(name) != now[name]]
        if moved_now:
            warnings.warn(
                f"{len(moved_now)} frozen tensors changed during training: {quoted(moved_now)}. "
                "Code other than the optimizer wrote to them, or they were unfrozen for a while. "
                "The certificate does not include them.",
                UserWarning,
                stacklevel=2,
            )
        loaded = _loaded(model)
        digests = {name: seen for name, seen in self._first.items() if name not in moved}
        return Certificate(
            digests,
            tuple(name for name, seen in digests.items() if loaded.get(name) == seen),
            moved,
            self._idle(model) if trained else (),
            self._uncompared if trained else 0,
        )

    def _idle(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the trainable tensors that have not changed since `start`."""
        tensors = trainable_tensors(model)
        compared = {name: tensors[name] for name in self._trainable if name in tensors}
        now = digests_of(compared, computed_digest)
        return tuple(name for name in tensors if now.get(name, "") == self._trainable.get(name))


def _loaded(model: nn.Module) -> dict[str, str]:
    """Return the digests of all loaded tensors, including those loaded into a submodule alone."""
    return {
        own_name(f"{prefix}.{name}" if prefix else name): seen
        for prefix, module in reversed(list(unwrapped(model).named_modules()))
        for name, seen in loaded_digests(module).items()
    }
