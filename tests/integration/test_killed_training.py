"""A training run that is killed and restarted gives bitwise the same result."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import select
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from finetunelib.training import Callback, TrainContext
from finetunelib.training._checkpointing.folder import newest_checkpoint
from training._checkpointing.checkpoint_files import (
    COMBINATIONS,
    IN_THE_BACKGROUND,
    Combination,
    bits,
)

KILLS = 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork"),
    # The threads are idle threads of torch and of other tests.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """Run torch on one thread, because a forked process has no copies of the other threads."""


class Reporter(Callback):
    """A callback that reports the start of training through a pipe and counts the steps."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self.steps = 0

    def on_fit_start(self, context: TrainContext) -> None:
        os.write(self.pipe, b"begun")

    def on_step_end(self, context: TrainContext) -> None:
        self.steps += 1


def work(combination: Combination, folder: Path, pipe: int) -> None:
    """Train in this process, and write the result."""
    reporter = Reporter(pipe)
    trained = combination.train(folder / "run", reporter, resume_from=folder / "run")
    result = pickle.dumps((bits(trained), reporter.steps))
    (folder / "result.tmp").write_bytes(result)
    (folder / "result.tmp").rename(folder / "result")
    os.write(pipe, b"done")


def train_and_kill(combination: Combination, folder: Path, delay: float) -> bool:
    """Train in a forked process, and kill it `delay` seconds after training has started.

    Returns:
        Whether it was killed before it had finished.
    """
    folder.mkdir(exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)  # Data loader workers are killed with the process.
            os.close(reading)
            work(combination, folder, writing)
            code = 0
        except BaseException:  # noqa: BLE001 - pytest must not continue in this process
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    try:
        os.read(reading, 5)
        select.select([reading], [], [], delay)
        done = (folder / "result").exists()
        if not done:
            os.killpg(child, signal.SIGKILL)
    finally:
        _, status = os.waitpid(child, 0)
        os.close(reading)
    ended_by_itself = os.WIFEXITED(status)
    assert not ended_by_itself or os.WEXITSTATUS(status) == 0
    return not ended_by_itself


def result_of(folder: Path) -> tuple[dict[str, Any], int]:
    """Return the result of a training run, and the number of steps of its last process."""
    result: tuple[dict[str, Any], int] = pickle.loads((folder / "result").read_bytes())
    return result


@pytest.mark.parametrize("combination", [*COMBINATIONS, *IN_THE_BACKGROUND], ids=str)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, combination: Combination) -> None:
    """A run that is killed five times and restarted is bitwise equal to an uninterrupted run.

    Weights, optimizer, averages and history are compared. A process that finds a checkpoint takes
    only the remaining steps.
    """
    # Imports happen here, and not in the forked processes, which are killed during training.
    combination.train(tmp_path / "warm")
    combination = dataclasses.replace(combination, samples=12)
    begun = time.perf_counter()
    assert not train_and_kill(combination, tmp_path / "whole", 600.0)
    seconds = time.perf_counter() - begun
    expected, all_steps = result_of(tmp_path / "whole")
    assert all_steps == expected["state"][1]

    delays = random.Random(str(combination))
    kills = saved = rounds = 0
    while kills < KILLS or not saved:
        folder = tmp_path / str(rounds)
        rounds += 1
        assert rounds < 20, "no killed process wrote a checkpoint"
        done = 0
        while kills < KILLS * rounds and train_and_kill(
            combination, folder, delays.uniform(0.0, 0.5 * seconds)
        ):
            kills += 1
            found = newest_checkpoint(folder / "run")
            done = 0 if found is None else found.manifest["step"]
        if not (folder / "result").exists():
            assert not train_and_kill(combination, folder, 600.0)
        end, steps = result_of(folder)
        assert end == expected
        assert steps == all_steps - done
        saved += done
