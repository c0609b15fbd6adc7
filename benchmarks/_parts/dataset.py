"""One epoch of MNIST from torchvision's dataset, whose transform takes most of the time."""

from __future__ import annotations

from _parts.epoch import measure_dataset as measure

__all__ = ["measure"]
