"""What explains the differences between a file's tensors and a model's, and what to do.

Only names and shapes are looked at. A renaming is suggested only where it was tried and brings
more tensors into place.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from finetunelib._messages import listed
from finetunelib._public import public
from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning._weights.names import NameMatch, match_names

_Size = tuple[int, ...]

#: What TensorFlow and old transformers call a norm's two tensors.
_OTHER_LEAVES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}


@public("finetunelib.export")
@dataclass(frozen=True, slots=True)
class Comparison:
    """The names and shapes of a model and a file, and how they were matched."""

    ours: Mapping[str, _Size]
    theirs: Mapping[str, _Size]
    rename: Mapping[str, str]
    match: NameMatch
    is_in_order: bool
    #: Names of the model that may be missing without a difference.
    harmless: Collection[str]
    #: The model's names, and the file's, that found no counterpart.
    missing: Mapping[str, _Size] = field(init=False)
    unexpected: Mapping[str, _Size] = field(init=False)
    #: (shape in the file, shape in the model) by the model's name.
    wrong_shape: Mapping[str, tuple[_Size, _Size]] = field(init=False)

    def __post_init__(self) -> None:
        sources, ours, theirs = self.match.sources, self.ours, self.theirs
        missing = {
            name: shape
            for name, shape in ours.items()
            if name not in sources and name not in self.harmless
        }
        wrong = {
            name: (theirs[sources[name]], shape)
            for name, shape in ours.items()
            if name in sources and theirs[sources[name]] != shape
        }
        object.__setattr__(self, "missing", missing)
        object.__setattr__(self, "unexpected", {n: theirs[n] for n in self.match.unexpected})
        object.__setattr__(self, "wrong_shape", wrong)

    def matching(self, rename: Mapping[str, str]) -> int:
        """Return how many of the model's tensors would be found with a renaming."""
        try:
            found = match_names(self.ours, list(self.theirs), rename={**self.rename, **rename})
        except InvalidArgumentError:
            return -1  # Names collide.
        return sum(self.theirs[source] == self.ours[n] for n, source in found.sources.items())


def suggest(comparison: Comparison) -> tuple[str, ...]:
    """Return what explains the differences, one sentence or two each, renamings first."""
    if not comparison.theirs:
        return ("The file holds no tensor at all: it was saved from a model without weights.",)
    rename = _best_rename(comparison)
    found = [*_unwrapped(comparison)]
    if rename is not None:
        found.append(rename)
    found += [*_head(comparison, renamed=rename is not None), *_shapes(comparison)]
    if not found and not comparison.match.sources:
        found.append(
            "No name and no shape fits: the file seems to hold the weights of another model."
        )
    return tuple(found)


def _unwrapped(comparison: Comparison) -> Iterator[str]:
    for part in comparison.match.unwrapped:
        yield f"`{part}`, which only wrapping adds to names, was looked through."


def _best_rename(comparison: Comparison) -> str | None:
    """Return a suggested renaming that brings the most tensors into place, if there is one."""
    if not comparison.missing or not comparison.unexpected:
        return None
    before = comparison.matching({})
    best, text, gain = {}, "", 0
    for explain, rename in _candidates(comparison):
        more = comparison.matching(rename) - before
        if more > gain:
            best, text, gain = dict(rename), explain, more
    if not gain:
        return None
    merged = {**comparison.rename, **best}
    tensors = "1 tensor" if gain == 1 else f"{gain} tensors"
    return f"{text}: `rename={json.dumps(merged)}` finds {tensors} more."


def _candidates(comparison: Comparison) -> Iterator[tuple[str, dict[str, str]]]:
    for old, new in _prefixes(comparison):
        if old:
            yield f"The file's names have `{old}` in front", {old: new}
        else:
            yield f"The file's names lack `{new}` in front", {old: new}
            firsts = dict.fromkeys(name.partition(".")[0] for name in comparison.unexpected)
            # Where other names fit as they are, only those that do not are moved.
            yield (
                f"Some of the file's names lack `{new}` in front",
                {first: new + first for first in firsts if f"{new}{first}" != first},
            )
    explain = "Names differ in what they call a norm's tensors"
    yield explain, _other_leaves(comparison)
    explain = "Shapes match in the same order under other names (check that the layers do too)"
    yield explain, _same_shapes(comparison)
    yield "Names differ by little", _close_names(comparison)


