"""Several sets of validation data by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Any

from torch.utils.data import Dataset

from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.data._parts import is_tensor_like
from finetunelib.errors import EmptyDataError, InvalidArgumentError, InvalidTypeError


class NamedBatches:
    """The batches of several sets, each of which is evaluated by itself.

    Attributes:
        sets: The batches of each set by its name.
    """

    def __init__(self, sets: Mapping[str, Batches]) -> None:
        self.sets = dict(sets)

    @property
    def replayable(self) -> bool:
        """Whether each set can be read more than once."""
        return all(batches.replayable for batches in self.sets.values())

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches of all sets, one set after the other."""
        for batches in self.sets.values():
            yield from batches.in_order()

    def state_dict(self, *, inside_epoch: bool) -> dict[str, Any]:
        """Return the states of the sets: the generators of all in one list, as of a single set."""
        states = {n: b.state_dict(inside_epoch=inside_epoch) for n, b in self.sets.items()}
        return {
            "generators": [g for state in states.values() for g in state.get("generators", [])],
            "sets": {
                name: {**state, "generators": len(state.get("generators", []))}
                for name, state in states.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        saved, generators = state.get("sets", {}), list(state.get("generators", []))
        if saved.keys() != self.sets.keys():
            if generators:
                warnings.warn(
                    f"The checkpoint contains the states of random generators of other validation "
                    f"data than {', '.join(self.sets)}. Its order starts from scratch.",
                    stacklevel=2,
                )
            return
        for name, part in saved.items():
            own, generators = generators[: part["generators"]], generators[part["generators"] :]
            if own or len(part) > 1:
                self.sets[name].load_state_dict({**part, "generators": own})


def as_validation(val: Any, batches: Callable[[Any, str], Batches]) -> Batches | NamedBatches:
    """Return validation data as batches; a mapping whose values are data is several sets by name.

    Args:
        val: The validation data. A mapping with a tensor or array among its values is not a
            mapping of sets.
        batches: Returns the batches of data with a name for messages.

    Raises:
        EmptyDataError: If there is no set.
        InvalidTypeError: If a name is not a string.
        InvalidArgumentError: If a name cannot be part of a column, or columns could be mixed up.
    """
    sets = isinstance(val, Mapping) and not isinstance(val, Dataset)
    if not sets or any(map(is_tensor_like, val.values())):
        return batches(val, "val")
    if not val:
        raise EmptyDataError(
            "`val` is an empty mapping. Pass validation data by name, such as "
            '{"clean": (inputs, targets)}, or leave it out.'
        )
    for name in val:
        _check_name(name)
    for one, other in permutations(val, 2):
        if other.startswith(f"{one}_"):
            raise InvalidArgumentError(
                f"The names of validation sets must not begin with each other: {one!r} and "
                f"{other!r} could give the same column. Rename one."
            )
    return NamedBatches({name: batches(data, f"val[{name!r}]") for name, data in val.items()})


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise InvalidTypeError(
            f"The names of validation sets must be strings, got {name!r} ({type(name).__name__})."
        )
    if not re.fullmatch(r"\w+", name) or name == "loss":
        raise InvalidArgumentError(
            f"The name of a validation set becomes a part of columns such as `val_clean_loss`, so "
            f"it must consist of letters, digits and underscores, and not be `loss`, got {name!r}."
        )
