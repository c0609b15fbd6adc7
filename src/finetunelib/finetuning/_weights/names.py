"""Which tensor of a file belongs to which tensor of a model, by their names alone.

Names that only wrapping, an older torch or torchvision, or a tie between tensors make different
are told apart from names that are really other ones. No value is read here.
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

#: Parts of a name that torch.compile, FSDP and activation checkpointing add, anywhere in it.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

#: torchvision's files of DenseNet have names from a time when a dot in them was allowed.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


@dataclass(frozen=True, slots=True)
class NameMatch:
    """Where the tensors of a model come from.

    Attributes:
        sources: The model's name to the file's, for every name that has a counterpart.
        unexpected: Names of the file that have none, in its order.
        unwrapped: The wrappers' parts of names that were looked through, such as `module.`.
    """

    sources: Mapping[str, str]
    unexpected: tuple[str, ...]
    unwrapped: tuple[str, ...]


def match_names(
    ours: Iterable[str],
    theirs: Sequence[str],
    *,
    rename: Mapping[str, str],
    tied: Sequence[Sequence[str]] = (),
) -> NameMatch:
    """Find the counterparts of a model's names among those of a file.

    Args:
        ours: The model's names.
        theirs: The file's names.
        rename: What the user renames, from the file's names or their beginnings to the model's.
        tied: Groups of the model's names that stand for one tensor. A file may have any of them.

    Raises:
        InvalidArgumentError: An entry of `rename` applies to no name, or two names become one.
        InvalidTypeError: `rename` is no mapping from text to text.
    """
    targets = _rename_all(theirs, rename)
    ours = list(ours)
    known = set(ours)
    sources = {target: name for name, target in targets.items() if target in known}
    plain = _unique((without_wrappers(name), name) for name in ours if name not in sources)
    left = [name for name in theirs if targets[name] not in sources]
    for short, name in _unique((without_wrappers(targets[name]), name) for name in left).items():
        if short in plain:
            sources[plain[short]] = name
    used = set(sources.values())
    unwrapped = _wrappers_between({our: targets[their] for our, their in sources.items()})
    for group in tied:
        source = next((sources[name] for name in group if name in sources), None)
        if source is not None:
            for name in group:
                sources.setdefault(name, source)
    return NameMatch(sources, tuple(name for name in theirs if name not in used), unwrapped)


def without_wrappers(name: str) -> str:
    """Return a tensor's name as it is without what wrapping added, and of today's torchvision."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if parts[0] == "module" and len(parts) > 1:
        del parts[0]
    return _DENSENET.sub(r"\1\2.", ".".join(parts))


def _wrappers_between(pairs: Mapping[str, str]) -> tuple[str, ...]:
    """Return the parts of names by which pairs of one tensor's names differ."""
    found: set[str] = set()
    for ours, theirs in pairs.items():
        different = set(ours.split(".")) ^ set(theirs.split("."))
        found |= different & (_WRAPPERS | {"module"})
    return tuple(f"{part}." for part in sorted(found))


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the pairs as a dict, without those whose key stands in more than one."""
    pairs = list(pairs)
    counts = Counter(key for key, _ in pairs)
    return {key: value for key, value in pairs if counts[key] == 1}


def _rename_all(names: Sequence[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Return what each name of a file is called after renaming.

    The longest entry that a name equals or begins with decides. Dots at an entry's end do not
    matter; an empty key is the beginning of every name.

    Raises:
        InvalidArgumentError: An entry applies to no name, or two names become one.
        InvalidTypeError: `rename` is no mapping from text to text.
    """
    if not isinstance(rename, Mapping) or not all(
        isinstance(part, str) for entry in rename.items() for part in entry
    ):
        raise InvalidTypeError(
            "`rename` must be a mapping from the file's names to the model's, such as "
            f'{{"fc1": "backbone.1"}}, but is {rename!r}.'
        )
    rules = {key.rstrip("."): value.rstrip(".") for key, value in rename.items()}
    applied: set[str] = set()
    renamed: dict[str, str] = {}
    for name in names:
        # A rule may be written for the name without a wrapper's parts, as reports show it.
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
        hint = f" Near to it is {listed(near)}." if near else ""
        raise InvalidArgumentError(
            f"`rename` has entries that apply to no name in the file: {listed(idle)}.{hint} "
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
                f"`rename` gives `{other}` and `{name}` of the file one name, "
                f"`{renamed[name]}`. Rename one of them to another."
            )


def upgraded_names(
    model: nn.Module, entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> dict[str, str]:
    """Return the model's names to those that an older version of its modules wrote.

    Modules of torch and torchvision rename in `load_state_dict` what their former versions
    saved (a vision transformer's `linear_1`, the two tensors of an old `weight_norm`). That is
    asked of a copy of the model without any values, into which stand-ins are loaded.

    Args:
        model: The model, which stays as it is.
        entries: Shape and dtype of tensors of a file, under the names that they have there,
            except for wrappers.
    """
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        hollow = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = (
            nn.Parameter(hollow, requires_grad=tensor.requires_grad) if is_parameter else hollow
        )
    stand_ins = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (shape, dtype) in entries.items()
    }
    by_storage = {_storage(tensor): name for name, tensor in stand_ins.items()}
    # The copy's code is the user's: what fails there leaves the names as they are.
    with contextlib.suppress(Exception):
        skeleton = copy.deepcopy(model, memo)
        with contextlib.suppress(RuntimeError):  # Shapes that differ are not this function's.
            skeleton.load_state_dict(stand_ins, strict=False, assign=True)
        return {
            name: by_storage[_storage(tensor)]
            for name, tensor in skeleton.state_dict().items()
            if isinstance(tensor, Tensor) and _storage(tensor) in by_storage
        }
    return {}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 (all that tells apart meta tensors)
