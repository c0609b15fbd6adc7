"""Matching the names of a file's tensors with those of a model's.

Names that differ only by a wrapper, an older version of PyTorch or torchvision, or a tie between
tensors are matched too. No values are read here.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetunelib._messages import listed
from finetunelib.errors import InvalidArgumentError, InvalidTypeError

#: Parts that torch.compile, FSDP and activation checkpointing add anywhere in a name.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

#: torchvision's DenseNet files have names with a dot that later versions do not have.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


@dataclass(frozen=True, slots=True)
class NameMatch:
    """The counterparts of a model's names in a file.

    Attributes:
        sources: The model's name to the file's, for every name with a counterpart.
        unexpected: The names of the file without a counterpart, in its order.
        unwrapped: The parts of names that were ignored because a wrapper adds them (`module.`).
    """

    sources: Mapping[str, str]
    unexpected: tuple[str, ...]
    unwrapped: tuple[str, ...]


def match_names(
    model_names: Iterable[str],
    file_names: Sequence[str],
    *,
    rename: Mapping[str, str],
    tied: Sequence[Sequence[str]] = (),
) -> NameMatch:
    """Find the counterparts of a model's names among those of a file.

    Args:
        model_names: The model's names.
        file_names: The file's names.
        rename: The user's renaming, from the file's names or their beginnings to the model's.
        tied: Groups of the model's names for one tensor. A file may contain any of them.

    Raises:
        InvalidArgumentError: If an entry of `rename` matches no name, or two names become equal.
        InvalidTypeError: If `rename` is not a mapping from strings to strings.
    """
    targets = _rename_all(file_names, rename)
    model_names = list(model_names)
    known = set(model_names)
    sources = {target: name for name, target in targets.items() if target in known}
    plain = _unique((without_wrappers(name), name) for name in model_names if name not in sources)
    left = [name for name in file_names if targets[name] not in sources]
    for short, name in _unique((without_wrappers(targets[name]), name) for name in left).items():
        if short in plain:
            sources[plain[short]] = name
    used = set(sources.values())
    unwrapped = _wrappers_between({name: targets[source] for name, source in sources.items()})
    for group in tied:
        source = next((sources[name] for name in group if name in sources), None)
        if source is not None:
            for name in group:
                sources.setdefault(name, source)
    return NameMatch(sources, tuple(name for name in file_names if name not in used), unwrapped)


def without_wrappers(name: str) -> str:
    """Return a tensor's name without the parts that wrappers add, as current torchvision has it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if parts[0] == "module" and len(parts) > 1:
        del parts[0]
    return _DENSENET.sub(r"\1\2.", ".".join(parts))


def _wrappers_between(pairs: Mapping[str, str]) -> tuple[str, ...]:
    """Return the wrappers' parts by which the two names of a tensor differ."""
    found: set[str] = set()
    for name, source in pairs.items():
        different = set(name.split(".")) ^ set(source.split("."))
        found |= different & (_WRAPPERS | {"module"})
    return tuple(f"{part}." for part in sorted(found))


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the pairs as a dict, without keys that occur more than once."""
    pairs = list(pairs)
    counts = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if counts[key] == 1}


def _rename_all(names: Sequence[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Return the new name of each name of a file.

    The longest entry that a name equals or begins with is used. Dots at the end of an entry do not
    matter; an empty key is the beginning of every name.

    Raises:
        InvalidArgumentError: If an entry matches no name, or two names become equal.
        InvalidTypeError: If `rename` is not a mapping from strings to strings.
    """
    if not isinstance(rename, Mapping) or not all(
        isinstance(part, str) for entry in rename.items() for part in entry
    ):
        raise InvalidTypeError(
            "`rename` must be a mapping from the file's names to the model's, such as "
            f'{{"fc1": "backbone.1"}}, got {rename!r}.'
        )
    rules = {key.rstrip("."): value.rstrip(".") for key, value in rename.items()}
    applied: set[str] = set()
    renamed: dict[str, str] = {}
    for name in names:
        # Reports show names without the parts of wrappers, so a rule may be written for those.
        for form in (name, without_wrappers(name)):
            rule = _longest_beginning(form, rules)
            if rule is not None:
                applied.add(rule)
                renamed[name] = f"{rules[rule]}.{form[len(rule) :].lstrip('.')}".strip(".")
                break
        else:
            renamed[name] = name
    idle = [key for key in rename if key.rstrip(".") not in applied]
    if idle:
        beginnings = {name[: dot.start()] for name in names for dot in re.finditer(r"\.|$", name)}
        near = [
            f"`{close}`"
            for key in idle
            for close in difflib.get_close_matches(key.rstrip("."), sorted(beginnings), n=1)
        ]
        hint = f" Similar: {listed(near)}." if near else ""
        raise InvalidArgumentError(
            f"`rename` has entries that match no name in the file: {listed(idle)}.{hint} "
            f"The file has {listed(names) or 'no names'}."
        )
    _check_distinct(renamed, names)
    return renamed


def _longest_beginning(name: str, rules: Mapping[str, str]) -> str | None:
    end = len(name)
    while end > 0:
        if name[:end] in rules:
            return name[:end]
        end = name.rfind(".", 0, end)
    return "" if "" in rules else None


def _check_distinct(renamed: Mapping[str, str], names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(renamed[name], name)
        if other != name:
            raise InvalidArgumentError(
                f"`rename` gives `{other}` and `{name}` the same name, `{renamed[name]}`. Rename "
                "one of them to another."
            )


def upgraded_names(
    model: nn.Module, entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> dict[str, str]:
    """Return the model's names and the names that older versions of its modules saved.

    Modules of PyTorch and torchvision rename in `load_state_dict` what previous versions saved (a
    vision transformer's `linear_1`, the two tensors of an old `weight_norm`). To find these names,
    placeholders are loaded into a copy of the model without values.

    Args:
        model: The model, which is not changed.
        entries: Shape and dtype of tensors of a file, by their names without wrappers.
    """
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        )
    placeholders = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (shape, dtype) in entries.items()
    }
    by_storage = {_storage(tensor): name for name, tensor in placeholders.items()}
    # The model's code may fail in any way; then no names are upgraded.
    with contextlib.suppress(Exception):
        skeleton = copy.deepcopy(model, memo)
        with contextlib.suppress(RuntimeError):  # Different shapes are reported elsewhere.
            skeleton.load_state_dict(placeholders, strict=False, assign=True)
        return {
            name: by_storage[_storage(tensor)]
            for name, tensor in skeleton.state_dict().items()
            if isinstance(tensor, Tensor) and _storage(tensor) in by_storage
        }
    return {}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 (meta tensors have no other identity)
