"""The base of a file without frozen tensors: whether a model has exactly the same one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from finetunelib._messages import quoted, shape_text
from finetunelib.errors import InvalidArgumentError, WeightsMismatchError
from finetunelib.finetuning._freezing.fingerprint import digests_of
from finetunelib.finetuning._freezing.known_digests import computed_digest
from finetunelib.finetuning._weights.names import NameMatch
from finetunelib.finetuning._weights.partial import LeftOut, frozen_ids, groups_left_out
from finetunelib.finetuning._weights.sources import WeightsFile
from finetunelib.finetuning._weights.state import tied_names


def check_way_of_loading(
    weights: WeightsFile, *, trainable_only: bool, minimum_match: float
) -> None:
    """Raise if a file is to be loaded in another way than it was saved.

    Raises:
        InvalidArgumentError: If `trainable_only` is combined with `minimum_match`.
        WeightsMismatchError: If the file contains all tensors but only the trainable ones are
            expected, or the other way around.
    """
    left_out = weights.left_out
    if trainable_only and minimum_match != 1.0:
        raise InvalidArgumentError(
            "`trainable_only=True` loads exactly the trainable tensors and cannot be combined with "
            f"`minimum_match={minimum_match}`. Leave one of them out."
        )
    if trainable_only and left_out is None:
        raise WeightsMismatchError(
            f"`{weights.path}` was not saved with `trainable_only=True`: it lists no digests of "
            "frozen tensors, so the base cannot be compared. Load it without `trainable_only`."
        )
    if not trainable_only and left_out is not None and left_out.tensors and not left_out.checkpoint:
        raise WeightsMismatchError(
            f"`{weights.path}` was saved with `trainable_only=True` and leaves out "
            f"{len(left_out.tensors)} frozen tensors. Load it with `trainable_only=True` into a "
            "model with the same base and the same frozen tensors."
        )


class Base:
    """The tensors of a model that a file leaves out, compared with their digests in the file.

    Args:
        state: The tensors of the model by name.
        weights: The file.
        match: The counterparts of the model's names in the file.
    """

    def __init__(self, state: Mapping[str, Tensor], weights: WeightsFile, match: NameMatch) -> None:
        self._path = weights.path
        entries = {} if weights.left_out is None else weights.left_out.tensors
        #: The names in the model of the tensors that the file leaves out.
        self.names = tuple(name for name in state if match.sources.get(name) in entries)
        expected = {name: entries[match.sources[name]] for name in self.names}
        reasons = {name: _visible_difference(state[name], expected[name]) for name in self.names}
        comparable = {name: state[name] for name, reason in reasons.items() if not reason}
        for name, own in digests_of(comparable, computed_digest).items():
            if own != expected[name].digest:
                reasons[name] = "it has other values"
        #: Why a tensor is not the one of the file, by its name in the model.
        self.different = {name: reason for name, reason in reasons.items() if reason}

    @property
    def same(self) -> tuple[str, ...]:
        """The names of the tensors that are bit for bit those that the file was saved with."""
        return tuple(name for name in self.names if name not in self.different)

    def check(self) -> None:
        """Raise if a tensor differs.

        Raises:
            WeightsMismatchError: If one does. The message contains the name of the first.
        """
        if not self.different:
            return
        first, reason = next(iter(self.different.items()))
        raise WeightsMismatchError(
            f"`{self._path}` was saved from a model with another base: `{first}` differs, "
            f"{reason}. Of the {len(self.names)} frozen tensors that the file leaves out, "
            f"{len(self.different)} differ. The model is unchanged. Load the base that the file "
            "was trained on first."
        )

    def sentences(self) -> Iterator[str]:
        """Yield a sentence on the tensors that differ, if there are any."""
        if self.different:
            yield (
                f"The file leaves out {len(self.names)} frozen tensors, of which "
                f"{len(self.different)} differ in the model: {quoted(list(self.different))}."
            )


def _visible_difference(tensor: Tensor, entry: LeftOut) -> str:
    """Return how a tensor differs in more than its values, or an empty string."""
    if tuple(tensor.shape) != entry.shape:
        return f"it has shape {shape_text(tensor.shape)} instead of {shape_text(entry.shape)}"
    if tensor.dtype != entry.dtype:
        return f"it is {tensor.dtype} instead of {entry.dtype}"
    if tensor.is_meta:
        return "it is on the meta device and has no values"
    return ""


def trainable_part(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model that a file without frozen tensors contains."""
    frozen = _frozen_names(model, state, tied_names(state))
    return {name: tensor for name, tensor in state.items() if name not in frozen}


def _frozen_names(
    model: nn.Module, state: Mapping[str, Tensor], tied: Sequence[Sequence[str]]
) -> set[str]:
    return {name for group in groups_left_out(state, tied, frozen_ids(model)) for name in group}


def check_same_parts(
    model: nn.Module,
    state: Mapping[str, Tensor],
    tied: Sequence[Sequence[str]],
    in_file: Mapping[str, object],
    base: Base,
) -> None:
    """Raise if the tensors in a file are not exactly the trainable ones of a model.

    Args:
        model: The model.
        state: Its tensors by name.
        tied: Their names, grouped by tensor.
        in_file: The tensors with values in the file, by the model's names.
        base: The tensors that the file leaves out.

    Raises:
        WeightsMismatchError: If a tensor is trainable on one side and frozen on the other.
    """
    frozen = _frozen_names(model, state, tied)
    wrongly_frozen = [name for name in in_file if name in frozen]
    wrongly_trainable = [name for name in base.names if name not in frozen]
    problems = [
        f"{len(names)} tensors are {here} in the model and {there} in the file: {quoted(names)}"
        for names, here, there in (
            (wrongly_frozen, "frozen", "trainable"),
            (wrongly_trainable, "trainable", "frozen"),
        )
        if names
    ]
    if problems:
        raise WeightsMismatchError(
            f"The file does not contain exactly the trainable tensors of the model, which is "
            f"unchanged. {'; '.join(problems)}. Freeze the model in the same way as when the file "
            "was saved, or activate the same adapter, and load again."
        )
