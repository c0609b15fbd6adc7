"""The Trainer: checks what a user passed, keeps it, and assembles the parts that do the work."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finetunelib._preserve import random_state_preserved
from finetunelib._progress import choose_progress
from finetunelib._typing import Data, LossFunction, OptimizerFactory
from finetunelib.data._batches import Batches
from finetunelib.data._dispatch import as_batches
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._checks import check_batch, check_limits, dry_run, first_of
from finetunelib.training._device import choose_device, to_device
from finetunelib.training._evaluation import evaluate, predict
from finetunelib.training._history import History
from finetunelib.training._loop import Loop
from finetunelib.training._metrics import Accuracy, MetricLike, checked_metrics
from finetunelib.training._optimization import build_optimizer, check_optimizer, check_trainable
from finetunelib.training._state import TrainState
from finetunelib.training._step import Step
from finetunelib.training._task import SupervisedTask


class Trainer:
    """Trains, evaluates and applies a model.

    The defaults are a classifier's: cross-entropy, accuracy, and SGD with a learning rate of
    0.01 and a momentum of 0.9. Training equals the loop written by hand bit for bit, on the same
    batches, seed and number of threads.

    Data is a tuple (inputs, targets) of tensors or numpy arrays, a `torch.utils.data.Dataset`
    (or anything else with a length and items), or an iterable of ready batches such as a
    DataLoader. Tensors are cut into batches in memory, without a step for each sample.

    Args:
        model: The module to train. It stays the user's own object, in `trainer.model`. `fit`
            moves it to the device and leaves it there; the modes of its submodules are restored.
            A model in eval mode is trained in train mode as a whole; one in train mode keeps
            submodules that were set to eval by hand as they are.
        loss_fn: A function (outputs, targets) -> scalar loss that averages over the batch. `None`
            is cross-entropy from logits `(batch, classes)` and class indices `(batch,)`, int64.
        optimizer: An optimizer's class, a function (param_groups, lr=...) -> optimizer, or a
            ready optimizer. `None` is SGD with momentum 0.9. It is built at the first `fit`, over
            all parameters, frozen ones included.
        lr: The learning rate. `None` is 0.01; an error beside a ready optimizer.
        metrics: Measures by name: functions (outputs, targets) -> value, averaged over samples,
            or objects with `update(outputs, targets)`, `compute()` and `reset()`. `None` is
            accuracy where the loss is the default, and nothing elsewhere.
        batch_size: The samples in a batch, where the Trainer makes the batches. At least 1.
        num_workers: The processes that read a Dataset; 0 reads it in this one.
        device: Where to run: `"auto"` (an accelerator where there is one), or torch's name of it.
        seed: Decides the order of the data and all randomness of training, together with the
            number of the epoch. `fit` leaves the caller's random states as they were.
        progress: Whether to report: with a bar on a terminal or in a notebook, with one line an
            epoch on stderr elsewhere.

    Raises:
        InvalidTypeError: An argument is of the wrong kind.
        InvalidArgumentError: An argument's value makes no sense.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> targets = (inputs.sum(1) > 0).long()
        >>> trainer = Trainer(build_mlp(4, [16], 2, seed=0), lr=0.1, progress=False)
        >>> history = trainer.fit((inputs[:150], targets[:150]), epochs=5)
        >>> trainer.evaluate((inputs[150:], targets[150:]))["accuracy"] > 0.9
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss_fn: LossFunction | None = None,
        optimizer: OptimizerFactory | torch.optim.Optimizer | None = None,
        lr: float | None = None,
        metrics: Mapping[str, MetricLike] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str | torch.device = "auto",
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            hint = f" Pass an object: {model.__name__}(...)." if isinstance(model, type) else ""
            raise InvalidTypeError(f"`model` must be a torch.nn.Module, but is {model!r}.{hint}")
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise InvalidArgumentError(f"`{name}` must be at least {least}, but is {value}.")
        if loss_fn is not None and not callable(loss_fn):
            raise InvalidTypeError(
                "`loss_fn` must be a function (outputs, targets) -> loss, but is "
                f"{loss_fn!r} ({type(loss_fn).__name__})."
            )
        check_optimizer(optimizer, lr)
        if metrics is None:
            metrics = {"accuracy": Accuracy()} if loss_fn is None else {}

        self.model = model
        self.device: torch.device = choose_device(device)
        self.history: History = History()
        self.state: TrainState = TrainState()
        #: The optimizer, from the first `fit` on.
        self.optimizer: torch.optim.Optimizer | None = None
        self._make_optimizer = optimizer
        self._lr = lr
        self._task = SupervisedTask(loss_fn)
        self._metrics = checked_metrics(metrics)
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._seed = seed
        self._progress = progress

    def fit(
        self,
        train: Data,
        val: Data | None = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
    ) -> History:
        """Train the model.

        A second call trains on: with the same optimizer, and with the numbers of epochs and steps
        going on. Where both limits are given, the first one reached ends the training; an epoch
        that `max_steps` cuts short counts as an epoch.

        Args:
            train: The training data, in one of the forms that the class names. It is read in an
                order that depends on the seed and the epoch alone; a DataLoader keeps its own.
            val: Data to measure after each epoch, in the same forms.
            epochs: How many more passes over the data, at least 1.
            max_steps: How many more updates, at least 1.

        Returns:
            The measurements of every epoch so far, this call's and earlier ones'; also in
            `trainer.history`.

        Raises:
            InvalidArgumentError: No limit, a limit below 1, or no parameter to train.
            InvalidTypeError: The data is of no known form.
            EmptyDataError: There is no sample.
            InvalidInputError: The model cannot take the inputs.
            InvalidTargetError: The default loss cannot take the targets.

        Example:
            >>> import torch
            >>> from finetunelib import Trainer, build_mlp
            >>> data = (torch.randn(30, 4), torch.randint(0, 2, (30,)))
            >>> history = Trainer(build_mlp(4, [], 2), progress=False).fit(data, data, epochs=2)
            >>> len(history["val_loss"])
            2
        """
        check_limits(epochs, max_steps)
        check_trainable(self.model)
        train_batches = self._batches(train, "train")
        val_batches = None if val is None else self._batches(val, "val")
        for name, batches in (("train", train_batches), ("val", val_batches)):
            if batches is not None and not batches.replayable and epochs != 1:
                raise InvalidArgumentError(
                    f"`{name}` is an iterator, which can be read only once, so `epochs` must be 1 "
                    f"and not {epochs}. Pass a list, a DataLoader or another iterable for more."
                )

        self.model.to(self.device)
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self._make_optimizer, self._lr)
        Loop(
            model=self.model,
            task=self._task,
            step=Step(self.model, self._task, self.optimizer, self.state),
            train=train_batches,
            val=val_batches,
            metrics=self._metrics,
            device=self.device,
            seed=self._seed,
            state=self.state,
            history=self.history,
            progress=choose_progress(self._progress),
            last_epoch=math.inf if epochs is None else self.state.epoch + epochs,
            last_step=math.inf if max_steps is None else self.state.step + max_steps,
        ).run()
        return self.history

    def evaluate(self, data: Data) -> dict[str, float]:
        """Measure the model on data, in eval mode and without gradients.

        Args:
            data: Inputs and targets, in one of the forms that the class names.

        Returns:
            `"loss"`, the mean over samples, and the value of every metric under its name.

        Raises:
            InvalidTypeError: The data is of no known form.
            EmptyDataError: There is no sample.
            InvalidInputError: The model cannot take the inputs.
            InvalidTargetError: The default loss cannot take the targets.

        Example:
            >>> import torch
            >>> from finetunelib import Trainer, build_mlp
            >>> trainer = Trainer(build_mlp(4, [], 2, seed=0), progress=False)
            >>> sorted(trainer.evaluate((torch.zeros(3, 4), torch.tensor([0, 1, 1]))))
            ['accuracy', 'loss']
        """
        batches = self._batches(data, "data")
        self.model.to(self.device)
        with random_state_preserved():
            if batches.replayable:
                first = to_device(first_of(batches.in_order(), "data"), self.device)
                check_batch(self.model, self._task, first, batches.all_targets(), "data")
            return evaluate(self.model, self._task, batches.in_order(), self._metrics, self.device)

    def predict(self, data: Data) -> Tensor:
        """Compute the model's outputs for data, in eval mode and without gradients.

        Args:
            data: Inputs as a tensor or array, `(samples, ...)`, or any form that the class names;
                targets are passed over.

        Returns:
            The outputs in the order of the data, `(samples, ...)`, on the CPU. Probabilities are
            `trainer.predict(data).softmax(1)`, classes `trainer.predict(data).argmax(1)`.

        Raises:
            InvalidTypeError: The data is of no known form.
            EmptyDataError: There is no sample.
            InvalidInputError: The model cannot take the inputs.

        Example:
            >>> import torch
            >>> from finetunelib import Trainer, build_mlp
            >>> Trainer(build_mlp(4, [], 2)).predict(torch.zeros(3, 4)).shape
            torch.Size([3, 2])
        """
        batches = self._batches(data, "data", inputs_only=True)
        self.model.to(self.device)
        with random_state_preserved():
            if batches.replayable:
                first = to_device(first_of(batches.in_order(), "data"), self.device)
                dry_run(self.model, self._task, first, "data")
            return predict(self.model, self._task, batches, self.device)

    def _batches(self, data: Data, name: str, *, inputs_only: bool = False) -> Batches:
        return as_batches(
            data,
            name=name,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            seed=self._seed,
            inputs_only=inputs_only,
        )