def _prefixes(comparison: Comparison) -> list[tuple[str, str]]:
    """Return beginnings to take off (old, "") or to put on ("", new), the commonest first."""
    counts: Counter[tuple[str, str]] = Counter()
    for longer, shorter, strips in (
        (comparison.unexpected, comparison.missing, True),
        (comparison.missing, comparison.unexpected, False),
    ):
        for name, shape in longer.items():
            place = name.find(".") + 1
            while place:
                if shorter.get(name[place:]) == shape:
                    counts[(name[:place], "") if strips else ("", name[:place])] += 1
                place = name.find(".", place) + 1
    return [pair for pair, _ in counts.most_common(3)]


def _other_leaves(comparison: Comparison) -> dict[str, str]:
    rename = {}
    for name, shape in comparison.unexpected.items():
        owner, _, leaf = name.rpartition(".")
        other = f"{owner}.{_OTHER_LEAVES.get(leaf, leaf)}".lstrip(".")
        if other != name and comparison.missing.get(other) == shape:
            rename[name] = other
    return rename


def _close_names(comparison: Comparison) -> dict[str, str]:
    rename: dict[str, str] = {}
    left = dict(comparison.missing)
    for name, shape in comparison.unexpected.items():
        fitting = [
            other
            for other, size in left.items()
            if size == shape and other.count(".") == name.count(".")
        ]
        close = difflib.get_close_matches(name, fitting, n=1, cutoff=0.75)
        if close:
            rename[name] = close[0]
            del left[close[0]]
    return rename


def _same_shapes(comparison: Comparison) -> dict[str, str]:
    """Return layers of the file to layers of the model that have the same shapes, in order."""
    theirs = _layers(comparison.unexpected, in_order=comparison.is_in_order)
    ours = _layers(comparison.missing, in_order=True)
    pairs = _pairs(theirs, ours)
    last = len(pairs)
    # A head of another number of classes is the last of both sides, and their only difference.
    if last == len(theirs) - 1 == len(ours) - 1 and _differ_in_classes(theirs[-1][1], ours[-1][1]):
        pairs.append((theirs[-1][0], ours[-1][0]))
    elif len(theirs) != len(ours) or last != len(theirs):
        pairs = _only_ones(theirs, ours)
    whole = {their: our for their, our in pairs if their != our}
    short = _shortened(whole)
    return short if short and comparison.matching(short) >= comparison.matching(whole) else whole


_Layer = tuple[str, dict[str, _Size]]


def _layers(names: Mapping[str, _Size], *, in_order: bool) -> list[_Layer]:
    layers: defaultdict[str, dict[str, _Size]] = defaultdict(dict)
    for name, shape in names.items():
        owner, _, leaf = name.rpartition(".")
        # A tensor of the root itself is a layer of its own, under its whole name.
        layers[owner or leaf][leaf if owner else ""] = shape
    found = [(owner, dict(sorted(shapes.items()))) for owner, shapes in layers.items()]
    return found if in_order else sorted(found, key=lambda layer: _natural(layer[0]))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `layer10` behind `layer2`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _pairs(theirs: Sequence[_Layer], ours: Sequence[_Layer]) -> list[tuple[str, str]]:
    """Return the pairs of layers with equal shapes, from the first to where they differ."""
    both = zip(theirs, ours, strict=False)
    alike = itertools.takewhile(lambda pair: pair[0][1] == pair[1][1], both)
    return [(their, our) for (their, _), (our, _) in alike]


def _only_ones(theirs: Sequence[_Layer], ours: Sequence[_Layer]) -> list[tuple[str, str]]:
    """Return the pairs of layers whose shapes no other layer has, on either side."""
    counts = [Counter(json.dumps(shapes) for _, shapes in layers) for layers in (theirs, ours)]
    by_shape = {json.dumps(shapes): name for name, shapes in ours}
    return [
        (name, by_shape[key])
        for name, key in ((name, json.dumps(shapes)) for name, shapes in theirs)
        if all(count[key] == 1 for count in counts)
    ]


