"""Models whose exported files are wrong on purpose, each in a way that occurs in practice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from support_models import samples

#: Random weights for all models, which make the outputs vary.
_W = samples(4, 3, seed=5)
_EMBEDDING = samples(50, 4, seed=6)
_KERNEL = samples(4, 3, 3, 3, seed=7)
_TABLE, _MANY, _TWO = samples(20, 4, seed=8), samples(4, 5000), samples(2, 4)


class Call(nn.Module):
    """A model that calls a function on its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Any = None) -> Any:
        return self.function(x) if y is None else self.function(x, y)


@dataclass(frozen=True)
class Wrong:
    """A function whose exported file computes something else, and the arguments of the export."""

    function: Callable[..., Any]
    example: Any
    options: dict[str, Any] = field(default_factory=dict)


def _file() -> bool:
    """Return whether the model is being exported."""
    return torch.compiler.is_exporting()


def _head(x: Tensor) -> Tensor:
    return x @ _W


def _embed(ids: Tensor) -> Tensor:
    return _EMBEDDING[ids]


def _conv(x: Tensor) -> Tensor:
    return functional.conv2d(x, _KERNEL, padding=1)


def _pooled(x: Tensor) -> Tensor:
    return _conv(x).mean((2, 3))


def _changed(outputs: Tensor, condition: bool) -> Tensor:
    return outputs * 1.5 if condition else outputs


def _pooled_by_mask(ids: Tensor, mask: Tensor) -> Tensor:
    kept = torch.ones_like(mask) if _file() else mask
    kept = kept[..., None].float()
    return (_embed(ids) * kept).sum(1) / kept.sum(1).clamp(min=1)


def _ignored_padding(ids: Tensor, ignored: Tensor) -> Tensor:
    kept = torch.ones_like(ignored, dtype=torch.float32) if _file() else 1 - ignored.float()
    return (_embed(ids) * kept[..., None]).sum(1)


