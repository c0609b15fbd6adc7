"""Draw the figures of docs/how-to/plots.md and learning-rate.md from runs on scikit-learn digits.

Run it from the root of the repository (half a minute on two cores). It writes
docs/_static/plots-*.png in a light and a dark version:

    python docs/_scripts/plots.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp
from finetunelib.callbacks import EarlyStopping
from finetunelib.training import History, find_lr
from finetunelib.visualization import (
    plot_confusion,
    plot_history,
    plot_lr_finder,
    plot_predictions,
)

FOLDER = Path(__file__).parents[1] / "_static"


def main() -> None:
    """Train three models, and draw the figures."""
    train, test = digits()
    runs: dict[str, History] = {}
    model: nn.Module = build_mlp(64, [64], 10, seed=0)
    runs["SGD"] = Trainer(model, lr=0.05, progress=False).fit(train, test, epochs=40)
    adam = Trainer(
        build_mlp(64, [64], 10, seed=0),
        optimizer=torch.optim.Adam,
        lr=0.005,
        callbacks=[EarlyStopping("val_loss", patience=5)],
        progress=False,
    )
    runs["Adam, stopped early"] = adam.fit(train, test, epochs=40)
    linear = build_mlp(64, [], 10, seed=0)
    runs["no hidden layer"] = Trainer(linear, lr=0.05, progress=False).fit(train, test, epochs=40)

    write("history", partial(plot_history, runs["SGD"]))
    write("runs", partial(plot_history, runs, title="Three ways to train"))
    trainer = Trainer(build_mlp(64, [64], 10, seed=0), progress=False)
    write("lr-finder", partial(plot_lr_finder, find_lr(trainer, train)))
    write("predictions", partial(plot_predictions, model, test, count=12))
    write("confusion", partial(plot_confusion, model, test))


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return 1,400 images of 8x8 pixels for training, and the last 397 for testing."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.as_tensor(images, dtype=torch.float32).div(16).reshape(-1, 1, 8, 8)
    targets = torch.as_tensor(labels, dtype=torch.int64)
    return (inputs[:1400], targets[:1400]), (inputs[1400:], targets[1400:])


def write(name: str, plot: Callable[..., Figure]) -> None:
    """Write the light and the dark version of a figure."""
    plot().savefig(FOLDER / f"plots-{name}.png", dpi=130)
    plot(dark=True).savefig(FOLDER / f"plots-{name}-dark.png", dpi=130)


if __name__ == "__main__":
    main()
