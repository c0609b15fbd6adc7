"""The Trainer: checks its arguments, stores the state of training, and delegates to the loop."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
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
from finetunelib._typing import LossFunction, Mode, OptimizerFactory, StrPath
from finetunelib.data._batch import first_of
from finetunelib.data._batches import Data
from finetunelib.data._samples import CollateFunction, check_collate
from finetunelib.errors import CheckpointError, FileMissingError, InvalidArgumentError
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.hooks import check_callbacks
from finetunelib.training._checkpointing.folder import newest_checkpoint
from finetunelib.training._checkpointing.position import DataSignature
from finetunelib.training._checkpointing.record import RunRecord
from finetunelib.training._checkpointing.run import TrainingRun
from finetunelib.training._diagnosis.warn import Warnings
from finetunelib.training._history import History
from finetunelib.training._loop.build_run import build_run
from finetunelib.training._loop.feed import FitData
from finetunelib.training._loop.limits import (
    Limits,
    check_ends,
    check_limits,
    check_replayable,
    check_rows,
)
from finetunelib.training._measuring.accumulator import MetricAccumulator, try_saved_sums
from finetunelib.training._measuring.defaults import default_metrics
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._measuring.exclusive import exclusive
from finetunelib.training._measuring.metrics import MetricLike, as_metrics
from finetunelib.training._memory.checkpointing import GradientCheckpointing, choose_checkpointing
from finetunelib.training._optimization.gradients import choose_clipping
from finetunelib.training._optimization.optimizer import check_trainable
from finetunelib.training._optimization.plateau import Monitored
from finetunelib.training._optimization.precision import PrecisionName, choose_precision
from finetunelib.training._optimization.schedule import Interval, SchedulerFactory
from finetunelib.training._options import (
    Caching,
    DataOptions,
    OptimizerOptions,
    TrainerOptions,
    choose_device,
)
from finetunelib.training._processes import check_single_process
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._tasks.supervised import choose_task
from finetunelib.training._tasks.task import Task


class TrainerStatus(Enum):
    """What a Trainer is doing."""

    IDLE = "idle"
    FITTING = "fitting"


@public("finetunelib")
class Trainer:
    """Trains and evaluates a model, and runs inference with it.

    The defaults are those of a classifier: cross-entropy, accuracy, and SGD with a learning rate
    of 0.01 and a momentum of 0.9. Given the same batches, seed and number of threads, training
    matches a hand-written loop bit for bit.

    Data is a tuple (inputs, targets) of tensors or numpy arrays, or of dicts of them by name (of
    the arguments of the model, for inputs), a `torch.utils.data.Dataset`
    (or any other object with a length and items), or an iterable of ready batches such as a
    DataLoader. Tensors are split into batches in memory, without a step for each sample.
    `TensorBatches` keep their own batch size and seed.

    Args:
        model: The module to train. `fit` trains this object in place, moves it to the device and
            leaves it there. The modes of its submodules are restored. A model in eval mode is
            trained in train mode; in a model in train mode, submodules set to eval stay in eval
            mode.
        loss_fn: A function (outputs, targets) -> scalar loss that averages over the batch. `None`
            is cross-entropy from logits `(batch, classes)` and class indices `(batch,)`, int64.
        optimizer: An optimizer class, a function (param_groups, lr=...) -> optimizer, or an
            optimizer. `None` is SGD with momentum 0.9. It is built by the first `fit`, over all
            parameters of the model, including frozen ones, and the trainable parameters of the
            loss and the task. `save_checkpoint` and `load_checkpoint` build it too. Its parameters
            never change: after a new head was added, create a new Trainer.
        lr: The learning rate. `None` is the optimizer's own default: 0.01 for `optimizer=None`,
            and the default of the class or function otherwise. It cannot be combined with an
            optimizer that is already built, or with a partial that has an `lr`.
        lr_scheduler: A function from the optimizer to a PyTorch scheduler, or a scheduler of the
            optimizer that is passed. `None` keeps the learning rate constant.
        lr_scheduler_interval: Whether the scheduler advances after every `"epoch"` or `"step"`.
        lr_scheduler_monitor: The column of the history that ReduceLROnPlateau follows. `None` is
            the validation loss, or the training loss if there is no validation data.
        lr_scheduler_mode: Whether a lower (`"min"`) or higher (`"max"`) value of that column is
            better; the scheduler must have the same mode. It is needed only for metrics other than
            `Accuracy` that do not declare `higher_is_better`.
        metrics: Metrics by name: functions (outputs, targets) -> value, averaged over samples, or
            objects with `update(outputs, targets)`, `compute()` and `reset()`, such as those of
            torchmetrics. `None` is accuracy if `loss_fn` and `task` are not given, accuracy and
            perplexity for a `TokenTask`, and no metric otherwise. `{}` disables metrics.
        callbacks: Callbacks, in the order in which they are called.
        batch_size: The number of samples in a batch, for data that the Trainer splits into
            batches. At least 1.
        num_workers: The number of processes that read a Dataset; 0 reads it in this process.
        collate_fn: Makes a batch of a list of samples of a Dataset, for samples that cannot be
            stacked, such as sentences of different lengths. `None` stacks them as PyTorch does.
            It is not used for tensors and for ready batches.
        device: Where to run: `"auto"` (an accelerator if there is one) or a PyTorch device.
        precision: `"fp32"`, or mixed precision: `"bf16-mixed"`, or `"fp16-mixed"` with a scaled
            loss.
        gradient_accumulation_steps: The number of batches in one update. Their gradients equal
            those of one large batch, even in a short last update and with a weighted loss.
        max_grad_norm: The norm to which the gradients of an update are clipped. `None` disables
            clipping.
        gradient_checkpointing: Whether blocks of the model keep only their inputs in the forward
            pass and are run again in the backward pass, which takes less memory and more time, with
            the same bits. `True` is for models of transformers and timm, which name their blocks.
            For any other model, pass the names of its repeated blocks, or patterns such as
            `["layers.*"]`. A BatchNorm in a named block updates its statistics once. The model is
            left as it was.
        compile: Whether to run the model through `torch.compile`. The compiled model shares the
            parameters; `trainer.model` and the names in its state dict stay the same.
        cache_data: Whether `fit` keeps the samples of a Dataset in memory when they are first read,
            and cuts the batches of later epochs from there, in the same order and with the same
            bits. With `"auto"`, this is done for two or more epochs if the samples take at most a
            quarter of the available memory, some of them are the same when they are read twice, no
            random numbers are drawn, and the dataset has neither a random generator of its own nor
            `set_epoch`. Before each later epoch, the attributes of the dataset are compared and
            some samples are read again. If one differs, the dataset is read from then on, and a
            line says so, or a warning if only the samples show it. `history.cached_data` tells.
            With `True`, it is an error if the training data cannot be kept; validation data is
            kept if possible. Batches of a `collate_fn` or a DataLoader are never kept.
        cache_features: Whether `fit` runs a frozen backbone over tensors in memory only once and
            then trains the head on its features, with the same bits. With `"auto"`, this is done
            for two or more epochs with the default task if a check on the first batch shows that
            no bit changes, and `history.cached_features` tells. A callback that trains or hooks
            another part ends it. With `True`, it is an error if it cannot be done.
        seed: Determines the order of the data and all randomness of training, together with the
            number of the epoch. `fit` restores the caller's random states.
        task: How to process batches that are neither an (inputs, targets) pair nor a mapping with
            `labels`, or `TokenTask()` for one class per token. A task computes its own loss, so it
            cannot be combined with `loss_fn`.
        progress: Whether to report progress: in a terminal or notebook with a bar that shows the
            running loss and the time left, otherwise with one line per epoch on stderr.
        ignore: The codes of findings that `fit` does not warn about, such as
            `["batchnorm-in-eval"]`. `finetunelib.training.diagnose` finds the same.

    Raises:
        InvalidTypeError: If an argument has the wrong type.
        InvalidArgumentError: If an argument has an invalid value.

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
        lr_scheduler_monitor: str | None = None,
        lr_scheduler_mode: Mode | None = None,
        metrics: Mapping[str, MetricLike] | None = None,
        callbacks: Sequence[Callback] = (),
        batch_size: int = 64,
        num_workers: int = 0,
        collate_fn: CollateFunction | None = None,
        device: str | torch.device = "auto",
        precision: PrecisionName = "fp32",
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        gradient_checkpointing: GradientCheckpointing = False,
        compile: bool = False,  # noqa: A002 - torch's own word for it
        cache_data: Caching = "auto",
        cache_features: Caching = "auto",
        seed: int = 0,
        task: Task | None = None,
        progress: bool = True,
        ignore: Sequence[str] = (),
    ) -> None:
        check_model(model)
        check_at_least(
            1, batch_size=batch_size, gradient_accumulation_steps=gradient_accumulation_steps
        )
        check_at_least(0, num_workers=num_workers)
        check_whole(seed=seed)
        check_collate(collate_fn)
        optimizer_options = OptimizerOptions(
            optimizer,
            lr,
            lr_scheduler,
            lr_scheduler_interval,
            Monitored(lr_scheduler_monitor, lr_scheduler_mode),
        )
        chosen_task = choose_task(task, loss_fn)
        trained = TrainedModules(model, chosen_task)
        optimizer_options.check(trained)
        measured = default_metrics(chosen_task) if metrics is None else as_metrics(metrics)
        clipping, chosen_device = choose_clipping(max_grad_norm), choose_device(device)

        self._trained = trained
        self._options = TrainerOptions(
            callbacks=check_callbacks(callbacks),
            metrics=measured,
            optimizer=optimizer_options,
            data=DataOptions(
                batch_size, num_workers, seed, chosen_device.type == "cuda", collate_fn
            ),
            clipping=clipping,
            accumulation_steps=gradient_accumulation_steps,
            seed=seed,
            progress=progress,
            cache_data=cache_data,
            cache_features=cache_features,
            warnings=Warnings(ignore),
            checkpointing=choose_checkpointing(model, gradient_checkpointing, compiled=compile),
        )
        # The compiled model shares the parameters. It is compiled when it is first called.
        runner = cast("nn.Module", torch.compile(model)) if compile else model
        self._evaluator = Evaluator(
            model, runner, chosen_task, choose_precision(precision, chosen_device), chosen_device
        )
        self._record = RunRecord()
        self._run: TrainingRun | None = None
        self._status = TrainerStatus.IDLE

    @property
    def model(self) -> nn.Module:
        """The user's model, which cannot be replaced. Create a new Trainer for another one."""
        return self._trained.model

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, or `None` before it is built."""
        return None if self._run is None else self._run.optimizer

    @property
    def history(self) -> History:
        """The measurements of every epoch so far."""
        return self._record.history

    @property
    def state(self) -> TrainState:
        """The counters of epochs and steps."""
        return self._record.state

    @property
    def device(self) -> torch.device:
        """The device that training runs on."""
        return self._evaluator.device

    def __repr__(self) -> str:
        state = self.state
        return (
            f"Trainer({type(self.model).__name__}, device={str(self.device)!r}, "
            f"epoch={state.epoch}, step={state.step})"
        )

    def fit(
        self,
        train: Data,
        val: Data | Mapping[str, Data] | None = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        validate_every_n_steps: int | None = None,
        resume_from: StrPath | None = None,
    ) -> History:
        """Train the model.

        A second call continues training: with the same optimizer, and counting epochs and steps
        from the previous call. If both limits are given, training ends at the first one reached.
        An epoch that `max_steps` cuts short counts as an epoch.

        The first batch is read before training starts, to check it. A DataLoader or another
        iterable of batches is opened only once, so its first epoch begins before `on_epoch_start`
        is called. All other data is read after `on_epoch_start` in every epoch.

        Args:
            train: The training data, in one of the forms listed above. Its order depends only on
                the seed and the epoch; a DataLoader keeps its own order.
            val: Validation data, evaluated after each epoch, in the same forms. Several sets are a
                mapping from names to data, such as `{"clean": (...), "noisy": (...)}`; their
                columns are `val_clean_loss`, `val_noisy_loss` and so on.
            epochs: The number of further passes over the data, at least 1. An epoch of an endless
                stream never ends, so pass `max_steps` for one.
            max_steps: The number of further updates, at least 1.
            validate_every_n_steps: Evaluate the validation data after every step that this number
                divides, and at the end of training, instead of after each epoch. The history then
                has one row for each validation: `step` is its step, `epoch` the number of the
                epoch that the step belongs to, from 1, and `train_loss` and the training metrics
                are means over the steps since the row before. Callbacks that follow the rows
                (`EarlyStopping`, `ModelCheckpoint`, loggers) and `ReduceLROnPlateau` follow the
                validations: their patience counts validations. The weights are those of the same
                run without validation. At least 1.
            resume_from: A checkpoint, or a folder of checkpoints of which the newest intact one
                is loaded. Training resumes from it bit for bit as if it had never stopped, even
                in the middle of an epoch. `epochs` and `max_steps` then count from the start of
                the run, including earlier calls; if they have already been reached, `fit` returns
                immediately. If the folder is missing or empty, training starts from the
                beginning, so the same command starts and restarts a run.

        Returns:
            The measurements of every epoch so far, from this call and earlier ones. The same
            object is `trainer.history`.

        Raises:
            InvalidArgumentError: If there is no limit, a limit is below 1, `validate_every_n_steps`
                is given without `val`, data is an endless iterator of itertools, there is no
                parameter to train, a trainable parameter was added or unfrozen that the Trainer's
                optimizer does not contain, an iterator is to be read more than once, `fit` is
                already running, a launcher such as torchrun started several processes, the
                schedule would fail before the last step, or `cache_data` or `cache_features` is
                `True` and the samples or features cannot be kept.
            InvalidTypeError: If the data has an unknown form.
            EmptyDataError: If there are no samples.
            DataError: If inputs and targets have different lengths.
            InvalidInputError: If the model cannot take the inputs.
            InvalidTargetError: If the default loss cannot take the targets.
            CheckpointError: If the checkpoint is damaged, or belongs to a different run.
            Exception: If the model, a metric or a callback raised it; its notes say where.
            NonFiniteError: If a loss is nan or infinite. On a CPU, the weights, the buffers and the
                optimizer are those of the step before.
            PathNotWritableError: If a checkpoint that a callback requested cannot be written.
            TrainingInterrupted: If Ctrl-C or SIGTERM ended training, after the current step.

        Example:
            >>> import torch
            >>> from finetunelib import Trainer, build_mlp
            >>> data = (torch.randn(30, 4), torch.randint(0, 2, (30,)))
            >>> history = Trainer(build_mlp(4, [], 2), progress=False).fit(data, data, epochs=2)
            >>> len(history["val_loss"])
            2
        """
        # Imported here because the package should stay fast to import.
        from finetunelib.training._loop.assemble import assemble

        check_single_process()
        with self._fitting(), exclusive(self.model, training=True):
            check_limits(epochs, max_steps)
            check_ends({"train": train, "val": val}, max_steps)
            check_rows(validate_every_n_steps, train, val)
            check_trainable(self._trained)
            built = self._run
            if built is None:
                self._options.optimizer.check(self._trained)
            else:
                built.coverage.check(self._trained)
            data = FitData.of(self._options, train, val, validate_every_n_steps)
            check_replayable(data, epochs, max_steps)
            run = self._prepared_run()
            if built is None:
                run.coverage.check(self._trained)
            start = copy.copy(self.state)
            if resume_from is not None:
                start = TrainState()
                self._resume(run, resume_from, data.signature)
            limits = Limits.after(start, epochs, max_steps)
            steps = data.signature.accumulation_steps
            run.schedule.check_length(limits.plan(self.state, data.train.steps, steps))
            assemble(self._options, run, self._evaluator, data, limits).run()
        return self.history

    def save_checkpoint(self, path: StrPath) -> Path:
        """Write a checkpoint from which training can resume exactly.

        It contains the weights of the model, the states of the optimizer, schedule, scaler and
        callbacks, and the history. Of frozen tensors that this run has never trained, it contains
        only digests: keep the base model, which resuming needs. It is written completely or not at
        all. While `fit` runs, call
        `context.request_checkpoint` from a callback instead.

        Args:
            path: The folder to write. An existing checkpoint there is replaced.

        Returns:
            The path.

        Raises:
            CheckpointError: If `fit` is running, or a state contains an object that could not be
                read back without running code.
            PathNotWritableError: If nothing can be written to `path`. An existing checkpoint is
                left unchanged.

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
        if self._status is TrainerStatus.FITTING:
            raise CheckpointError(
                "Cannot save a checkpoint while `fit` is running. Call "
                "`context.request_checkpoint(path)` from a callback instead."
            )
        return self._prepared_run().save(path, self._record.position)

    def load_checkpoint(self, path: StrPath) -> None:
        """Load a checkpoint. The next `fit` resumes from it, even in the middle of an epoch.

        Args:
            path: A checkpoint, or a folder of checkpoints of which the newest intact one is
                loaded.

        Raises:
            FileMissingError: If there is no checkpoint.
            CheckpointError: If the checkpoint is damaged, or was written with a different model,
                frozen base, optimizer, schedule or callbacks; the message names the difference. Or
                if `fit` is
                running.
        """
        if self._status is TrainerStatus.FITTING:
            raise CheckpointError(
                "Cannot load a checkpoint while `fit` is running. Load it before `fit`, or pass "
                "it as `resume_from`."
            )
        checkpoint = newest_checkpoint(path)
        if checkpoint is None:
            raise FileMissingError(f"There is no checkpoint at `{path}` or in it.")
        self._report(self._prepared_run().load(checkpoint, try_metrics=self._try_metrics))

    def evaluate(self, data: Data) -> dict[str, float]:
        """Evaluate the model on data, in eval mode and without gradients.

        Args:
            data: Inputs and targets, in one of the forms listed above.

        Returns:
            `"loss"`, the mean over samples, and the value of every metric under its name.

        Raises:
            InvalidTypeError: If the data has an unknown form.
            EmptyDataError: If there are no samples.
            DataError: If inputs and targets have different lengths.
            InvalidInputError: If the model cannot take the inputs.
            InvalidTargetError: If the default loss cannot take the targets.

        Example:
            >>> import torch
            >>> from finetunelib import Trainer, build_mlp
            >>> trainer = Trainer(build_mlp(4, [], 2, seed=0), progress=False)
            >>> sorted(trainer.evaluate((torch.zeros(3, 4), torch.tensor([0, 1, 1]))))
            ['accuracy', 'loss']
        """
        batches = self._options.data.batches(data, "data")
        with exclusive(self.model), random_state_preserved():
            self._move()
            in_order = batches.in_order()
            first = first_of(in_order, "data")
            metrics = MetricAccumulator(self._options.metrics, self._evaluator.task)
            self._evaluator.check(first, batches, metrics, "data")
            return self._evaluator.evaluate(chain([first], in_order), metrics, "data")

    def predict(self, data: Data) -> Tensor:
        """Compute the outputs of the model for data, in eval mode and without gradients.

        Threads may call it at the same time; they wait for each other.

        Args:
            data: Inputs as a tensor or array, `(samples, ...)`, or as a dict of them by the names
                of the model's arguments, or any of the forms listed above.
                Targets are ignored. An iterable dataset is read by one worker at most.

        Returns:
            One row for each sample in the order of the data, `(samples, ...)`, on the CPU, in
            float32 if the precision is mixed. For a classifier,
            `trainer.predict(data).softmax(1)` are probabilities, and
            `trainer.predict(data).argmax(1)` are classes. If the model returns a mapping or a
            tuple of tensors, so does `predict`. If the outputs of samples have different shapes,
            or the model returns a list, the result is a list with one entry for each sample.

        Raises:
            InvalidTypeError: If the data has an unknown form.
            EmptyDataError: If there are no samples.
            InvalidInputError: If the model cannot take the inputs.
            DataError: If the model does not return one row for each sample, the data yields fewer
                samples than its length announces, or a DataLoader shuffles them.
            InvalidArgumentError: If another thread trains the model.

        Example:
            >>> import torch
            >>> from finetunelib import Trainer, build_mlp
            >>> Trainer(build_mlp(4, [], 2)).predict(torch.zeros(3, 4)).shape
            torch.Size([3, 2])
        """
        batches = self._options.data.batches(data, "data", inputs_only=True)
        rows = batches.rows()
        with exclusive(self.model), random_state_preserved():
            self._move()
            in_order = batches.in_order()
            first = first_of(in_order, "data")
            # Declared as a tensor, which it is for almost every model.
            return cast("Tensor", self._evaluator.predict(chain([first], in_order), rows))

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Run the block as the only `fit` of this Trainer.

        Raises:
            InvalidArgumentError: If `fit` is already running.
        """
        if self._status is TrainerStatus.FITTING:
            raise InvalidArgumentError(
                "`fit` cannot be called while `fit` of the same Trainer is running. Call it after "
                "the first one has returned, or use another Trainer."
            )
        self._status = TrainerStatus.FITTING
        try:
            yield
        finally:
            self._status = TrainerStatus.IDLE

    def _resume(self, run: TrainingRun, path: StrPath, signature: DataSignature) -> None:
        """Load the newest checkpoint at a path, or report that there is none."""
        checkpoint = newest_checkpoint(path)
        if checkpoint is not None:
            self._report(run.load(checkpoint, signature, self._try_metrics))
            return
        how = "starting from scratch" if self.state.step == 0 else "continuing the current run"
        self._report(f"No checkpoint found in `{path}`; {how}.")

    def _try_metrics(self, saved: Mapping[str, Any]) -> None:
        try_saved_sums(self._options.metrics, self._evaluator.task, saved)

    def _report(self, line: str) -> None:
        if line:
            choose_progress(self._options.progress).finish(line)

    def _prepared_run(self) -> TrainingRun:
        """Move the model to the device, build the optimizer once, and return the run."""
        self._move()
        if self._run is None:
            self._run = build_run(self._options, self._trained, self._evaluator, self._record)
        return self._run

    def _move(self) -> None:
        """Move the model to its device, together with the modules of the loss and the task."""
        for module in (self.model, *self._trained.others.values()):
            module.to(self.device)
