"""Finding a renaming that brings more of a file's tensors into a model.

Only names and shapes are compared. A renaming is returned only if it was tried and finds more
tensors.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning._weights.names import NameMatch, match_names

Shape: TypeAlias = tuple[int, ...]

#: A module's name, and the shapes of its own tensors.
_Layer: TypeAlias = tuple[str, dict[str, Shape]]

#: Names of a norm's tensors in TensorFlow and old versions of transformers.
_OTHER_LEAVES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}


@dataclass(frozen=True, slots=True)
class NameComparison:
    """The names and shapes of a model and a file, and how they were matched.

    Attributes:
        model_shapes: The shapes of the model's tensors.
        file_shapes: The shapes of the file's tensors.
        rename: The user's renaming.
        match: The match of the names.
        is_in_order: Whether the file's names are in the order of its layers.
        may_be_missing: Names of the model that need no counterpart.
        embeddings: Names of the model's embeddings.
        missing: Shapes by the model's names without a counterpart.
        unexpected: Shapes by the file's names without a counterpart.
        wrong_shape: (shape in the file, shape in the model) by the model's name.
    """

    model_shapes: Mapping[str, Shape]
    file_shapes: Mapping[str, Shape]
    rename: Mapping[str, str]
    match: NameMatch
    is_in_order: bool
    may_be_missing: Collection[str]
    embeddings: Collection[str]
    missing: Mapping[str, Shape] = field(init=False)
    unexpected: Mapping[str, Shape] = field(init=False)
    wrong_shape: Mapping[str, tuple[Shape, Shape]] = field(init=False)

    def __post_init__(self) -> None:
        sources, file_shapes = self.match.sources, self.file_shapes
        missing = {
            name: shape
            for name, shape in self.model_shapes.items()
            if name not in sources and name not in self.may_be_missing
        }
        wrong = {
            name: (file_shapes[sources[name]], shape)
            for name, shape in self.model_shapes.items()
            if name in sources and file_shapes[sources[name]] != shape
        }
        unexpected = {name: file_shapes[name] for name in self.match.unexpected}
        object.__setattr__(self, "missing", missing)
        object.__setattr__(self, "unexpected", unexpected)
        object.__setattr__(self, "wrong_shape", wrong)

    def matching(self, rename: Mapping[str, str]) -> int:
        """Return how many of the model's tensors would be found with a renaming."""
        try:
            found = match_names(
                self.model_shapes, list(self.file_shapes), rename={**self.rename, **rename}
            )
        except InvalidArgumentError:
            return -1  # Names collide.
        return sum(
            self.file_shapes[source] == self.model_shapes[name]
            for name, source in found.sources.items()
        )


@dataclass(frozen=True, slots=True)
class Renaming:
    """A renaming, how it was found, and how many tensors more it finds."""

    rename: Mapping[str, str]
    reason: str
    gain: int


def best_renaming(comparison: NameComparison) -> Renaming | None:
    """Return the renaming that finds the most tensors, or `None` if none finds more."""
    if not comparison.missing or not comparison.unexpected:
        return None
    before = comparison.matching({})
    best: Renaming | None = None
    for reason, rename in _candidates(comparison):
        gain = comparison.matching(rename) - before
        if gain > (best.gain if best else 0):
            best = Renaming({**comparison.rename, **rename}, reason, gain)
    return best


def _candidates(comparison: NameComparison) -> Iterator[tuple[str, dict[str, str]]]:
    for old, new in _prefixes(comparison):
        if old:
            yield f"The file's names begin with `{old}`", {old: new}
        else:
            yield f"The model's names begin with `{new}`", {old: new}
            firsts = dict.fromkeys(name.partition(".")[0] for name in comparison.unexpected)
            # Other names may match already, so only those that do not are renamed.
            yield (
                f"Some of the model's names begin with `{new}`",
                {first: new + first for first in firsts if f"{new}{first}" != first},
            )
    reason = "Names of a norm's tensors differ"
    yield reason, _other_leaves(comparison)
    reason = "Shapes match in the same order under other names (check that the layers do too)"
    yield reason, _same_shapes(comparison)
    yield "Names differ slightly", _close_names(comparison)


