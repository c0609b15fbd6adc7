"""The exception tree: the docstring of the module shows the base classes of each exception."""

from __future__ import annotations

import builtins
import inspect
import re
from typing import NamedTuple

import pytest

from finetunelib import errors
from finetunelib.errors import FinetuneLibError


class Entry(NamedTuple):
    """One line of the drawn tree."""

    name: str
    parent: str | None
    builtin: str | None


def drawn_tree() -> list[Entry]:
    """Read the tree in the docstring of `finetunelib.errors`, four columns to a level."""
    line_pattern = re.compile(r"^    (?P<indent>[ │├└─]*)(?P<name>\w+)(?: +\((?P<builtin>\w+)\))?")
    entries: list[Entry] = []
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = line_pattern.match(line)
        if match is None:
            continue
        depth = len(match["indent"]) // 4
        ancestors = ancestors[:depth]
        entries.append(Entry(match["name"], ancestors[-1] if depth else None, match["builtin"]))
        ancestors.append(match["name"])
    return entries


TREE = drawn_tree()


def error_class(name: str) -> type[BaseException]:
    """Return a class of the module, or a builtin, by its name."""
    found = getattr(errors, name, None) or getattr(builtins, name)
    assert isinstance(found, type)
    assert issubclass(found, BaseException)
    return found


def test_the_drawn_tree_names_exactly_the_public_exceptions() -> None:
    """The docstring shows every name of `__all__` once, except the two outside the tree."""
    drawn = [*(entry.name for entry in TREE), "TrainingInterrupted", "DiagnosisWarning"]
    assert sorted(drawn) == sorted(errors.__all__)
    assert "`DiagnosisWarning` is the category" in str(errors.__doc__)
    assert "`TrainingInterrupted` is not part of the tree" in str(errors.__doc__)


def test_all_lists_every_exception_of_the_module() -> None:
    """Every exception in the module is public."""
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("entry", TREE, ids=lambda entry: entry.name)
def test_exception_derives_from_the_root(entry: Entry) -> None:
    """`except FinetuneLibError` catches every exception of the library."""
    with pytest.raises(FinetuneLibError, match="a message"):
        raise error_class(entry.name)("a message")


@pytest.mark.parametrize(
    "entry", [entry for entry in TREE if entry.parent], ids=lambda entry: entry.name
)
def test_exception_derives_directly_from_the_parent_that_is_drawn(entry: Entry) -> None:
    """The base classes are those that the tree shows."""
    assert entry.parent is not None
    assert error_class(entry.parent) in error_class(entry.name).__bases__


@pytest.mark.parametrize(
    "entry", [entry for entry in TREE if entry.builtin], ids=lambda entry: entry.name
)
def test_exception_derives_from_the_builtin_in_brackets(entry: Entry) -> None:
    """Code that handles the builtin also catches the library's exception."""
    assert entry.builtin is not None
    with pytest.raises(error_class(entry.builtin), match="a message"):
        raise error_class(entry.name)("a message")


def test_every_exception_but_the_groups_is_some_builtin() -> None:
    """Only the root and the two groups that are never raised have no builtin base."""
    bare = {
        name
        for name in errors.__all__
        if all(base.__module__ != "builtins" or base is Exception for base in ancestry(name))
    }
    assert bare == {"FinetuneLibError", "HeadError", "WeightsError"}


def ancestry(name: str) -> list[type]:
    """Return the base classes of an exception, except those that all exceptions have."""
    return [
        base for base in error_class(name).__mro__ if base not in (Exception, BaseException, object)
    ]
