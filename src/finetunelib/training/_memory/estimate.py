"""An estimate of the memory that training needs, from two steps without values."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._messages import readable_size, type_and_line
from finetunelib._preserve import random_state_preserved
from finetunelib._public import public
from finetunelib._tables import text_table
from finetunelib._typing import Batch, LossFunction, OptimizerFactory
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._memory.checkpointing import (
    Checkpointing,
    GradientCheckpointing,
    choose_checkpointing,
)
from finetunelib.training._memory.usage import KINDS, MemoryUse
from finetunelib.training._optimization.optimizer import (
    build_optimizer,
    check_optimizer,
    check_trainable,
)
from finetunelib.training._optimization.precision import (
    Precision,
    PrecisionName,
    choose_precision,
)
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._tasks.supervised import choose_task
from finetunelib.training._tasks.task import Task, validate_output

_LABELS = ("weights and buffers", "gradients", "optimizer state", "activations", "transient")


@public("finetunelib.training")
@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The bytes that tensors take when a training step needs most. `print(estimate)` is a table.

    Attributes:
        weights: Parameters and buffers, of the task too.
        gradients: Gradients of parameters.
        optimizer_state: What the optimizer keeps between steps, such as momentum.
        activations: What the forward pass keeps for the backward pass, and the batch.
        transient: What the backward pass and the optimizer need for a moment.

    Example:
        >>> from finetunelib.training import MemoryEstimate
        >>> print(MemoryEstimate(4_000, 4_000, 8_000, 500, 100))
        tensors                 size
        weights and buffers   4.0 kB
        gradients             4.0 kB
        optimizer state       8.0 kB
        activations            500 B
        transient              100 B
        total                16.6 kB
    """

    weights: int
    gradients: int
    optimizer_state: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        """The sum, in bytes. The program itself with its libraries is not included."""
        return sum(getattr(self, kind) for kind in KINDS)

    def __repr__(self) -> str:
        return f"MemoryEstimate(total={readable_size(self.total)})"

    def __str__(self) -> str:
        sizes = [getattr(self, kind) for kind in KINDS]
        rows = [
            (label, readable_size(size))
            for label, size in zip((*_LABELS, "total"), (*sizes, self.total), strict=True)
        ]
        lines = text_table(("tensors", "size"), rows, numeric=("size",))
        return "\n".join(lines)


@public("finetunelib.training")
def estimate_memory(
    model: nn.Module,
    example_batch: Batch,
    *,
    loss_fn: LossFunction | None = None,
    task: Task | None = None,
    optimizer: OptimizerFactory | None = None,
    lr: float | None = None,
    precision: PrecisionName = "fp32",
    gradient_checkpointing: GradientCheckpointing = False,
) -> MemoryEstimate:
    """Estimate how much memory the training steps of a model need, before training.

    Two steps are run without values: each operation computes only the shapes of its results, so
    this takes neither the memory nor the time of training. The largest number of bytes that
    tensors take at the same time in the second step is returned. It leaves out the memory of the
    program and its libraries, what kernels allocate inside an operation, and copies of weights
    that callbacks make.

    Args:
        model: The model, which may be on the meta device. It is left unchanged.
        example_batch: A batch, as the task gets it: (inputs, targets) or a mapping. It should be
            as large as the largest batch of the data.
        loss_fn: The loss, as for the Trainer.
        task: The task, as for the Trainer.
        optimizer: An optimizer class or a function that builds one. `None` is SGD with momentum.
        lr: The learning rate, if the optimizer needs one.
        precision: `"fp32"`, `"bf16-mixed"` or `"fp16-mixed"`.
        gradient_checkpointing: As for the Trainer.

    Returns:
        The sizes in bytes, which can be added.

    Raises:
        InvalidTypeError: If an argument has a wrong type, or `optimizer` is already built.
        InvalidArgumentError: If nothing is trainable, an argument has an invalid value, or the
            model depends on values and cannot run without them.

    Example:
        >>> import torch
        >>> from finetunelib import build_mlp
        >>> from finetunelib.training import estimate_memory
        >>> batch = (torch.zeros(32, 784), torch.zeros(32).long())
        >>> estimate = estimate_memory(build_mlp(784, [256], 10), batch, optimizer=torch.optim.Adam)
        >>> estimate.optimizer_state // estimate.gradients
        2
    """
    check_model(model)
    if isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidTypeError(
            "`optimizer` must be a class or a function here, because the parameters of "
            f"{type(optimizer).__name__}(...) are real. Pass the class, or a functools.partial."
        )
    chosen = choose_task(task, loss_fn)
    trained = TrainedModules(model, chosen)
    check_optimizer(trained, optimizer, lr)
    check_trainable(trained)
    # The names of the blocks are checked with the model that the user knows.
    choose_checkpointing(model, gradient_checkpointing)
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with warnings.catch_warnings(), random_state_preserved(), mode:
            warnings.simplefilter("ignore")
            own, own_task = _without_values(model, chosen, device)
            batch = _map(example_batch, lambda t: torch.empty_like(t, device=device))
            steps = _Steps(
                TrainedModules(own, own_task),
                choose_precision(precision, device),
                choose_checkpointing(own, gradient_checkpointing),
            )
            return steps.run(batch, optimizer, lr)
    except (InvalidArgumentError, InvalidTypeError):
        raise
    except Exception as error:
        raise InvalidArgumentError(
            f"{type(model).__name__} cannot be run without values, because it depends on values "
            f"of tensors, or because the batch does not fit: {type_and_line(error).rstrip('.')}. "
            "Measure a short training run instead."
        ) from error


