"""The Trainer: checks what a user passed, keeps it, and assembles the parts that do the work."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from finetunelib._arguments import check_at_least, check_model, check_whole
from finetunelib._preserve import random_state_preserved
from finetunelib._progress import choose_progress
from finetunelib._public import public
from finetunelib._typing import LossFunction, OptimizerFactory, StrPath
from finetunelib.data._batch import first_of, to_device
from finetunelib.data._batches import Batches, Data
from finetunelib.data._dispatch import as_batches
from finetunelib.errors import CheckpointError, FileMissingError
from finetunelib.finetuning._freezing.certificate import FreezeAudit
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._callbacks.hooks import Callbacks, check_callbacks
from finetunelib.training._checkpointing.folder import newest_checkpoint
from finetunelib.training._checkpointing.run import Training, reading_of
from finetunelib.training._device import choose_device
from finetunelib.training._history import History
from finetunelib.training._loop.limits import check_limits, check_replayable
from finetunelib.training._loop.loop import Loop
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._measuring.accuracy import Accuracy
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._measuring.metrics import MetricLike, as_metrics
from finetunelib.training._optimization.gradients import choose_clipping
from finetunelib.training._optimization.optimizer import (
    build_optimizer,
    check_optimizer,
    check_trainable,
)
from finetunelib.training._optimization.precision import PrecisionName, choose_precision
from finetunelib.training._optimization.schedule import (
    Interval,
    NoSchedule,
    SchedulerFactory,
    build_schedule,
    check_scheduler,
)
from finetunelib.training._optimization.step import Step
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.first_batch import check_batch, dry_run
from finetunelib.training._tasks.supervised import SupervisedTask, choose_task, module_of_loss
from finetunelib.training._tasks.task import Task


@public("finetunelib")
class Trainer:
    """Trains, evaluates and applies a model.

    The defaults are a classifier's: cross-entropy, accuracy, and SGD with a learning rate of
    0.01 and a momentum of 0.9. Training equals the loop written by hand bit for bit, on the same
    batches, seed and number of threads.

    Data is a tuple (inputs, targets) of tensors or numpy arrays, a `torch.utils.data.Dataset`
    (or anything else with a length and items), or an iterable of ready batches such as a
    DataLoader. Tensors are cut into batches in memory, without a step for each sample.
    `TensorBatches` are taken as they are, with their own batch size and seed.

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
        lr_scheduler: A function from the optimizer to a scheduler of torch, or a scheduler of the
            ready optimizer that is passed. ReduceLROnPlateau sees the validation loss, or the
            training loss where there is no validation. `None` keeps the learning rate.
        lr_scheduler_interval: Whether the scheduler moves after every `"epoch"` or `"step"`.
        metrics: Measures by name: functions (outputs, targets) -> value, averaged over samples,
            or objects with `update(outputs, targets)`, `compute()` and `reset()`, such as those
            of torchmetrics. `None` is accuracy where loss and task are the default, and nothing
            elsewhere; `{}` switches metrics off.
        callbacks: What else happens during a training, in the order of the calls.
        batch_size: The samples in a batch, where the Trainer makes the batches. At least 1.
        num_workers: The processes that read a Dataset; 0 reads it in this one.
        device: Where to run: `"auto"` (an accelerator where there is one), or torch's name of it.
        precision: `"fp32"`, or mixed precision: `"bf16-mixed"`, or `"fp16-mixed"` with a scaled
            loss.
        gradient_accumulation_steps: How many batches make one update. Their gradients equal
            those of one large batch, also in a short last update and with a weighted loss.
        max_grad_norm: The norm to which the gradients of an update are clipped; `None` does not.
        compile: Whether to run a form of the model compiled by `torch.compile`. It shares the
            parameters; `trainer.model` and the names in its state dict stay as they are.
        seed: Decides the order of the data and all randomness of training, together with the
            number of the epoch. `fit` leaves the caller's random states as they were.
        task: What to do with a batch, where it is neither a pair (inputs, targets) nor a mapping
            with `labels`. It computes the loss itself, so `loss_fn` is an error beside it.
        progress: Whether to report: with a bar on a terminal or in a notebook, with one line an
            epoch on stderr elsewhere.

    Attributes:
        model: The user's model.
        optimizer: The optimizer, `None` before the first `fit`.
        history: The measurements of every epoch so far.
        state: The counters of epochs and steps.
        device: Where the training runs.

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

    def __init__(  # noqa: PLR0913 - the one long list, and a closed one
        self,
        model: nn.Module,
        *,
        loss_fn: LossFunction | None = None,
        optimizer: OptimizerFactory | torch.optim.Optimizer | None = None,
        lr: float | None = None,
        lr_scheduler: SchedulerFactory | LRScheduler | None = None,
        lr_scheduler_interval: Interval = "epoch",
        metrics: Mapping[str, MetricLike] | None = None,
        callbacks: Sequence[Callback] = (),
        batch_size: int = 64,
        num_workers: int = 0,
        device: str | torch.device = "auto",
        precision: PrecisionName = "fp32",
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        compile: bool = False,  # noqa: A002 - torch's own word for it
        seed: int = 0,
        task: Task | None = None,
        progress: bool = True,
    ) -> None:
        check_model(model)
        check_at_least(
            1, batch_size=batch_size, gradient_accumulation_steps=gradient_accumulation_steps
        )
        check_at_least(0, num_workers=num_workers)
        check_whole(seed=seed)
        check_optimizer(model, optimizer, lr)
        check_scheduler(lr_scheduler, lr_scheduler_interval, optimizer)
        self._task = choose_task(task, loss_fn)
        self._loss_module = module_of_loss(self._task)
        if metrics is None:
            metrics = {"accuracy": Accuracy()} if task is None and loss_fn is None else {}
        self._metrics = as_metrics(metrics)
        self._callbacks = check_callbacks(callbacks)
        self._clip = choose_clipping(max_grad_norm)

        self.model = model
        self.device: torch.device = choose_device(device)
        self.history: History = History()
        self._freeze_audit = FreezeAudit()
        self.state: TrainState = TrainState()
        self.optimizer: torch.optim.Optimizer | None = None
        self._make_optimizer = optimizer
        self._lr = lr
        self._make_schedule = lr_scheduler
        self._interval: Interval = lr_scheduler_interval
        self._schedule: NoSchedule | None = None
        # Where a loaded checkpoint is in its data, and where the last training ended.
        self._inside: Mapping[str, Any] | None = None
        self._place: Mapping[str, Any] = {}
        self._fitting = False
        self._precision = choose_precision(precision, self.device)
        self._window_size = gradient_accumulation_steps
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._seed = seed
        self._progress = progress
        # The compiled form shares the parameters; compiling happens at its first call.
        runner = cast("nn.Module", torch.compile(model)) if compile else model
        self._evaluation = Evaluator(model, runner, self._task, self._precision, self.device)

    def fit(
        self,
        train: Data,
        val: Data | None = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        resume_from: StrPath | None = None,
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
            resume_from: A checkpoint, or a folder of checkpoints of which the newest whole one is
                taken, to go on from: in the middle of an epoch too, and bit for bit as if the
                training had never stopped. The limits are totals then; where they are reached
                already, the history is returned at once. A folder that is missing or empty means
                from the beginning, so that one command starts and restarts a training.

        Returns:
            The measurements of every epoch so far, this call's and earlier ones'; also in
            `trainer.history`.

        Raises:
            InvalidArgumentError: No limit, a limit below 1, no parameter to train, or an iterator
                for more than one epoch.
            InvalidTypeError: The data is of no known form.
            EmptyDataError: There is no sample.
            DataError: Inputs and targets have different lengths.
            InvalidInputError: The model cannot take the inputs.
            InvalidTargetError: The default loss cannot take the targets.
            CheckpointError: The checkpoint is damaged, or of another training.
            CallbackError: A callback raised.
            PathNotWritableError: A checkpoint that a callback asked for cannot be written.
            TrainingInterrupted: Ctrl-C or SIGTERM ended the training, after the step in progress.

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
        check_replayable({"train": train_batches, "val": val_batches}, epochs)
        begun = copy.copy(self.state)
        if resume_from is not None:
            begun = TrainState()  # The limits are totals.
            self._resume(resume_from, reading_of(train_batches, self._window_size, self._metrics))
        last_epoch = math.inf if epochs is None else begun.epoch + epochs
        last_step = math.inf if max_steps is None else begun.step + max_steps
        loop = self._loop(train_batches, val_batches, last_epoch, last_step)
        self._fitting = True
        try:
            loop.run()
        finally:
            self._fitting = False
        self._place = loop.place()
        return self.history

    def save_checkpoint(self, path: StrPath) -> Path:
        """Write everything that decides how the training goes on, whole or not at all.

        That is the model's weights, the states of optimizer, schedule, scaler and callbacks, and
        the history. While `fit` runs, a callback asks for it by `context.request_checkpoint`,
        which keeps the place in the epoch too.

        Args:
            path: The folder to write. A former checkpoint there is replaced.

        Returns:
            The path.

        Raises:
            CheckpointError: A training is in progress, or a state holds an object that could not
                be read back without running code.
            PathNotWritableError: Nothing can be written there; what was there before is unchanged.

        Example:
            >>> import os, tempfile, torch
            >>> from finetunelib import Trainer, build_mlp
            >>> data = (torch.zeros(8, 4), torch.zeros(8).long())
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     trainer = Trainer(build_mlp(4, [], 2), progress=False)
            ...     _ = trainer.fit(data, epochs=2)
            ...     path = trainer.save_checkpoint(os.path.join(folder, "two-epochs"))
            ...     other = Trainer(build_mlp(4, [], 2), progress=False)
            ...     other.load_checkpoint(path)
            ...     len(other.fit(data, epochs=1))
            3
        """
        if self._fitting:
            raise CheckpointError(
                "A training is in progress, whose place in the epoch the Trainer does not know. "
                "Call `context.request_checkpoint(path)` in a callback instead."
            )
        return self._training().save(path, self._inside or self._place)

    def load_checkpoint(self, path: StrPath) -> None:
        """Take up a checkpoint: the next `fit` goes on from it, within an epoch too.

        Args:
            path: A checkpoint, or a folder of checkpoints of which the newest whole one is taken.

        Raises:
            FileMissingError: There is no checkpoint.
            CheckpointError: It is damaged, or of another model, optimizer or schedule, or of
                other callbacks; the message says in what they differ. Or a training is in
                progress.
        """
        if self._fitting:
            raise CheckpointError(
                "A training is in progress, and cannot go on from another place. Load a "
                "checkpoint before `fit`, or pass it as `resume_from`."
            )
        checkpoint = newest_checkpoint(path)
        if checkpoint is None:
            raise FileMissingError(f"There is no checkpoint at `{path}`, nor one in it.")
        self._inside = self._training().load(checkpoint)

    def evaluate(self, data: Data) -> dict[str, float]:
        """Measure the model on data, in eval mode and without gradients.

        Args:
            data: Inputs and targets, in one of the forms that the class names.

        Returns:
            `"loss"`, the mean over samples, and the value of every metric under its name.

        Raises:
            InvalidTypeError: The data is of no known form.
            EmptyDataError: There is no sample.
            DataError: Inputs and targets have different lengths.
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
        self._move()
        with random_state_preserved():
            in_order = batches.in_order()
            first = first_of(in_order, "data")
            on_device = to_device(first, self.device)
            check_batch(self.model, self._task, on_device, batches.all_targets(), "data")
            measurement = MetricAccumulator(self._metrics)
            return self._evaluation.evaluate(chain([first], in_order), measurement, "data")

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
            DataError: The model returns more or fewer rows than it was given.

        Example:
            >>> import torch
            >>> from finetunelib import Trainer, build_mlp
            >>> Trainer(build_mlp(4, [], 2)).predict(torch.zeros(3, 4)).shape
            torch.Size([3, 2])
        """
        batches = self._batches(data, "data", inputs_only=True)
        self._move()
        with random_state_preserved():
            in_order = batches.in_order()
            first = first_of(in_order, "data")
            if isinstance(self._task, SupervisedTask):
                dry_run(self.model, to_device(first, self.device), "data")
            return self._evaluation.predict(chain([first], in_order), batches.samples)

    def _loop(
        self, train: Batches, val: Batches | None, last_epoch: float, last_step: float
    ) -> Loop:
        """Return the loop of one training, put together from its parts."""
        training, inside = self._training(), self._inside
        # Copies, since a callback may evaluate in the middle of an epoch's own measurement.
        measured = MetricAccumulator(copy.deepcopy(self._metrics), "train_")
        validated = MetricAccumulator(self._metrics if val else {}, "val_")
        names = (*measured.names, *(validated.names if val else ()))
        context = TrainContext(
            self.model,
            training.optimizer,
            self.state,
            self.history,
            measures=(*names, "lr", "seconds", "samples_per_second"),
            why_not_resumable=lambda inside_epoch: (
                train.why_not_resumable(inside_epoch=inside_epoch)
                or (measured.why_not_resumable if inside_epoch else None)
                or training.unsaveable
            ),
            resumed=inside is not None,
        )
        return Loop(
            step=self._step(training.optimizer, training.schedule),
            evaluation=self._evaluation,
            train=train,
            val=val,
            measured=measured,
            validated=validated,
            context=context,
            freeze_audit=self._freeze_audit,
            callbacks=Callbacks(self._callbacks),
            progress=choose_progress(self._progress),
            begun=self._begin,
            reading=reading_of(train, self._window_size, self._metrics),
            save=training.save,
            inside=inside,
            seed=self._seed,
            window_size=self._window_size,
            last_epoch=last_epoch,
            last_step=last_step,
        )

    def _resume(self, path: StrPath, reading: Mapping[str, Any]) -> None:
        """Take up a checkpoint where there is one, and say so where there is none."""
        checkpoint = newest_checkpoint(path)
        if checkpoint is None:
            how = "starts anew" if self.state.step == 0 else "goes on from where it is"
            line = f"`{path}` holds no checkpoint: the training {how}"
            choose_progress(self._progress).finish(line)
        else:
            self._inside = self._training().load(checkpoint, reading)

    def _training(self) -> Training:
        """Return the parts that have a state, as they are now."""
        optimizer, schedule = self._prepare()
        return Training(
            model=self.model,
            optimizer=optimizer,
            schedule=schedule,
            precision=self._precision,
            state=self.state,
            history=self.history,
            callbacks=self._callbacks,
            freeze_audit=self._freeze_audit,
            loss=self._loss_module,
            settings={
                "device": self.device.type,
                "seed": self._seed,
                "lr": self._lr and float(self._lr),
            },
        )

    def _begin(self) -> None:
        """Forget the place that a loaded checkpoint was at: the training has gone on from it."""
        self._inside, self._place = None, {}

    def _batches(self, data: Data, name: str, *, inputs_only: bool = False) -> Batches:
        return as_batches(
            data,
            name=name,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            seed=self._seed,
            pin_memory=self.device.type == "cuda",
            inputs_only=inputs_only,
        )

    def _move(self) -> None:
        """Move the model to its device, and with it a loss that holds class weights."""
        self.model.to(self.device)
        if self._loss_module is not None:
            self._loss_module.to(self.device)

    def _prepare(self) -> tuple[torch.optim.Optimizer, NoSchedule]:
        """Move what has to move, and build the optimizer and its schedule once."""
        self._move()
        if self.optimizer is None or self._schedule is None:
            optimizer = build_optimizer(self.model, self._make_optimizer, self._lr)
            self._schedule = build_schedule(self._make_schedule, self._interval, optimizer)
            self.optimizer = optimizer
        return self.optimizer, self._schedule

    def _step(self, optimizer: torch.optim.Optimizer, schedule: NoSchedule) -> Step:
        return Step(
            model=self._evaluation.runner,
            task=self._task,
            optimizer=optimizer,
            precision=self._precision,
            clip=self._clip,
            schedule=schedule,
            state=self.state,
            parameters=[p for group in optimizer.param_groups for p in group["params"]],
        )
