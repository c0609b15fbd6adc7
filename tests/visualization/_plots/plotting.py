"""A classifier whose answers are known, and what the tests of plots ask of a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn


class Answers(nn.Module):
    """A classifier that reads its answer off its inputs.

    The first value of a sample is the class, and the second the probability that it is given.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.flatten(1)
        said, confidence = values[:, 0].long(), values[:, 1:2]
        others = (1 - confidence) / (self.classes - 1)
        probabilities = others.expand(-1, self.classes).clone()
        return probabilities.scatter(1, said[:, None], confidence).log()


def answering(
    said: Sequence[int], labels: Sequence[int], confidence: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Return images of 2 by 3 to which `Answers` says the given classes, and labels."""
    images = torch.zeros(len(said), 1, 2, 3)
    images[:, 0, 0, 0] = torch.tensor(said).float()
    images[:, 0, 0, 1] = torch.tensor(confidence or [0.9] * len(said))
    return images, torch.tensor(labels)


def texts(figure: Figure) -> list[str]:
    """Return every text of a figure that is not empty, drawn first."""
    from matplotlib.text import Text

    figure.savefig(io.BytesIO())
    found = [text.get_text() for text in figure.findobj(Text)]
    return [text for text in found if text.strip()]