def _without_values(model: nn.Module, task: Task, device: torch.device) -> tuple[nn.Module, Task]:
    """Return copies of a model and a task whose tensors have no memory, in train mode."""
    memo: dict[int, Any] = {}
    for root in (model, *TrainedModules(model, task).others.values()):
        for parameter in root.parameters():
            memo[id(parameter)] = nn.Parameter(
                _empty_like(parameter, device), requires_grad=parameter.requires_grad
            )
        for buffer in root.buffers():
            memo[id(buffer)] = _empty_like(buffer, device)
    own, own_task = copy.deepcopy((model, task), memo)
    if not own.training:
        own.train()
    return own, own_task


def _empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    on = device if tensor.is_meta else tensor.device
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=on)


def _map(value: Any, function: Any) -> Any:
    from torch.utils import _pytree

    return _pytree.tree_map_only(Tensor, function, value)


class _Steps:
    """Two steps of a training run, without values.

    Args:
        trained: The modules, without values.
        precision: The number format.
        checkpointing: What is done to the model while it runs.
    """

    def __init__(
        self, trained: TrainedModules, precision: Precision, checkpointing: Checkpointing
    ) -> None:
        self._trained = trained
        self._precision = precision
        self._checkpointing = checkpointing
        self._use = MemoryUse()

    def run(
        self, batch: Batch, optimizer: OptimizerFactory | None, lr: float | None
    ) -> MemoryEstimate:
        """Run the steps and return what the second one needs."""
        use, trained = self._use, self._trained
        modules = (trained.model, *trained.others.values())
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        with use:
            use.count(tensors, "weights")
            _map(batch, lambda tensor: use.count([tensor], "activations"))
            for parameter in trained.parameters_to_optimize():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._count_gradient)  # type: ignore[no-untyped-call]
            built = build_optimizer(trained, optimizer, lr)
            self._step(batch, built)
            use.start()
            self._step(batch, built)
        return MemoryEstimate(**use.peak)

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        use, task = self._use, self._trained.task
        optimizer.zero_grad()
        with self._checkpointing.applied():
            use.kind = "activations"
            with self._precision.autocast():
                output = validate_output(task.step(self._trained.model, batch), task)
            use.kind = "transient"
            torch.autograd.backward(output.loss)
        optimizer.step()
        kept = [v for state in optimizer.state.values() for v in state.values()]
        use.count((value for value in kept if isinstance(value, Tensor)), "optimizer_state")

    def _count_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._use.count([parameter.grad], "gradients")
