"""The text of a summary, as shown on terminals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetunelib.finetuning import freeze
from finetunelib.visualization import summary

FROZEN = """\
Sequential on 2x3x32x32 float32

Module      Class              Output     Parameters  Trainable  Mode    Type     Memory
----------------------------------------------------------------------------------------
(model)     Sequential         2x5             2,069         45  mixed   float32  8.5 kB
0           Conv2d             2x8x30x30         224          0  frozen  float32   896 B
1 to 3  x3  Sequential         2x8x30x30       1,800          0  frozen  float32  7.4 kB
1.0         BatchNorm2d        2x8x30x30          48          0  frozen  float32   408 B
1.1         Conv2d             2x8x30x30       1,752          0  frozen  float32  7.0 kB
4           AdaptiveAvgPool2d  2x8x1x1             0          0  frozen  -           0 B
5           Flatten            2x8                 0          0  frozen  -           0 B
6           Linear             2x5                45         45  train   float32   180 B
----------------------------------------------------------------------------------------
2,069 parameters: 45 trainable, 2,024 frozen; 51 values in buffers; 8.5 kB in all.
xN: N modules of equal structure in one row. Its numbers, and those of the rows below it, are added
up over all of them."""


class Named(nn.Module):
    """A chain of modules with long names, of a given depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.a_name_that_takes_much_of_a_line = Named(depth - 1) if depth else nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.a_name_that_takes_much_of_a_line(inputs)
        return outputs


def test_text_of_a_small_model() -> None:
    """The text of a frozen model with repeated blocks is exactly as expected."""
    blocks = [nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    freeze(model, except_=model[6])
    model.train()
    assert str(summary(model, torch.zeros(2, 3, 32, 32))) == FROZEN


@pytest.mark.parametrize("depth", [0, 1, 2, 6])
def test_no_line_is_wider_than_a_hundred_columns(depth: int) -> None:
    """Names that do not fit are indented and shortened, and numbers stay aligned."""
    lines = str(summary(Named(depth))).splitlines()
    assert max(map(len, lines)) <= 100
    header = next(line for line in lines if line.startswith("Module"))
    edge = header.index("Parameters") + len("Parameters")
    assert all(line[:edge].endswith("20") for line in lines if line.endswith("80 B"))


def test_shared_values_move_above_a_wide_table() -> None:
    """If names do not fit, a mode and type shared by all rows have no columns."""
    text = str(summary(Named(1)))
    assert "Mode of all rows: train" in text
    assert "Type of all rows: float32" in text


@pytest.mark.parametrize(
    ("size", "memory"), [(3, "12 B"), (250, "1.0 kB"), (250_000, "1.0 MB"), (10**9, "4.0 GB")]
)
def test_memory_is_in_decimal_units(size: int, memory: str) -> None:
    """A kilobyte is 1,000 bytes."""
    model = nn.Module()
    model.register_buffer("table", torch.empty(size, device="meta"))
    assert f"{memory} in all." in summary(model).notes[0]


def test_several_outputs_are_counted() -> None:
    """The row of a module with several outputs shows the first shape and the number of others."""
    text = str(summary(nn.LSTM(4, 3, batch_first=True), torch.zeros(2, 5, 4)))
    assert "2x5x3 +2" in text


def test_different_dtypes_are_mixed() -> None:
    """The type of a part with several dtypes is `mixed`."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double())
    assert "mixed" in str(summary(model, depth=0))


def test_title_contains_the_inputs() -> None:
    """The title contains the names, shapes and dtypes of the inputs."""
    inputs = torch.zeros(2, 3)
    table = summary(nn.Bilinear(3, 3, 2), {"input1": inputs, "input2": inputs})
    assert table.title == "Bilinear on input1 2x3 float32, input2 2x3 float32"