def _repeated_table(x: Tensor) -> Tensor:
    table = _TABLE
    n = x.shape[1]
    positions = table[:n] if n <= 20 else table.repeat(-(-n // 20), 1)[:n]
    return _head(x + positions).mean(1)


def _unrolled(x: Tensor) -> Tensor:
    state = torch.zeros_like(x[:, 0])
    for step in range(12 if _file() else x.shape[1]):
        state = torch.tanh(state + x[:, min(step, x.shape[1] - 1)])
    return _head(state)


def _halving(x: Tensor, divisor: int) -> Tensor:
    """Downsample and upsample, as a U-Net does. The sides must be multiples of 4."""
    inner = functional.avg_pool2d(functional.avg_pool2d(_conv(x), 2), 2)
    outer = functional.interpolate(inner, scale_factor=2) + functional.avg_pool2d(_conv(x), 2)
    result = functional.interpolate(outer, scale_factor=2) + _conv(x)
    return _changed(result, x.shape[-1] > divisor)


_STEPS = {"dynamic_shapes": [{1: "steps"}]}
_IMAGE = {"dynamic_shapes": [{2: "height", 3: "width"}]}
_SEQUENCE = samples(2, 12, 4)
_PICTURES = samples(2, 3, 32, 32)
_IDS = torch.arange(24).reshape(3, 8) * 7 % 50
_ROWS = samples(64, 4, seed=9)
_CODES = torch.arange(40).reshape(20, 2)

WRONG: dict[str, Wrong] = {
    "a longer text": Wrong(
        lambda x: _changed(_head(x).mean(1), x.shape[1] > 16), _SEQUENCE, _STEPS
    ),
    "a shorter text": Wrong(
        lambda x: _changed(_head(x).mean(1), x.shape[1] < 5), _SEQUENCE, _STEPS
    ),
    "a text of one length": Wrong(
        lambda x: _changed(_head(x).mean(1), x.shape[1] == 17), _SEQUENCE, _STEPS
    ),
    "texts of even length": Wrong(
        lambda x: _changed(_head(x).mean(1), x.shape[1] % 2 == 0), _SEQUENCE, _STEPS
    ),
    "only the last steps": Wrong(
        lambda x: _head(x[:, -20:] if x.shape[1] > 20 else x).mean(1), _SEQUENCE, _STEPS
    ),
    "only the first steps": Wrong(
        lambda x: _head(x[:, :15] if x.shape[1] > 15 else x).mean(1), _SEQUENCE, _STEPS
    ),
    "a table of positions that repeats": Wrong(_repeated_table, _SEQUENCE, _STEPS),
    "a loop of a fixed number of steps": Wrong(_unrolled, _SEQUENCE, _STEPS),
    "a text longer by one": Wrong(
        lambda x: _changed(_head(x).mean(1), not _file() and x.shape[1] == 13), _SEQUENCE, _STEPS
    ),
    "a text shorter by one": Wrong(
        lambda x: _changed(_head(x).mean(1), not _file() and x.shape[1] == 11), _SEQUENCE, _STEPS
    ),
    "batch and length together": Wrong(
        lambda x: _changed(_head(x).mean(1), x.shape[0] > x.shape[1]), _SEQUENCE, _STEPS
    ),
    "a batch of nine": Wrong(lambda x: _changed(_head(x), x.shape[0] == 9), samples(2, 4)),
    "a batch of nine or more": Wrong(lambda x: _changed(_head(x), x.shape[0] >= 9), samples(2, 4)),
    "a batch above fifty": Wrong(lambda x: _changed(_head(x), x.shape[0] > 50), samples(2, 4)),
    "a batch of one": Wrong(lambda x: _changed(_head(x), x.shape[0] == 1), samples(4, 4)),
    "a batch of one, unseen": Wrong(
        lambda x: _changed(_head(x), not _file() and x.shape[0] == 1), samples(4, 4)
    ),
    "an odd batch": Wrong(lambda x: _changed(_head(x), x.shape[0] % 2 == 1), samples(4, 4)),
    "a large batch is normalized": Wrong(
        lambda x: _head(x - x.mean(0) if x.shape[0] > 10 else x), samples(3, 4)
    ),
    "a larger batch than the example": Wrong(
        lambda x: _changed(_head(x), not _file() and x.shape[0] > 20), samples(20, 4)
    ),
    "a taller image": Wrong(
        lambda x: _changed(_pooled(x), x.shape[2] > 40), _PICTURES, _IMAGE
    ),
    "a narrow image": Wrong(
        lambda x: _changed(_pooled(x), x.shape[3] < 20), _PICTURES, _IMAGE
    ),
    "an image taller than wide": Wrong(
        lambda x: _changed(_pooled(x), x.shape[2] > x.shape[3]), _PICTURES, _IMAGE
    ),
    "an image whose height is not a multiple of 8": Wrong(
        lambda x: _pooled(x if x.shape[2] % 8 == 0 else functional.pad(x, (0, 0, 0, 3))),
        _PICTURES,
        _IMAGE,
    ),
    "an image of many pixels": Wrong(
        lambda x: _changed(_pooled(x), x.shape[2] * x.shape[3] > 1500), _PICTURES, _IMAGE
    ),
    "a wide image of a halving network": Wrong(
        lambda x: _halving(x, 32), _PICTURES, _IMAGE
    ),
    "another image of a halving network, unseen": Wrong(
        lambda x: _changed(_halving(x, 9999), not _file() and x.shape[2] != 32), _PICTURES, _IMAGE
    ),
    "a mask of ones": Wrong(_pooled_by_mask, (_IDS, torch.ones(3, 8, dtype=torch.long))),
    "a boolean mask": Wrong(_pooled_by_mask, (_IDS, torch.ones(3, 8, dtype=torch.bool))),
    "a mask of floats": Wrong(
        _pooled_by_mask, (_IDS, torch.ones(3, 8)),
        {"input_names": ["ids", "mask"]},
    ),
    "padding on the left": Wrong(
        _pooled_by_mask, (_IDS, (torch.arange(8) >= torch.tensor([[0], [3], [1]])).long())
    ),
    "a padding mask": Wrong(_ignored_padding, (_IDS, torch.zeros(3, 8, dtype=torch.bool))),
    "a flag for each row": Wrong(
        lambda x, keep: _head(x) * (1.0 if _file() else keep.float()),
        (samples(3, 4), torch.ones(3, 1, dtype=torch.bool)),
    ),
    "token types": Wrong(
        lambda x, kind: (_embed(x) + (0 if _file() else kind[..., None])).mean(1),
        (_IDS, torch.zeros(3, 8, dtype=torch.long)),
    ),
    "a second input that is folded": Wrong(
        lambda x, y: _head(x + (torch.ones(4) if _file() else y)), (samples(3, 4), torch.ones(3, 4))
    ),
    "a scale that is folded": Wrong(
        lambda x, scale: _head(x) * (2.0 if _file() else scale), (samples(3, 4), torch.tensor(2.0))
    ),
    "a constant number": Wrong(
        lambda x, k: _head(x) * (k * 0 + 3 if _file() else k),
        (samples(3, 4), torch.full((3, 1), 3)),
    ),
    "the fiftieth of the samples": Wrong(
        lambda x: _head(x) + (0 if _file() else (x[:, :1] > 100).float()),
        _ROWS[:2],
        {"sample_inputs": torch.cat([_ROWS[:50], torch.full((1, 4), 200.0), _ROWS[50:]])},
    ),
    "the last of the samples": Wrong(
        lambda x: _head(x) + (0 if _file() else (x[:, :1] > 100).float()),
        _ROWS[:2],
        {"sample_inputs": torch.cat([_ROWS[:30], torch.full((1, 4), 200.0)])},
    ),
    "classes off by one of many": Wrong(
        lambda x: (x @ _MANY).argmax(1) + int(_file()), _ROWS[:2],
        {"sample_inputs": _ROWS},
    ),
    "counts off by one": Wrong(
        lambda x: (x > 0).sum(1) * 1000 + int(_file()), _ROWS[:2], {"sample_inputs": _ROWS}
    ),
    "integers that a double cannot hold": Wrong(
        lambda x: x + 2**53 + int(_file()), _CODES[:2], {"sample_inputs": _CODES * 10**12}
    ),
    "one boolean in a hundred": Wrong(
        lambda x: x > (0.02 if _file() else 0.0), samples(2, 50), {"sample_inputs": samples(20, 50)}
    ),
    "a rate next to a price": Wrong(
        lambda x: torch.stack([_head(x)[:, 0] * 50_000, _head(x)[:, 1] * (0 if _file() else 1)], 1),
        _ROWS[:2],
        {"sample_inputs": _ROWS},
    ),
    "scores next to boxes": Wrong(
        lambda x: torch.cat(
            [x * 1280, (x.flip(1) if _file() else x).sigmoid()], 1
        ),
        _ROWS[:2],
        {"sample_inputs": _ROWS},
    ),
    "a small channel": Wrong(
        lambda x: _conv(x) * torch.tensor([1e4, 1e4, 1e4, 2.0 if _file() else 1.0])[:, None, None],
        _PICTURES,
    ),
    "a small feature of each token": Wrong(
        lambda x: x * torch.tensor([1e4, 1e4, 1e4, -1.0 if _file() else 1.0]), _SEQUENCE
    ),
    "the second of two outputs": Wrong(
        lambda x: (_head(x), x.sum(1) * (1.1 if _file() else 1.0)), samples(2, 4)
    ),
    "an output in a dict": Wrong(
        lambda x: {"logits": _head(x), "more": {"sum": x.sum(1) + int(_file())}}, samples(2, 4)
    ),
    "negative inputs": Wrong(
        lambda x: _head(x.relu() if _file() else x), samples(3, 4).abs()
    ),
    "dropout that stays on": Wrong(
        lambda x: _head(functional.dropout(x, 0.5, training=True)), samples(2, 4)
    ),
    "the mean of the example's batch": Wrong(
        lambda x: _head(x) - (_head(_TWO) if _file() else _head(x)).mean(0),
        samples(2, 4),
    ),
    "no detections": Wrong(lambda x: x[x[:, 0] > 1e6], samples(2, 4)),
    "no variation": Wrong(lambda x: _head(x * 0), samples(2, 4)),
    "norms that shrink": Wrong(
        lambda x: _head(x) * (0.998 if _file() else 1.0), _ROWS[:2], {"sample_inputs": _ROWS}
    ),
    "the softmax over another axis": Wrong(
        lambda x: _head(x).softmax(1 if _file() else 2), _SEQUENCE, {}
    ),
}  # fmt: skip
