"""`summary`: a table of a model's modules for terminals, notebooks and programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from finetunelib._arguments import check_at_least, check_model
from finetunelib._escapes import one_line
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._messages import first_line, quoted, readable_size, shape_text
from finetunelib._public import public
from finetunelib._wrappers import unwrapped
from finetunelib.visualization._summary.forward_pass import ForwardRecord, record_forward
from finetunelib.visualization._summary.html import html_of
from finetunelib.visualization._summary.rows import SummaryRow, class_name, rows_of
from finetunelib.visualization._summary.text import text_of, title_of
from finetunelib.visualization._summary.tree import Part, packs_weights, tree_of

#: With the lines above and below them, these rows fill a screen of forty lines.
_MOST_ROWS = 34


@public("finetunelib.visualization")
@dataclass(frozen=True, slots=True)
class Summary:
    """A table of a model's modules. It prints as text, and notebooks show it as an HTML table.

    Attributes:
        title: The model's class and inputs.
        rows: The modules down to `depth`, starting with the model itself.
        depth: The depth of the deepest rows. Modules that contain a failure are always included.
        parameters: The number of values in the model's parameters, each tensor counted once.
        trainable_parameters: The number of these values that require gradients.
        buffers: The number of values in the model's buffers.
        bytes: The memory of parameters and buffers, in bytes.
        failed_at: The dotted name of the innermost module whose forward failed. Empty for the
            model itself, `None` if nothing failed.
        notes: The sentences below the table: totals, failures, tied weights, repeated calls, and
            what to pass if shapes are unknown.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.visualization import summary
        >>> table = summary(build_mlp(784, [500], 10))
        >>> table.parameters, table.trainable_parameters, table.bytes
        (397510, 397510, 1590040)
        >>> html = table._repr_html_()  # what a notebook shows
    """

    title: str
    rows: tuple[SummaryRow, ...]
    depth: int
    parameters: int
    trainable_parameters: int
    buffers: int
    bytes: int
    failed_at: str | None
    notes: tuple[str, ...]

    @property
    def frozen_parameters(self) -> int:
        """The number of values in parameters that do not require gradients."""
        return self.parameters - self.trainable_parameters

    def __repr__(self) -> str:
        title = one_line(self.title, 50)
        return f"Summary({title}, {len(self.rows)} rows, {self.parameters:,} parameters)"

    def __str__(self) -> str:
        return text_of(self.title, self.rows, self.notes)

    def _repr_html_(self) -> str:
        return html_of(self.title, self.rows, self.notes)


@public("finetunelib.visualization")
def summary(
    model: nn.Module, example_input: ModelInputs | None = None, *, depth: int | None = None
) -> Summary:
    """Return a table of a model's modules: shapes, parameters, modes and memory.

    Shapes are recorded in one forward pass, in eval mode and without gradients, on the example or
    on a guessed batch of two samples. The model is not changed: modes, buffers, gradients, hooks,
    attributes and random states are restored. Repeated blocks of equal structure (classes, shapes,
    modes) share one row, which contains the sums of their numbers. If the forward pass fails, the
    table shows how far it got; no exception is raised.

    A wrapped model (`torch.compile`, `DataParallel`) is shown without its wrapper and runs
    uncompiled. TorchScript and lazy modules are shown without shapes.

    Args:
        model: The model, on any device. On the meta device, nothing is computed.
        example_input: A batch for the model: a tensor, a tuple (passed by position) or a mapping
            (passed by name). `None` guesses it from the first layer.
        depth: The depth of the deepest rows. 0 shows only the model itself. `None` shows as much
            as fits in about forty lines.

    Returns:
        A table to print or to show in a notebook. Its `.rows` contain the values.

    Raises:
        InvalidTypeError: If `model` is not a module, `example_input` contains no tensors, or
            `depth` is not a whole number.
        InvalidArgumentError: If `depth` is negative.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.visualization import summary
        >>> print(summary(build_mlp(784, [500], 10)))
        MLP on a guessed input of 2x784 float32
        <BLANKLINE>
        Module      Class       Output  Parameters  Trainable  Mode   Type      Memory
        ------------------------------------------------------------------------------
        (model)     MLP         2x10       397,510    397,510  train  float32   1.6 MB
        backbone    Sequential  2x500      392,500    392,500  train  float32   1.6 MB
        backbone.0  Flatten     2x784            0          0  train  -            0 B
        backbone.1  Linear      2x500      392,500    392,500  train  float32   1.6 MB
        backbone.2  ReLU        2x500            0          0  train  -            0 B
        head        Linear      2x10         5,010      5,010  train  float32  20.0 kB
        ------------------------------------------------------------------------------
        397,510 parameters: 397,510 trainable, 0 frozen; 0 values in buffers; 1.6 MB in all.
    """
    check_model(model)
    if depth is not None:
        check_at_least(0, depth=depth)
    example = None if example_input is None else Inputs.of(example_input, "example_input")
    tree = tree_of(unwrapped(model))
    record = record_forward(tree, example)
    every_row = rows_of(tree, record)
    depth = _fitting_depth(every_row) if depth is None else depth
    rows = [
        row for row in every_row if row.depth <= depth or row.status in ("failed", "unfinished")
    ]
    failed = _failed_part(tree, record)
    whole = every_row[0]
    return Summary(
        title=_title(tree.module, record),
        rows=tuple(rows),
        depth=depth,
        parameters=whole.parameters,
        trainable_parameters=whole.trainable_parameters,
        buffers=whole.buffers,
        bytes=whole.bytes,
        failed_at=failed.name if failed else None,
        notes=tuple(_notes(tree, record, rows, failed)),
    )


def _fitting_depth(rows: Sequence[SummaryRow]) -> int:
    """Return the largest depth whose rows fit on a screen, at least 1."""
    depth = 1
    deepest = max(row.depth for row in rows)
    while depth < deepest and sum(row.depth <= depth + 1 for row in rows) <= _MOST_ROWS:
        depth += 1
    return depth


def _title(model: nn.Module, record: ForwardRecord) -> str:
    if record.inputs is None:
        return class_name(model)
    kinds = [
        f"{shape_text(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for tensor in record.inputs.tensors
    ]
    names = [*[""] * len(record.inputs.args), *(f"{name} " for name in record.inputs.kwargs)]
    inputs = ", ".join(name + kind for name, kind in zip(names, kinds, strict=True))
    return f"{class_name(model)} on {'a guessed input of ' if record.guessed else ''}{inputs}"


def _failed_part(tree: Part, record: ForwardRecord) -> Part | None:
    if record.error is None or not record.unfinished:
        return None
    return next(part for part in tree.walk() if part.module is record.unfinished[-1])


def _notes(
    tree: Part, record: ForwardRecord, rows: Sequence[SummaryRow], failed: Part | None
) -> Iterator[str]:
    whole = rows[0]
    yield (
        f"{whole.parameters:,} parameters: {whole.trainable_parameters:,} trainable, "
        f"{whole.parameters - whole.trainable_parameters:,} frozen; {whole.buffers:,} values in "
        f"buffers; {readable_size(whole.bytes)} in all."
    )
    if record.error is not None:
        place = (
            f"in `{failed.name}` ({class_name(failed.module)})"
            if failed and failed.name
            else "in the model's own forward"
        )
        reason = first_line(record.error)
        yield f"The forward pass failed {place}: {type(record.error).__name__}: {reason}"
    if record.advice is not None:
        yield record.advice
    if any(row.name != row.last_name for row in rows):
        yield (
            "xN: N modules of equal structure in one row. Its numbers, and those of the rows below "
            "it, are added up over all of them."
        )
    for calls in sorted({row.calls for row in rows if row.calls > 1}):
        names = [row.name for row in rows if row.calls == calls and row.same_as is None]
        # The submodules of a module that is used several times are not listed.
        tops = [name for name in names if not any(name.startswith(f"{top}.") for top in names)]
        if tops:
            yield f"Used {calls} times: {quoted(tops)}."
    for row in rows:
        if row.same_as is not None:
            yield f"Counted once: `{title_of(row)}`, the same module as `{row.same_as}`."
    packed = [part.name for part in tree.walk() if packs_weights(part.module)]
    if packed:
        yield f"Quantized, with packed weights that are not counted: {quoted(packed)}."
    for names in _tied(tree):
        yield f"Counted once: {quoted(names)}, which are tied."


def _tied(tree: Part) -> Iterator[list[str]]:
    """Yield the names of each parameter that several modules share."""
    owners: dict[int, list[str]] = {}
    for part in tree.walk():
        if part.same_as is None:
            for name, parameter in part.module.named_parameters(part.name, recurse=False):
                owners.setdefault(id(parameter), []).append(name)
    yield from (names for names in owners.values() if len(names) > 1)