def _differ_in_classes(theirs: Mapping[str, _Size], ours: Mapping[str, _Size]) -> bool:
    return theirs.keys() == ours.keys() and all(
        _is_other_count(shape, ours[leaf]) for leaf, shape in theirs.items()
    )


def _is_other_count(theirs: _Size, ours: _Size) -> bool:
    """Return whether two shapes differ in their first size alone, as a layer's outputs."""
    return len(theirs) == len(ours) > 0 and theirs[0] != ours[0] and theirs[1:] == ours[1:]


def _shortened(rename: Mapping[str, str]) -> dict[str, str]:
    """Return a renaming by common beginnings, or nothing where these contradict each other."""
    short: dict[str, str] = {}
    for old, new in rename.items():
        one, other = old.split("."), new.split(".")
        while len(one) > 1 and len(other) > 1 and one[-1] == other[-1]:
            one.pop()
            other.pop()
        if short.setdefault(".".join(one), ".".join(other)) != ".".join(other):
            return {}
    return short


def _head(comparison: Comparison, *, renamed: bool) -> Iterator[str]:
    """Explain a head of other classes, and parts that only one side has."""
    if comparison.wrong_shape:
        counts = _class_counts(comparison)
        if counts is not None:
            owners = dict.fromkeys(n.rpartition(".")[0] or n for n in comparison.wrong_shape)
            yield (
                f"`{listed(list(owners))}` has {counts[0]} classes in the file and {counts[1]} in "
                "the model: expected after replacing the head."
            )
        return
    theirs, ours = _owner_of(comparison.unexpected), _owner_of(comparison.missing)
    if renamed or not comparison.match.sources or not (theirs or ours):
        return
    if theirs and not comparison.missing:
        yield (
            f"The model has no `{theirs}`, and all that it has is in the file: expected where the "
            "head, or a part that only training needs, was taken off; otherwise the model has "
            "fewer layers than the one that was saved."
        )
    elif ours and not comparison.unexpected:
        is_last = list(comparison.ours)[-1] in comparison.missing
        why = (
            "expected of a backbone that was saved without its head"
            if is_last
            else "the model has more layers than the one that was saved; build it with as many"
        )
        yield f"The file has no `{ours}`: {why}."
    elif theirs and ours:
        what = f"`{theirs}`" if theirs == ours else f"`{theirs}` where the model has `{ours}`"
        yield (
            f"The file has {what} of another structure: expected after replacing the head by one "
            "of several layers."
        )


def _class_counts(comparison: Comparison) -> tuple[int, int] | None:
    """Return the class counts of file and model where these explain every wrong shape."""
    wrong = comparison.wrong_shape.values()
    if not all(_is_other_count(*shapes) for shapes in wrong):
        return None
    counts = {(theirs[0], ours[0]) for theirs, ours in wrong}
    return counts.pop() if len(counts) == 1 else None


def _owner_of(names: Mapping[str, _Size]) -> str:
    """Return the dotted name of what holds all of these tensors, or "" if it is the root."""
    parts = [name.split(".") for name in names]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _shapes(comparison: Comparison) -> Iterator[str]:
    """Explain shapes that hold the same values in another arrangement, and other sizes."""
    transposed, reshaped, others = [], [], []
    for name, (theirs, ours) in comparison.wrong_shape.items():
        if theirs == ours[::-1] or (len(ours) == 4 and theirs == (*ours[2:], ours[1], ours[0])):
            transposed.append(name)
        elif math.prod(theirs) == math.prod(ours):
            reshaped.append(name)
        else:
            others.append(name)
    if transposed:
        yield (
            f"Transposed in the file, as TensorFlow and GPT-2 store weights: {listed(transposed)}. "
            "Transpose them in a state dict of your own (`state[name] = state[name].T`, or "
            "`.permute(3, 2, 0, 1)` for a convolution) and save that."
        )
    if reshaped:
        yield (
            f"As many values, arranged otherwise: {listed(reshaped)}. If they mean the same, "
            "reshape them in a state dict of your own (`state[name].reshape(...)`) and save that."
        )
    if others and _class_counts(comparison) is None:
        yield (
            f"Of other sizes: {listed(others)}. Build the model with the sizes of the file "
            "(widths, input channels, image size), or leave these tensors as the model has them."
        )
