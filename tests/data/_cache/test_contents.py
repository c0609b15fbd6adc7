"""Tests of noticing that a dataset changes."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from finetunelib.data._cache.contents import Contents

FACTOR = 1
SETTINGS: Any = None
LOGGER = logging.getLogger(__name__)


class Numbers(Dataset[float]):
    """Ten numbers."""

    offset = 0

    def __init__(self) -> None:
        self.rows = [{"path": "a", "values": [1, 2]} for _ in range(10)]
        self.table = np.array([[1, "one"], [2, "two"]], dtype=object)
        self.bytes = torch.zeros(10, dtype=torch.bfloat16)
        self.steps: list[Any] = []
        self.shared = multiprocessing.Value("i", 0)
        self.shown = bytearray(10)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> float:
        LOGGER.debug("A logger refers to all others.")
        return float(index * FACTOR + self.offset)


class Slotted:
    """A transform without a `__dict__`."""

    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 1

    def __call__(self, value: float) -> float:
        return value * self.scale


def scaled(value: float, *, scale: Any) -> float:
    """A transform for `functools.partial`."""
    return value * float(scale)


CHANGES: dict[str, Callable[[Numbers], object]] = {
    "attribute": lambda data: setattr(data, "limit", 3),
    "deep in a list": lambda data: data.rows[3]["values"].append(1),  # type: ignore[attr-defined]
    "key": lambda data: data.rows[3].update(path="b"),
    "array of objects": lambda data: data.table.__setitem__((0, 1), "three"),
    "small tensor through numpy": lambda data: data.bytes.view(torch.int16).numpy().fill(1),
    "shared number": lambda data: setattr(data.shared, "value", 1),
    "buffer": lambda data: data.shown.__setitem__(0, 1),
    "length": lambda data: data.rows.pop(),
    "slot": lambda data: setattr(data.steps[0], "scale", 2),
}


@pytest.mark.parametrize("wrap", ["itself", "subset", "concatenated"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: str, wrap: str) -> None:
    """In the dataset and in those inside it; the same objects are no change."""
    data = Numbers()
    data.steps = [Slotted(), functools.partial(scaled, scale=2)]
    wrapped = {"itself": data, "subset": Subset(data, [1]), "concatenated": ConcatDataset([data])}
    contents = Contents(wrapped[wrap])
    assert contents.why_random is None
    assert contents.why_changed() is None
    logging.getLogger(f"{__name__}.new")
    assert contents.why_changed() is None
    CHANGES[change](data)
    assert contents.why_changed() is not None


def test_globals_and_attributes_of_classes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the user's own code mentions."""
    contents = Contents(Numbers())
    monkeypatch.setattr(Numbers, "offset", 1)
    assert contents.why_changed() is not None
    contents = Contents(Numbers())
    monkeypatch.setitem(globals(), "FACTOR", 2)
    assert contents.why_changed() is not None


def test_names_in_modules_of_the_user_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the settings of a project."""
    settings = types.ModuleType("settings_of_a_project")
    settings.__dict__["level"] = 1
    monkeypatch.setitem(sys.modules, settings.__name__, settings)
    monkeypatch.setitem(globals(), "SETTINGS", settings)
    data = Numbers()
    data.steps = [lambda value: value * SETTINGS.level]
    contents = Contents(data)
    assert contents.why_changed() is None
    settings.__dict__["level"] = 2
    assert contents.why_changed() is not None


def test_the_message_names_the_attribute() -> None:
    """A callback that changes it is easy to find then."""
    data = Numbers()
    contents = Contents(data)
    data.limit = 5  # type: ignore[attr-defined]
    assert "'limit' of Numbers" in str(contents.why_just_changed())


def test_containers_are_restored() -> None:
    """Attributes, dicts and lists."""
    data = Numbers()
    contents = Contents(data)
    data.rows[0]["path"] = "b"
    data.rows.pop()
    data.steps = [1]
    data.extra = 1  # type: ignore[attr-defined]
    contents.restore()
    assert contents.why_changed() is None
    assert (len(data), data.rows[0]["path"], data.steps) == (10, "a", [])
    assert not hasattr(data, "extra")


OWN = random.Random(0)


class Hidden(Numbers):
    """Draws from a generator in its module."""

    def __getitem__(self, index: int) -> float:
        return OWN.random()


def in_closure() -> Callable[[float], float]:
    """Return a function that draws from a generator in its closure."""
    generator = np.random.default_rng(0)
    return lambda value: value + generator.random()


def fresh(value: float) -> float:
    """A transform that draws from the system."""
    return value + random.SystemRandom().random()


@pytest.mark.parametrize(
    "step",
    [
        torch.Generator(),
        np.random.RandomState(0),
        {"deep": [random.Random(0)]},
        random.Random(0).random,
        in_closure(),
        functools.partial(scaled, scale=np.random.default_rng(0)),
        lambda value: value + np.random.default_rng().random(),
        {"a": {}, "method": Dataset.__getitem__, "fresh": fresh},
    ],
    ids=["torch", "numpy", "python", "method", "closure", "partial", "new", "system"],
)
def test_random_generators_are_found(step: Any) -> None:
    """Wherever they are, so that reading twice need not find what they do rarely."""
    data = Numbers()
    data.steps = [step]
    assert "random" in str(Contents(data).why_random)


def test_a_generator_in_the_module_is_found() -> None:
    """The code mentions it."""
    assert "random generator" in str(Contents(Hidden()).why_random)


def test_a_dataset_of_very_many_objects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing them would take longer than reading."""
    monkeypatch.setattr("finetunelib.data._cache.contents._MOST_OBJECTS", 15)
    assert "too many" in str(Contents(Numbers()).why_random)
