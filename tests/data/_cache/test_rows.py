"""Tests of the samples that are kept in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetunelib.data._cache import memory
from finetunelib.data._cache.rows import KeptRows, NotKeptError, same_batches

ORDER = torch.tensor([3, 1, 0, 2, 4])


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(5, 3, 4, 4),
        torch.randn(5, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(5, 4, 3, 2).permute(0, 3, 1, 2),
        torch.tensor([math.nan, -0.0, 0.0, math.inf, 1.0]),
        torch.arange(5) > 2,
        torch.zeros(5, 0, 3),
        torch.randn(5, 2, dtype=torch.complex64),
    ],
    ids=["images", "channels last", "permuted", "odd values", "bool", "empty", "complex"],
)
def test_batches_are_cut_with_the_same_bits_and_layout(values: Tensor) -> None:
    """In a structure of lists, tuples and dicts."""
    rows = KeptRows(5)
    for part in (ORDER[:3], ORDER[3:]):
        batch = like(values, part)
        rows.put(part, {"a": [batch, (part,)]}, "form")
    chosen = torch.tensor([4, 4, 0])
    assert same_batches(rows.take(chosen), {"a": [like(values, chosen), (chosen,)]})


def like(values: Tensor, rows: Tensor) -> Tensor:
    """Return rows with the layout of all values."""
    order = sorted(range(values.dim()), key=lambda dim: -values.stride()[dim])
    inverse = [order.index(dim) for dim in range(values.dim())]
    return values.permute(order).contiguous().index_select(0, rows).permute(inverse)


@pytest.mark.parametrize(
    ("first", "second", "form"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), "other"),
        (torch.zeros(2, 3), [torch.zeros(2, 3)], ""),
        ([torch.zeros(2)], (torch.zeros(2),), ""),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, ""),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64), ""),
        (torch.zeros(2, 3), torch.zeros(2, 4), ""),
        (torch.zeros(2, 3, 3), torch.zeros(2, 3, 3).transpose(1, 2), ""),
        (torch.zeros(2, 3), torch.zeros(1, 3), ""),
    ],
    ids=["form", "list", "tuple", "key", "dtype", "shape", "layout", "rows"],
)
def test_batches_that_differ_are_refused(first: Any, second: Any, form: str) -> None:
    """They could not be cut again."""
    rows = KeptRows(4)
    rows.put(torch.tensor([0, 1]), first)
    with pytest.raises(NotKeptError):
        rows.put(torch.tensor([2, 3]), second, form)


@pytest.mark.parametrize(
    "batch",
    [["a", "b"], torch.zeros(()), torch.zeros(2).to_sparse(), torch.zeros(2, device="meta")],
    ids=["text", "number", "sparse", "meta"],
)
def test_other_batches_are_refused(batch: Any) -> None:
    """Only tensors in CPU memory with one row per sample are kept."""
    with pytest.raises(NotKeptError):
        KeptRows(2).put(torch.tensor([0, 1]), batch)


def test_bits_are_compared_and_not_values() -> None:
    """-0.0 equals 0.0, but its bits differ."""
    assert not same_batches(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_batches(torch.tensor([math.nan]), torch.tensor([math.nan]))
    assert not same_batches([torch.zeros(1)], (torch.zeros(1),))


def test_memory_is_what_the_machine_and_the_container_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The smaller of both; unknown is infinite, and data may then take a gigabyte."""
    files = {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "inactive_file 100\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def redirected(path: str) -> Path:
        return tmp_path if path == "/sys/fs/cgroup" else tmp_path / "missing"

    monkeypatch.setattr(memory, "Path", redirected)
    monkeypatch.setattr("os.sysconf", lambda _: 10_000)
    assert memory.available_memory() == 400
    assert memory.memory_for_data() == 100
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() == 10_000**2

    def unknown(_: str) -> int:
        raise ValueError

    monkeypatch.setattr("os.sysconf", unknown)
    assert memory.available_memory() == math.inf
    assert memory.memory_for_data() == 2**30