def _prefixes(comparison: NameComparison) -> list[tuple[str, str]]:
    """Return beginnings to remove (old, "") or to add ("", new), the most frequent first."""
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


def _other_leaves(comparison: NameComparison) -> dict[str, str]:
    rename = {}
    for name, shape in comparison.unexpected.items():
        owner, _, leaf = name.rpartition(".")
        other = f"{owner}.{_OTHER_LEAVES.get(leaf, leaf)}".lstrip(".")
        if other != name and comparison.missing.get(other) == shape:
            rename[name] = other
    return rename


def _close_names(comparison: NameComparison) -> dict[str, str]:
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


def _same_shapes(comparison: NameComparison) -> dict[str, str]:
    """Return a renaming of the file's layers to layers of the model with the same shapes."""
    file_layers = _layers(comparison.unexpected, in_order=comparison.is_in_order)
    model_layers = _layers(comparison.missing, in_order=True)
    pairs = _leading_pairs(file_layers, model_layers)
    all_match = len(pairs) == len(file_layers) == len(model_layers)
    only_heads_differ = len(pairs) + 1 == len(file_layers) == len(model_layers) and (
        _differ_in_classes(file_layers[-1][1], model_layers[-1][1])
    )
    if only_heads_differ:
        pairs.append((file_layers[-1][0], model_layers[-1][0]))
    elif not all_match:
        pairs = _pairs_of_unique_shapes(file_layers, model_layers)
    complete = {source: target for source, target in pairs if source != target}
    short = _shortened(complete)
    fits = short and comparison.matching(short) >= comparison.matching(complete)
    return short if fits else complete


def _layers(names: Mapping[str, Shape], *, in_order: bool) -> list[_Layer]:
    layers: defaultdict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in names.items():
        owner, _, leaf = name.rpartition(".")
        # A tensor of the root itself counts as a layer.
        layers[owner or leaf][leaf if owner else ""] = shape
    found = [(owner, dict(sorted(shapes.items()))) for owner, shapes in layers.items()]
    return found if in_order else sorted(found, key=lambda layer: _natural(layer[0]))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `layer10` after `layer2`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _leading_pairs(
    file_layers: Sequence[_Layer], model_layers: Sequence[_Layer]
) -> list[tuple[str, str]]:
    """Return the pairs of layers with equal shapes, up to the first that differ."""
    both = zip(file_layers, model_layers, strict=False)
    equal = itertools.takewhile(lambda pair: pair[0][1] == pair[1][1], both)
    return [(source, target) for (source, _), (target, _) in equal]


def _pairs_of_unique_shapes(
    file_layers: Sequence[_Layer], model_layers: Sequence[_Layer]
) -> list[tuple[str, str]]:
    """Return the pairs of layers whose shapes occur once on each side."""
    counts = [
        Counter(json.dumps(shapes) for _, shapes in layers)
        for layers in (file_layers, model_layers)
    ]
    by_shape = {json.dumps(shapes): name for name, shapes in model_layers}
    return [
        (name, by_shape[key])
        for name, key in ((name, json.dumps(shapes)) for name, shapes in file_layers)
        if all(count[key] == 1 for count in counts)
    ]


def _differ_in_classes(file: Mapping[str, Shape], model: Mapping[str, Shape]) -> bool:
    return file.keys() == model.keys() and all(
        differ_in_rows(shape, model[leaf]) for leaf, shape in file.items()
    )


def differ_in_rows(file: Shape, model: Shape) -> bool:
    """Return whether two shapes differ only in their first size, a layer's outputs."""
    return len(file) == len(model) > 0 and file[0] != model[0] and file[1:] == model[1:]


def _shortened(rename: Mapping[str, str]) -> dict[str, str]:
    """Return a renaming of common beginnings, or an empty one if these contradict each other."""
    short: dict[str, str] = {}
    for old, new in rename.items():
        one, other = old.split("."), new.split(".")
        while len(one) > 1 and len(other) > 1 and one[-1] == other[-1]:
            one.pop()
            other.pop()
        if short.setdefault(".".join(one), ".".join(other)) != ".".join(other):
            return {}
    return short
