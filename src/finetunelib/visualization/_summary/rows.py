"""The rows of a summary: one per module, or per run of repeated blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from finetunelib._escapes import one_line
from finetunelib._public import public
from finetunelib.finetuning._freezing.hold import held_in_eval_mode
from finetunelib.visualization._summary.forward_pass import ForwardRecord
from finetunelib.visualization._summary.tree import Part, runs_of

Mode: TypeAlias = Literal["train", "eval", "frozen", "mixed"]
Status: TypeAlias = Literal["used", "not used", "failed", "unfinished", "not reached", "not run"]


@public("finetunelib.visualization")
@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A module, or a run of repeated blocks, including their submodules.

    Attributes:
        name: The dotted name, that of the first block of a run. Empty for the model itself.
        last_name: The dotted name of the last block of a run, or else `name`.
        count: The number of modules in the row. Its other numbers are sums over all of them.
        class_name: The name of their class.
        depth: The depth below the model, which has depth 0.
        output_shapes: The shapes of the tensors that the first call of a module returned.
        calls: The number of calls of a module in the forward pass.
        status: `"used"`; `"not used"`; `"failed"` for the innermost module whose forward failed,
            `"unfinished"` for the modules that contain it, `"not reached"` for those after it; or
            `"not run"` if the model did not run.
        mode: `"train"`; `"eval"`; `"frozen"` if `finetunelib.finetuning.freeze` keeps all of it in
            eval mode, whatever `.training` is; or `"mixed"`.
        parameters: The number of values in the parameters, each tensor counted once.
        trainable_parameters: The number of these values that require gradients.
        buffers: The number of values in the buffers.
        bytes: The memory of parameters and buffers, in bytes.
        dtypes: The dtypes of the parameters, or of the buffers if there are no parameters.
        same_as: The dotted name of the row that shows the same module in full, or `None`.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.visualization import summary
        >>> row = summary(build_mlp(784, [500], 10)).rows[-1]
        >>> row.name, row.class_name, row.output_shapes, row.parameters
        ('head', 'Linear', ((2, 10),), 5010)
    """

    name: str
    last_name: str
    count: int
    class_name: str
    depth: int
    output_shapes: tuple[tuple[int, ...], ...]
    calls: int
    # Not `Status` and `Mode`, because the docs would show these names.
    status: Literal["used", "not used", "failed", "unfinished", "not reached", "not run"]
    mode: Literal["train", "eval", "frozen", "mixed"]
    parameters: int
    trainable_parameters: int
    buffers: int
    bytes: int
    dtypes: tuple[torch.dtype, ...]
    same_as: str | None

    def __repr__(self) -> str:
        name = self.name or "(model)"
        if self.name != self.last_name:
            name = f"{self.name} to {self.last_name}"
        return (
            f"SummaryRow({one_line(name)}, {one_line(self.class_name)}, {self.status}, "
            f"{self.mode}, output_shapes={self.output_shapes}, parameters={self.parameters:,})"
        )


def rows_of(tree: Part, record: ForwardRecord) -> list[SummaryRow]:
    """Return the rows of a model, each followed by those of its submodules."""
    return list(_Rows(tree, record).of((tree,), tree.name, 0))


class _Rows:
    def __init__(self, tree: Part, record: ForwardRecord) -> None:
        self._record = record
        self._structures: dict[Part, object] = {}
        self._used: set[Part] = set()
        self._note_structure(tree)

    def of(self, parts: Sequence[Part], last_name: str, depth: int) -> Iterator[SummaryRow]:
        """Yield the row of a run of blocks, then those of their submodules.

        Args:
            parts: Blocks of equal structure. Inside repeated blocks, one from each of these.
            last_name: The name of the last block of the run that starts with the first one.
            depth: Their depth below the model.
        """
        yield self._row(parts, last_name, depth)
        children = parts[0].children
        for run in runs_of(children, [self._structures[child] for child in children]):
            blocks = [part.children[index] for part in parts for index in run]
            yield from self.of(blocks, children[run[-1]].name, depth + 1)

    def _row(self, parts: Sequence[Part], last_name: str, depth: int) -> SummaryRow:
        first = parts[0]
        modules = [inner for part in parts for inner in part.module.modules()]
        parameters = _distinct(p for part in parts for p in part.module.parameters())
        buffers = _distinct(b for part in parts for b in part.module.buffers())
        calls = self._record.calls.get(first.module, [])
        return SummaryRow(
            name=first.name,
            last_name=last_name,
            count=len(parts),
            class_name=class_name(first.module),
            depth=depth,
            output_shapes=calls[0] if calls else (),
            calls=len(calls),
            status=self._status(first),
            mode=_mode_of(modules),
            parameters=_values_in(parameters),
            trainable_parameters=_values_in([p for p in parameters if p.requires_grad]),
            buffers=_values_in(buffers),
            bytes=sum(t.numel() * t.element_size() for t in (*parameters, *buffers)),
            dtypes=_dtypes_of(parameters or buffers),
            same_as=first.same_as,
        )

    def _note_structure(self, part: Part) -> object:
        """Store and return the structure of a part: if two are equal, so are the rows below."""
        children = tuple(self._note_structure(child) for child in part.children)
        module = part.module
        if (
            module in self._record.calls
            or module in self._record.used
            or any(child in self._used for child in part.children)
        ):
            self._used.add(part)
        tensors = (*module._parameters.items(), *module._buffers.items())  # noqa: SLF001
        structure = (
            type(module),
            part.same_as,
            tuple(child.name.rpartition(".")[2] for child in part.children),
            children,
            tuple((name, None if t is None else _kind(t)) for name, t in tensors),
            (module.training, held_in_eval_mode(module)),
            tuple(self._record.calls.get(module, ())),
            self._status(part),
        )
        self._structures[part] = structure
        return structure

    def _status(self, part: Part) -> Status:
        if self._record.inputs is None:
            return "not run"
        if part.module in self._record.unfinished:
            return "failed" if part.module is self._record.unfinished[-1] else "unfinished"
        if part in self._used:
            return "used"
        return "not used" if self._record.error is None else "not reached"


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class, for TorchScript that of the original module."""
    original = getattr(module, "original_name", None)
    if isinstance(module, torch.jit.ScriptModule) and isinstance(original, str):
        return original
    return type(module).__name__


def _kind(tensor: Tensor) -> tuple[object, ...]:
    shape = None if is_lazy(tensor) else tuple(tensor.shape)
    return (shape, tensor.dtype, tensor.device, tensor.requires_grad)


def _mode_of(modules: Iterable[nn.Module]) -> Mode:
    modes: set[Mode] = {
        "frozen" if held_in_eval_mode(module) else "train" if module.training else "eval"
        for module in modules
    }
    return modes.pop() if len(modes) == 1 else "mixed"


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return each tensor once, without lazy tensors, which have no values yet."""
    return list({id(tensor): tensor for tensor in tensors if not is_lazy(tensor)}.values())


def _values_in(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _dtypes_of(tensors: Iterable[Tensor]) -> tuple[torch.dtype, ...]:
    """Return the dtypes of tensors. An int64 counter, as in BatchNorm, counts only if alone."""
    dtypes = dict.fromkeys(tensor.dtype for tensor in tensors)
    return tuple(dtype for dtype in dtypes if dtype != torch.int64) or tuple(dtypes)
