"""Models that must be exported and verified, of kinds that a strict check might refuse."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from support_models import samples, seeded

_W = samples(4, 3, seed=5)
_EMBEDDING = samples(50, 4, seed=6)

Pair = namedtuple("Pair", ["logits", "features"])  # noqa: PYI024 - with types there is more to it


@dataclass
class Answer:
    """A model output with named fields."""

    logits: Tensor
    loss: Tensor | None = None


class Call(nn.Module):
    """A model that calls a function on up to three inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, y: Any = None, z: Any = None) -> Any:
        given = [value for value in (x, y, z) if value is not None]
        return self.function(*given)


class Rest(nn.Module):
    """A model of one input and any number of further inputs."""

    def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
        return (first + sum(rest)) @ _W


class Written(nn.Module):
    """A model that modifies its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        x[:, 0] = 0
        return x @ _W


class Output(nn.Module):
    """A model whose argument has the default name of an output."""

    def forward(self, output: Tensor) -> Tensor:
        return output @ _W


@dataclass(frozen=True)
class Right:
    """A model or a function, and the arguments of the export."""

    model: nn.Module | Callable[..., Any]
    example: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model if isinstance(self.model, nn.Module) else Call(self.model)


def _head(x: Tensor) -> Tensor:
    return x @ _W


def _embed(ids: Tensor) -> Tensor:
    return _EMBEDDING[ids]


def _masked_mean(ids: Tensor, mask: Tensor) -> Tensor:
    kept = mask[..., None].float()
    return _head((_embed(ids) * kept).sum(1) / kept.sum(1))


def _attention(ids: Tensor, mask: Tensor) -> Tensor:
    q = _embed(ids).unsqueeze(1)
    seen = mask[:, None, None, :].bool()
    return _head(functional.scaled_dot_product_attention(q, q, q, attn_mask=seen)[:, 0].mean(1))


def _causal(ids: Tensor, mask: Tensor) -> Tensor:
    n = ids.shape[1]
    steps = torch.arange(n)
    seen = (steps <= steps[:, None]) & mask[:, None, None, :].bool()
    q = _embed(ids).unsqueeze(1)
    return _head(functional.scaled_dot_product_attention(q, q, q, attn_mask=seen)[:, 0])


def _codes(x: Tensor) -> Tensor:
    return _head(_EMBEDDING[:5][x[:, 0].long()] + x[:, 1:].sum(1, keepdim=True))


def _strict_codes(x: Tensor) -> Tensor:
    """Look up codes in a table; codes that are not in it raise an error."""
    table = nn.functional.embedding(x[:, 0].long(), _EMBEDDING[:5])
    return _head(table) + x[:, 1:].sum(1, keepdim=True)


def _graph(x: Tensor, edges: Tensor) -> Tensor:
    h = _head(x)
    return torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])


def _halving(x: Tensor) -> Tensor:
    inner = functional.avg_pool2d(x, 4)
    outer = functional.interpolate(inner, scale_factor=2) + functional.avg_pool2d(x, 2)
    return functional.interpolate(outer, scale_factor=2) + x


def _table(x: Tensor) -> Tensor:
    return _head(x + _POSITIONS[: x.shape[1]]).mean(1)


def _recurrent(kind: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    return seeded(lambda: kind(4, 5, *args, **options))


def _lstm_with_state() -> Any:
    state = samples(2, 3, 5, seed=1), samples(2, 3, 5, seed=2)
    return samples(3, 6, 4), state


_ROWS = samples(3, 4)
_SEQUENCE = samples(3, 12, 4)
_IDS = torch.arange(24).reshape(3, 8) * 7 % 50
_ONES = torch.ones(3, 8, dtype=torch.long)
_RIGHT = (torch.arange(8) < torch.tensor([[8], [4], [6]])).long()
_EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
_STEPS = {"dynamic_shapes": [{1: "steps"}]}
_TEXTS = {"dynamic_shapes": [{1: "length"}, {1: "length"}]}
_IMAGE = {"dynamic_shapes": [{2: "height", 3: "width"}]}
_POSITIVE = torch.tensor([[0.01, 2.0, 0.02, 1.0], [3.0, 0.01, 1.0, 0.03], [1.0, 2.0, 3.0, 0.5]])

#: Tables of random values. They are drawn here because an exported forward must be deterministic.
_ANCHORS, _SMALL, _POSITIONS = samples(5, 4), samples(3, 2), samples(20, 4, seed=8)
_PROJECTION = samples(5, 3, 3, 3, seed=7)

#: PyTorch's exporter fixes the number of steps of a recurrent layer if it has exported such a layer
#: before in the same process. Therefore each of these is exported in a separate process.
RECURRENT: dict[str, Right] = {
    "a GRU with time first": Right(_recurrent(nn.GRU), samples(6, 2, 4)),
    "an LSTM of any length": Right(_recurrent(nn.LSTM, batch_first=True), samples(3, 6, 4), _STEPS),
    "an LSTM of a bounded length": Right(
        _recurrent(nn.LSTM, batch_first=True),
        samples(3, 6, 4),
        {"dynamic_shapes": [{1: torch.export.Dim("steps", min=2, max=40)}]},
    ),
    "an LSTM with its state": Right(_recurrent(nn.LSTM, 2, batch_first=True), _lstm_with_state()),
}

RIGHT: dict[str, Right] = {
    "a constant next to the logits": Right(lambda x: (_head(x), torch.arange(5)), _ROWS),
    "anchors next to the logits": Right(lambda x: (_head(x), _ANCHORS * 2), _ROWS),
    "a scale of one element": Right(lambda x: (_head(x), torch.tensor([2.0]).exp()), _ROWS),
    "a scale without axes": Right(lambda x: (_head(x), torch.tensor(2.0).exp()), _ROWS),
    "a table as large as the batch": Right(lambda x: (_head(x), _SMALL), _ROWS),
    "the batch as the second axis": Right(lambda x: _head(x).T, _ROWS),
    "similarities of all pairs": Right(lambda x: x @ x.T, _ROWS),
    "one number for the batch": Right(lambda x: (_head(x), x.mean()), _ROWS),
    "flattened steps": Right(lambda x: _head(x).reshape(-1, 3), _SEQUENCE),
    "positions of the steps": Right(lambda x: (_head(x), torch.arange(x.shape[0])), _ROWS),
    "a logarithm": Right(lambda x: _head(torch.log(x)), _POSITIVE),
    "a square root": Right(lambda x: _head(torch.sqrt(x)), _POSITIVE),
    "a power": Right(lambda x: _head(x**0.3), _POSITIVE),
    "an inverse": Right(lambda x: _head(1 / x), _POSITIVE),
    "an arcus sine": Right(lambda x: _head(torch.asin(x)), _POSITIVE / 4),
    "codes in a column of floats": Right(
        _codes, torch.cat([torch.tensor([[0.0], [4.0], [2.0]]), samples(3, 3)], 1)
    ),
    "codes with a range check": Right(
        _strict_codes, torch.cat([torch.tensor([[0.0], [4.0], [2.0]]), samples(3, 3)], 1)
    ),
    "codes of two columns": Right(
        lambda x: _head(
            functional.embedding(x[:, 0], _EMBEDDING[:3])
            + functional.embedding(x[:, 1], _EMBEDDING)
        ),
        torch.tensor([[0, 40], [2, 10], [1, 25]]),
    ),
    "tokens": Right(lambda ids: _head(_embed(ids)).mean(1), _IDS),
    "tokens of any length": Right(lambda ids: _head(_embed(ids)).mean(1), _IDS, _STEPS),
    "a mask of ones": Right(_masked_mean, (_IDS, _ONES)),
    "a mask of ones, any length": Right(_masked_mean, (_IDS, _ONES), _TEXTS),
    "a padded mask": Right(_masked_mean, (_IDS, _RIGHT), _TEXTS),
    "a mask padded on the left": Right(_masked_mean, (_IDS, _RIGHT.flip(1)), _TEXTS),
    "a boolean mask": Right(_masked_mean, (_IDS, _RIGHT.bool()), _TEXTS),
    "a mask of floats": Right(
        _masked_mean, {"x": _IDS, "y": _ONES.float()}, {"input_names": ["ids", "mask"]}
    ),
    "attention with a mask": Right(_attention, (_IDS, _ONES)),
    "attention with a padded mask": Right(_attention, (_IDS, _RIGHT), _TEXTS),
    "causal attention with a padded mask": Right(_causal, (_IDS, _RIGHT), _TEXTS),
    "positions to ignore": Right(
        lambda ids, ignored: _head((_embed(ids) * ~ignored[..., None]).sum(1)),
        (_IDS, torch.zeros(3, 8, dtype=torch.bool)),
    ),
    "a flag": Right(
        lambda x, keep: _head(x) * keep.float(), (_ROWS, torch.ones(3, 1, dtype=torch.bool))
    ),
    "a graph": Right(_graph, (samples(6, 4), _EDGES)),
    "a graph of any size": Right(
        _graph,
        (samples(6, 4), _EDGES),
        {"dynamic_batch": False, "dynamic_shapes": {"x": {0: "nodes"}, "y": {1: "edges"}}},
    ),
    "the index of the largest": Right(lambda x: _head(x).argmax(1), samples(9, 4)),
    "ties of the largest": Right(lambda x: x.round().clamp(0, 2).argmax(1), samples(9, 4) * 2),
    "a map of classes": Right(
        lambda x: functional.conv2d(x, _PROJECTION, padding=1).argmax(1),
        samples(2, 3, 24, 24),
    ),
    "the three largest": Right(lambda x: tuple(_head(x).topk(2)), samples(9, 4)),
    "booleans": Right(lambda x: _head(x) > 0, samples(9, 4)),
    "counts": Right(lambda x: (x > 0).sum(1), samples(9, 4)),
    "large integers": Right(lambda x: x * 2**40 + 1, torch.arange(12).reshape(6, 2)),
    "boxes and scores": Right(lambda x: torch.cat([x * 1280, x.sigmoid()], 1), samples(9, 4)),
    "a column of rounding errors": Right(
        lambda x: torch.cat([_head(x) * 1e4, (x - x.mean(1, keepdim=True)).sum(1, True)], 1),
        samples(9, 4),
    ),
    "rare probabilities": Right(lambda x: (_head(x) * 8).softmax(1), samples(9, 4)),
    "two states in a tuple": Right(
        lambda x, state: _head(x + state[0] * state[1]), (_ROWS, (samples(3, 4), samples(3, 4)))
    ),
    "a list of tensors": Right(
        lambda x, others: _head(x + others[0] - others[1]), (_ROWS, [samples(3, 4)] * 2)
    ),
    "a dict as one argument": Right(
        lambda batch: _head(batch["a"] - batch["b"]),
        ({"a": samples(3, 4), "b": samples(3, 4, seed=2)},),
    ),
    "None as an argument": Right(_head, (_ROWS, None)),
    "a number as an argument": Right(lambda x, scale: _head(x) * scale, (_ROWS, 3)),
    "a tensor without axes": Right(lambda x, scale: _head(x) * scale, (_ROWS, torch.tensor(3.0))),
    "a first argument and the rest": Right(Rest(), (_ROWS, samples(3, 4), samples(3, 4, seed=2))),
    "one tensor for two inputs": Right(lambda x, y: _head(x) - y.mean(1, True), (_ROWS, _ROWS)),
    "None in an output": Right(lambda x: {"logits": _head(x), "loss": None}, _ROWS),
    "a number in an output": Right(lambda x: {"logits": _head(x), "scale": 2.5}, _ROWS),
    "a named tuple": Right(lambda x: Pair(_head(x), x.exp()), _ROWS),
    "a dataclass": Right(lambda x: Answer(_head(x)), _ROWS),
    "outputs inside outputs": Right(lambda x: (_head(x), {"more": [x + 1, x - 1]}), _ROWS),
    "an input that is written to": Right(Written(), _ROWS),
    "an argument called output": Right(Output(), _ROWS),
    "an output with the name of an inner value": Right(
        lambda x: torch.softmax(_head(x), 1).flip(1), _ROWS, {"output_names": ["softmax"]}
    ),
    "an output with the name of an input": Right(lambda x: {"x": _head(x)}, _ROWS),
    "sides that are multiples of 4": Right(_halving, samples(2, 3, 32, 32), _IMAGE),
    "a convolution of any size": Right(
        nn.Sequential(seeded(lambda: nn.Conv2d(3, 4, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        samples(2, 3, 20, 30),
        _IMAGE,
    ),
    "a table of twenty positions": Right(_table, _SEQUENCE, _STEPS),
    "an example of one row": Right(_head, samples(1, 4)),
    "an example of many rows": Right(_head, samples(30, 4)),
    "a fixed batch": Right(_head, _ROWS, {"dynamic_batch": False}),
    "a batch that must be even": Right(
        lambda x: _head(x).reshape(x.shape[0] // 2, 2, 3), samples(4, 4)
    ),
    "few samples": Right(_head, _ROWS, {"sample_inputs": samples(3, 4, seed=3)}),
    "many samples": Right(_head, _ROWS, {"sample_inputs": samples(150, 4, seed=3)}),
    "a head of zeros and ones": Right(lambda x: _head(x.round()), samples(9, 4)),
}
