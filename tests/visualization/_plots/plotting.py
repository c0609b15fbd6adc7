"""A classifier with known predictions, its data, and the texts of a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn


class Oracle(nn.Module):
    """A classifier whose inputs contain its predictions.

    The first value of a sample is the predicted class, the second is its probability.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.flatten(1)
        predicted, confidence = values[:, 0].long(), values[:, 1:2]
        others = (1 - confidence) / (self.classes - 1)
        probabilities = others.expand(-1, self.classes).clone()
        return probabilities.scatter(1, predicted[:, None], confidence).log()


def data_predicting(
    predicted: Sequence[int], labels: Sequence[int], confidence: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Return 2x3 images for which `Oracle` predicts the given classes, and their labels."""
    images = torch.zeros(len(predicted), 1, 2, 3)
    images[:, 0, 0, 0] = torch.tensor(predicted).float()
    images[:, 0, 0, 1] = torch.tensor(confidence or [0.9] * len(predicted))
    return images, torch.tensor(labels)


def texts(figure: Figure) -> list[str]:
    """Draw a figure, and return its texts that are not empty."""
    from matplotlib.text import Text

    figure.savefig(io.BytesIO())
    found = [text.get_text() for text in figure.findobj(Text)]
    return [text for text in found if text.strip()]
