"""What the bar shows while an epoch runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetunelib import Trainer, _bars
from finetunelib.training import Accuracy, Callback, TrainContext
from finetunelib.training._reporting import running
from finetunelib.training._reporting.running import _duration
from support_terminal import open_terminal
from training._loop.stopping import SaveAt
from training.tiny import BATCH, network, points, same_weights

DATA = points(22)  # six batches
VAL = points(9, seed=1)


class Means(Callback):
    """Keeps the running means after each step."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_step_end(self, context: TrainContext) -> None:
        self.found.append(context.running_means())


class Forbidden:
    """A metric that must not be computed before the end of an epoch."""

    def __init__(self) -> None:
        self.batches = 0

    def update(self, outputs: object, targets: object) -> None:
        self.batches += 1

    def compute(self) -> float:
        assert self.batches in (1, 3, 6)  # after the first batch, validation, or all of training
        return 0.5

    def reset(self) -> None:
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]


def shown(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, **options: Any) -> list[str]:
    """Train with a terminal that draws each step, and return the bars and lines."""
    monkeypatch.setattr(_bars, "INTERVAL", 0.0)
    terminal = open_terminal(monkeypatch)
    trainer.fit(DATA, VAL, **options)
    return [text.strip() for text in re.split(r"[\r\n]", terminal.getvalue()) if text.strip()]


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(network(), batch_size=BATCH, callbacks=callbacks, **options)


def test_bar_shows_the_running_loss_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are those of the context, of the loss and two metrics at most."""
    means = Means()
    metrics = {name: Accuracy(top_k=k) for k, name in enumerate(("accuracy", "top_2", "all"), 1)}
    texts = shown(monkeypatch, trainer(means, metrics=metrics), epochs=2)
    bars = [text for text in texts if "|" in text]
    assert len(bars) == 2 * (1 + 6)
    after_steps = [bar for bar in bars if "0/6" not in bar]
    for bar, found in zip(after_steps, means.found, strict=True):
        loss, accuracy = found["train_loss"], found["train_accuracy"]
        assert f", loss {loss:.4f}, accuracy {accuracy:.4f}, top_2 " in bar
        assert "all" not in bar
        assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, fit <00:0\d, loss .* samples/s\]$", bar)
    assert texts[-1].startswith("epoch 2/2: train_loss ")


def test_metric_of_the_user_is_not_computed_before_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Computing it could change it, or take long."""
    texts = shown(monkeypatch, trainer(metrics={"own": Forbidden()}), epochs=2)
    assert not any("own" in text for text in texts if "|" in text)
    assert "train_own 0.5000" in texts[-1]


def test_bar_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights and the measurements are those of a silent run."""
    silent = trainer(progress=False)
    silent.fit(DATA, VAL, epochs=2)
    loud = trainer()
    assert shown(monkeypatch, loud, epochs=2)
    assert same_weights(loud.model, silent.model)
    for name in ("train_loss", "train_accuracy", "val_loss"):
        assert loud.history[name] == silent.history[name]


def test_time_left_is_that_of_the_whole_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the steps that are left, in all epochs or up to `max_steps`."""
    now = [0.0]
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class TenSeconds(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            now[0] += 10.0

    def lefts(**options: Any) -> list[str]:
        texts = shown(monkeypatch, trainer(TenSeconds()), **options)
        return re.findall(r"fit <([\d:]+)", " ".join(texts))

    def expected(steps: int) -> list[str]:
        # A bar is drawn before the hook, so the last of n steps has taken no time yet.
        return [_duration((steps - n) * 10 * (n - 1) / n) for n in range(1, steps + 1)]

    found = lefts(epochs=2)
    # The second epoch is drawn when it starts, too.
    assert found == [*expected(12)[:6], _duration(60), *expected(12)[6:]]
    assert lefts(max_steps=4) == expected(4)


def test_resumed_epoch_starts_in_its_middle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bar starts at the steps that are done, with no values of its own."""
    trainer(SaveAt(4, tmp_path / "four"), progress=False).fit(DATA, VAL, epochs=1)
    texts = shown(monkeypatch, trainer(), epochs=1, resume_from=tmp_path / "four")
    bars = [text for text in texts if "|" in text]
    assert [re.findall(r"(\d/6)", bar) for bar in bars] == [["4/6"], ["5/6"], ["6/6"]]
    assert "loss" not in bars[0]
    assert "fit <00:0" in bars[1]


def test_data_without_length_has_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and the speed are shown, but how many steps are left is unknown."""
    monkeypatch.setattr(_bars, "INTERVAL", 0.0)
    terminal = open_terminal(monkeypatch)
    batches = [(DATA[0][:4], DATA[1][:4])] * 3

    class Stream:
        def __iter__(self) -> Any:
            return iter(batches)

    trainer().fit(Stream(), epochs=1)
    text = terminal.getvalue()
    assert "3step" in text
    assert ", loss " in text
    assert "fit <" not in text


def test_bars_between_validations_show_the_values_since_the_last_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each bar ends at the next validation, and the time left is that of the whole `fit`."""
    means = Means()
    texts = shown(monkeypatch, trainer(means), epochs=2, validate_every_n_steps=4)
    drawn = [bar for bar in texts if "steps to 8/" in bar or "steps to 8:" in bar]
    losses = [re.findall(r", loss ([\d.]+)", bar) for bar in drawn]
    expected = [[f"{means.found[step]['train_loss']:.4f}"] for step in range(4, 8)]
    assert losses[-4:] == expected
    assert all("fit <" in bar for bar in drawn)


def test_one_line_per_epoch_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A log has the line of each epoch and nothing else."""
    assert not sys.stderr.isatty()
    trainer().fit(DATA, VAL, epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_durations() -> None:
    """Minutes and seconds, with hours if there are any."""
    assert [_duration(seconds) for seconds in (0.4, 61, 3600, 360_000)] == [
        "00:00",
        "01:01",
        "1:00:00",
        "100:00:00",
    ]


def test_values_before_the_first_step_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first bar of each epoch is drawn before its first step."""
    texts = shown(monkeypatch, trainer(), epochs=1)
    assert "loss" not in texts[0]
    assert float(re.findall(r"loss ([\d.]+)", texts[1])[0]) > 0
