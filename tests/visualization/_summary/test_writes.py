"""A summary restores what a forward writes into its weights, without copying all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib._writes import WritesUndone
from finetunelib.visualization import summary
from support_process import kilobytes, reads_memory
from support_untouched import changed_since, snapshot


class Writer(nn.Module):
    """A layer that runs a function on itself in each forward."""

    mean: Tensor

    def __init__(self, write: Callable[[Writer], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.0, -0.0], [float("nan"), 3.0]]))
        self.pair = nn.Parameter(torch.ones(2, 1).expand(2, 2), requires_grad=False)
        self.register_buffer("mean", torch.zeros(2))
        self.kept = [self.weight]  # not replaced by `functional_call`
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return x @ self.weight.nan_to_num()


def _batch_norm(layer: Writer) -> None:
    functional.batch_norm(torch.randn(4, 2), layer.mean, torch.ones(2), training=True)


def _numpy(layer: Writer) -> None:
    layer.weight.detach().numpy()[:] = 7


def _scaled_by_vmap(layer: Writer) -> None:
    torch.vmap(lambda row: row.mul_(2))(layer.weight)


def _emptied(layer: Writer) -> None:
    layer.weight.untyped_storage().resize_(0)
    raise RuntimeError("The weights are gone.")


def _out(layer: Writer) -> None:
    torch.add(torch.ones(2, 2), 1.0, out=layer.weight)


WRITES: dict[str, Callable[[Writer], object]] = {
    "in place": lambda layer: layer.weight.mul_(2),
    "a view": lambda layer: layer.weight.view(-1)[1:].zero_(),
    "data": lambda layer: layer.weight.data.add_(1),
    "a kept reference": lambda layer: layer.kept[0].fill_(1),
    "a list": lambda layer: torch.ops.aten._foreach_mul_([layer.weight, layer.mean], 3.0),
    "out=": _out,
    "numpy": _numpy,
    "array": lambda layer: torch.from_numpy(layer.weight.detach().numpy()).fill_(1),
    "set_": lambda layer: layer.weight.set_(torch.ones(4).untyped_storage(), 0, (2, 2), (2, 1)),
    "new data": lambda layer: setattr(layer.weight, "data", torch.ones(2, 2)),
    "renormalized": lambda layer: functional.embedding(
        torch.tensor([1]), layer.weight, max_norm=1.0
    ),
    "statistics": _batch_norm,
    "vmap": _scaled_by_vmap,
    "an error": _emptied,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_undone(name: str) -> None:
    """Weights and buffers have the same bits, memory and version after each kind of write."""
    model = nn.Sequential(nn.Linear(2, 2), Writer(WRITES[name]))
    tensors = [*model.parameters(), *model.buffers()]
    before = snapshot(model)
    values = [tensor.detach().clone().view(torch.int32) for tensor in tensors]
    places = [tensor.data_ptr() for tensor in tensors]
    version = model[1].get_parameter("weight")._version
    table = summary(model, torch.ones(3, 2))
    assert table.rows[0].status == ("unfinished" if name == "an error" else "used")
    if name != "an error":  # which frees the memory
        assert [tensor.data_ptr() for tensor in tensors] == places
    if name != "a kept reference":
        assert model[1].get_parameter("weight")._version == version  # no graph is invalidated
    for tensor, value in zip(tensors, values, strict=True):
        assert torch.equal(tensor.detach().view(torch.int32), value)
    changed = changed_since(before, model)
    assert [entry for entry in changed if entry != "state"] == []  # nan differs from nan in it


def test_the_forward_sees_its_own_write() -> None:
    """Only after the block are the values restored; what is only read is not saved."""
    read, written = torch.ones(1000), torch.zeros(3)
    with WritesUndone([read, written]) as undone:
        written += read[:3]
        assert written.tolist() == [1, 1, 1]
        assert undone.saved == 12
    assert written.tolist() == [0, 0, 0]


def test_an_operation_of_another_library_may_write_into_anything() -> None:
    """The memory of its arguments is saved, whatever its schema says."""
    with torch.library._scoped_library("finetunelib_test", "DEF") as library:
        library.define("quiet(Tensor x) -> Tensor")
        library.impl("quiet", lambda x: x.data.numpy().fill(5) or x.clone(), "CPU")
        weight = torch.zeros(3)
        with WritesUndone([weight]):
            torch.ops.finetunelib_test.quiet(weight)
            assert weight.tolist() == [5, 5, 5]
        assert weight.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.LSTM(4, 4, batch_first=True)),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_layers_with_unusual_weights_run(model: nn.Module) -> None:
    """Flat weights and computed weights have shapes, and nothing is changed."""
    before = snapshot(model)
    table = summary(model, torch.ones(2, 3, 4))
    assert table.failed_at is None
    assert {row.status for row in table.rows} == {"used"}
    assert changed_since(before, model) == []


@reads_memory
def test_weights_are_not_copied() -> None:
    """The peak of memory grows by less than one of the four weights."""
    with torch.device("meta"):
        layers = [nn.Linear(2048, 2048, bias=False) for _ in range(4)]
    for layer in layers:
        layer.weight = nn.Parameter(torch.ones(2048, 2048))
    model = nn.Sequential(*layers)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak
    before = kilobytes("VmRSS")
    summary(model, torch.ones(1, 2048))
    added = kilobytes("VmHWM") - before
    assert added < layers[0].weight.nbytes / 1024
