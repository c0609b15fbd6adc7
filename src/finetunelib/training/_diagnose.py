"""`diagnose`: what keeps a model from learning, found with steps that are undone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import cast

import torch
from torch import nn

from finetunelib._arguments import check_at_least
from finetunelib._messages import quoted
from finetunelib._public import public
from finetunelib._typing import Batch
from finetunelib.data._batch import length_of
from finetunelib.data._batches import Batches, Data
from finetunelib.data._named import NamedBatches, as_validation
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._diagnosis.diagnosis import Diagnosis
from finetunelib.training._diagnosis.finding import LEVELS, Finding, check_ignored
from finetunelib.training._diagnosis.observer import Observer, Report
from finetunelib.training._optimization.coverage import missing_parameters
from finetunelib.training._tasks.task import StepOutput
from finetunelib.training._trainer import Trainer
from finetunelib.training._trials.trial import NoGuard, Trial, trial

#: The most samples of each data set that are compared.
_MOST_SAMPLES = 1 << 17


class _NoGradientError(Exception):
    """The loss of a step has no gradient."""


class _NeedsGradient(NoGuard):
    """Stops a step whose loss has no gradient, before its backward pass."""

    def check(self, output: StepOutput, batch: Batch) -> None:  # noqa: ARG002 - the protocol's form
        """Raise if the loss has no gradient."""
        if not output.loss.requires_grad:
            raise _NoGradientError


@public("finetunelib.training")
def diagnose(
    trainer: Trainer,
    data: Data | Batch,
    val: Data | Mapping[str, Data] | None = None,
    *,
    steps: int = 3,
    ignore: Sequence[str] = (),
) -> Diagnosis:
    """Find out why a model does not learn.

    The first batch is examined, and a few training steps with the Trainer's optimizer, loss,
    precision and learning rate. Then everything is restored as `find_lr` does, bit by bit. `fit`
    looks for the same in its first batch and its first step, and warns; `diagnose` compares more
    samples, and also returns errors as findings if it can.

    If nothing is found, that does not prove that the model learns. The page "Why does my model not
    learn?" lists the mistakes that are looked for.

    Args:
        trainer: The Trainer.
        data: The training data, in any form that `fit` accepts, except iterators; or one batch.
        val: The validation data, or several sets by name. It is compared with the training data
            if both are in memory.
        steps: The number of updates, at least 1. Adapters are examined from 3 on.
        ignore: The codes of findings to leave out, in addition to the Trainer's own.

    Returns:
        The findings, each with its code, what is wrong, how certain that is, and what to do.

    Raises:
        InvalidArgumentError: If a code is unknown, `steps` is below 1, `data` is an iterator, there
            is nothing to train, or `fit` is running.
        InvalidTypeError: If an argument or the data has the wrong type.
        DataError: If the data is empty, or the model or the loss does not accept it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from finetunelib import Trainer
        >>> from finetunelib.training import diagnose
        >>> inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.Softmax(1))
        >>> trainer = Trainer(model, progress=False)
        >>> diagnose(trainer, (inputs, (inputs.sum(1) > 0).long()))
        Diagnosis(1 finding: softmax-before-cross-entropy)
    """
    if not isinstance(trainer, Trainer):
        raise InvalidTypeError(f"`trainer` must be a Trainer, got {type(trainer).__name__}.")
    ignored = check_ignored(ignore) | trainer._options.warnings.ignored  # noqa: SLF001
    check_at_least(1, steps=steps)
    source = cast("Data", [data] if isinstance(data, Mapping) else data)
    found: dict[str, Finding] = {}

    def report(findings: Iterable[Finding]) -> None:
        found.update({f.code: f for f in findings if f.code not in ignored | found.keys()})

    options = trainer._options  # noqa: SLF001
    others = None if val is None else as_validation(val, options.data.batches)
    with trial(trainer, source, "diagnose", _NeedsGradient()) as run:
        examined = _examine(run, others, report, steps)
    errors_first = sorted(found.values(), key=lambda f: list(LEVELS).index(f.code))
    return Diagnosis(tuple(errors_first), tuple(examined))


class _Measured:
    """Passes the first output that it gets to an observer.

    Args:
        observer: The observer.
        untrained: Whether no update was made before.
    """

    def __init__(self, observer: Observer, *, untrained: bool) -> None:
        self._observer: Observer | None = observer
        self._untrained = untrained

    def __call__(self, output: StepOutput) -> None:
        """Take the output of a micro-batch."""
        if self._observer is not None:
            self._observer.outputs(output, untrained=self._untrained)
        self._observer = None


def _examine(
    run: Trial, val: Batches | NamedBatches | None, report: Report, steps: int
) -> list[str]:
    """Report what is found in the first batch and some steps, and return what was examined."""
    trainer = run.trainer
    trained = trainer._trained  # noqa: SLF001
    observer = Observer(trained, run.batches, val, report, _MOST_SAMPLES)
    report(_uncovered(missing_parameters(trained, run.optimizer)))
    first = run.first()
    start = f"Examined a batch of {length_of(first)} samples"
    try:
        with observer.checking(first):
            run.check(first)
        observer.first_batch(first)
        updates = _steps(run, observer, steps)
    except (InvalidArgumentError, _NoGradientError) as error:
        if isinstance(error, InvalidArgumentError) and _has_gradient(run, first):
            raise
        report([_NO_GRADIENT])
        updates = 0
    compared = [] if observer.compared is None else [str(observer.compared)]
    if val is not None and not compared:
        compared = ["The validation data was not compared with the training data."]
    if not updates:
        return [f"{start}. No update was made.", *compared]
    return [f"{start} and {updates} update{'s' * (updates > 1)}, which were undone.", *compared]


def _steps(run: Trial, observer: Observer, steps: int) -> int:
    """Update the weights, report what is found, and return the number of updates."""
    observer.before_step(run.optimizer, constant_lr=True)
    measure = _Measured(observer, untrained=run.trainer.state.step == 0)
    for number, window in enumerate(islice(run.windows(), steps)):
        run.step(window, measure)
        if number == 0:
            observer.after_first_step()
    observer.after_steps(steps)
    return steps


def _has_gradient(run: Trial, first: Batch) -> bool:
    """Return whether the loss of a batch has a gradient, or cannot be computed at all."""
    evaluator = run.trainer._evaluator  # noqa: SLF001
    try:
        with torch.enable_grad(), evaluator.precision.autocast():
            return evaluator.task.step(evaluator.model, first).loss.requires_grad
    except Exception:  # noqa: BLE001 - the error of the check is raised instead
        return True


def _uncovered(missing: Sequence[tuple[str, nn.Parameter]]) -> Iterator[Finding]:
    if missing:
        names = [name for name, _ in missing]
        yield Finding(
            "parameters-not-in-optimizer",
            "certain",
            f"The optimizer does not contain {len(names)} trainable parameters, so they are not "
            f"trained: {quoted(names)}.",
            "Pass the optimizer's class to a new Trainer, add the parameters to the optimizer, or "
            "freeze them.",
        )


_NO_GRADIENT = Finding(
    "loss-without-gradient",
    "certain",
    "The loss has no gradient, so the model cannot be trained.",
    "Compute it from the outputs of the model, without `.detach()`, `.argmax()`, `.item()` and "
    "`torch.no_grad()`.",
)
