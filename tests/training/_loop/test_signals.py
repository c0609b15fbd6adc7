"""Ctrl-C and SIGTERM end training between two steps, and it resumes from there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from finetunelib.callbacks import EMA, ModelCheckpoint
from finetunelib.errors import FinetuneLibError, TrainingInterrupted
from finetunelib.training import Callback, TrainContext
from training.tiny import network, points, quiet_trainer, same_weights

DATA = points()
VAL = points(10, seed=1)


@pytest.fixture(autouse=True)
def ctrl_c_as_python_has_it() -> Iterator[None]:
    """Set Python's handler of Ctrl-C, which a shell may have disabled for the tests."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


class SignalAt(Callback):
    """Sends a signal to this process during a step or a validation."""

    def __init__(self, number: int, step: int, *, in_validation: bool = False) -> None:
        self.number = number
        self.step = step
        self.in_validation = in_validation
        self.ended = False

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == self.step and not self.in_validation:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, context: TrainContext) -> None:
        if context.state.step == self.step and self.in_validation:
            os.kill(os.getpid(), self.number)

    def on_fit_end(self, context: TrainContext) -> None:
        self.ended = True


def rows(history: Any) -> list[dict[str, float]]:
    timings = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in timings} for row in history.rows]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_training_after_the_step(number: int, code: int) -> None:
    """The step is completed, callbacks are called, and the exception has the history."""
    callback = SignalAt(number, 8)
    trainer = quiet_trainer(network(), callbacks=[callback])
    with pytest.raises(TrainingInterrupted, match="after step 8") as caught:
        trainer.fit(DATA, epochs=4)
    assert trainer.state.step == 8
    assert callback.ended
    assert caught.value.history is trainer.history
    assert len(trainer.history) == 1
    assert caught.value.code == code


def test_an_interruption_is_not_caught_by_except_exception() -> None:
    """Code that catches errors does not catch it."""
    assert not issubclass(TrainingInterrupted, Exception)
    assert not issubclass(TrainingInterrupted, FinetuneLibError)
    assert issubclass(TrainingInterrupted, KeyboardInterrupt)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    ("step", "in_validation"), [(5, False), (6, False), (12, False), (6, True), (12, True)]
)
def test_an_interrupted_run_resumes_bit_for_bit(
    tmp_path: Path, step: int, in_validation: bool, blocking: bool
) -> None:
    """The checkpoint that is written at the signal leads to the same end."""
    whole = quiet_trainer(network(), callbacks=[EMA(0.9)])
    whole.fit(DATA, VAL, epochs=3)

    def interrupted(*more: Callback) -> Any:
        checkpoints = ModelCheckpoint(tmp_path, every_n_epochs=100, blocking=blocking)
        callbacks = [EMA(0.9), checkpoints, *more]
        return quiet_trainer(network(), callbacks=callbacks)

    stopping = interrupted(SignalAt(signal.SIGTERM, step, in_validation=in_validation))
    with pytest.raises(TrainingInterrupted, match="A checkpoint is in"):
        stopping.fit(DATA, VAL, epochs=3)
    resumed = interrupted()
    resumed.fit(DATA, VAL, epochs=3, resume_from=tmp_path)
    assert same_weights(resumed.model, whole.model)
    assert rows(resumed.history) == rows(whole.history)


def test_the_users_handlers_are_restored() -> None:
    """The same handlers are set before and after a fit, also if it is interrupted."""

    def handler(*_: object) -> None: ...

    former = signal.signal(signal.SIGTERM, handler)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(TrainingInterrupted):
            quiet_trainer(network(), callbacks=[SignalAt(signal.SIGTERM, 2)]).fit(DATA, epochs=1)
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, former)


def test_an_ignored_signal_stays_ignored() -> None:
    """Under nohup, which ignores a signal, training continues."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer = quiet_trainer(network(), callbacks=[SignalAt(signal.SIGINT, 2)])
        assert len(trainer.fit(DATA, epochs=2)) == 2
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_second_ctrl_c_stops_at_once() -> None:
    """It raises immediately, without waiting for the step."""

    class Impatient(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer = quiet_trainer(network(), callbacks=[Impatient()])
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(DATA, epochs=1)
    assert not isinstance(caught.value, TrainingInterrupted)


def test_training_in_another_thread_sets_no_handlers() -> None:
    """Only the main thread may set them; training works in others too."""
    lengths: list[int] = []
    thread = threading.Thread(
        target=lambda: lengths.append(len(quiet_trainer(network()).fit(DATA, epochs=1)))
    )
    thread.start()
    thread.join()
    assert lengths == [1]


SCRIPT = """
    import signal
    import sys
    import time
    import torch
    from torch import nn
    from torch.utils.data import Dataset
    from finetunelib import Trainer
    from finetunelib.callbacks import ModelCheckpoint
    from finetunelib.training import Callback

    class Samples(Dataset):
        def __len__(self):
            return 120

        def __getitem__(self, index):
            return torch.full((4,), index / 120) + 0.1 * torch.randn(4), index % 3

    class Say(Callback):
        def on_step_end(self, context):
            print(context.state.step, flush=True)
            time.sleep(0.01)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, workers = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = Trainer(
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2)), batch_size=4, num_workers=workers,
        progress=False, callbacks=[Say(), ModelCheckpoint(folder, every_n_epochs=100)],
    )
    trainer.fit(Samples(), epochs=4, resume_from=folder)
    print(trainer.model.state_dict())
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Return the command that runs the script."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    return [sys.executable, str(script)]


def weights_printed(command: list[str], folder: Path, workers: int) -> str:
    """Run the script to its end, and return the weights that it prints."""
    output = subprocess.check_output([*command, str(folder), str(workers)], text=True)
    return output[output.index("OrderedDict") :]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_script_that_does_not_catch_it_exits_with_the_shells_code_and_resumes(
    tmp_path: Path, command: list[str], workers: int
) -> None:
    """A real process exits with 130 or 143, leaves no worker, and resumes exactly."""
    whole = weights_printed(command, tmp_path / "whole", workers)
    moments = random.Random(workers)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        folder = tmp_path / str(code)
        process = subprocess.Popen(
            [*command, str(folder), str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        last = moments.randrange(1, 90)
        next(line for line in process.stdout if int(line) >= last)
        time.sleep(moments.random() * 0.02)  # Anywhere in a step.
        # Like a terminal: Ctrl-C is sent to the process group, which includes the workers.
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        assert weights_printed(command, folder, workers) == whole


def test_a_signal_that_also_ends_the_workers_ends_the_training() -> None:
    """If the signal has ended the workers of the data, that is not reported as an error."""

    class Ended(DataLoader[tuple[Tensor, ...]]):
        def __iter__(self) -> Any:
            yield from list(super().__iter__())[:3]
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("DataLoader worker exited unexpectedly")

    trainer = quiet_trainer(network())
    with pytest.raises(TrainingInterrupted, match="after step 3"):
        trainer.fit(Ended(TensorDataset(*DATA), batch_size=4), epochs=2)
