"""Models on the meta device: the dtype of their tensors, ties, and buffers not in any file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from finetunelib.errors import InvalidArgumentError, InvalidTypeError, WeightsMismatchError
from finetunelib.finetuning import load_weights, save_weights

SHAPES = {
    "words.weight": (7, 4),
    "mix.weight": (4, 4),
    "mix.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "norm.running_mean": (4,),
    "norm.running_var": (4,),
}


class Waves(nn.Module):
    """A module with a buffer that is computed, as rotary embeddings have it."""

    rates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rates", 1.0 / torch.arange(1.0, 5.0), persistent=False)


class Language(nn.Module):
    """An embedding whose weight the head shares, and some layers."""

    def __init__(self, waves: nn.Module | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight
        self.waves = waves


def on_meta(waves: nn.Module | None = None) -> Language:
    """Return a model without values."""
    with torch.device("meta"):
        return Language(waves)


def sharded(folder: Path, scale: float = 1.0) -> dict[str, Tensor]:
    """Write two shards with an index, and return their tensors."""
    tensors = {name: torch.rand(shape) * scale for name, shape in SHAPES.items()}
    tensors["norm.num_batches_tracked"] = torch.tensor(3)
    names = list(tensors)
    where = {name: f"part-{names.index(name) // 4}.safetensors" for name in names}
    for shard in sorted(set(where.values())):
        part = {name: tensors[name] for name in names if where[name] == shard}
        safetensors.torch.save_file(part, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return tensors


def test_shards_are_loaded_in_the_dtype(tmp_path: Path) -> None:
    """Floating-point tensors are converted, integers are not, and a tie stays one."""
    tensors, model = sharded(tmp_path), on_meta()
    model.words.weight.requires_grad_(False)
    report = load_weights(model, tmp_path, dtype=torch.bfloat16)
    assert model.head.weight is model.words.weight
    assert not model.head.weight.requires_grad
    for name, value in model.state_dict().items():
        saved = tensors[name.replace("head", "words")]
        kept = torch.bfloat16 if saved.is_floating_point() else torch.int64
        assert value.dtype == kept
        assert torch.equal(value, saved.to(kept))
    assert report.cast["mix.weight"] == (torch.float32, torch.bfloat16)
    assert "norm.num_batches_tracked" not in report.cast
    assert set(report.digests) == set(model.state_dict())


def test_tensors_with_values_keep_their_dtype(tmp_path: Path) -> None:
    """Only what is on the meta device gets the dtype; without it, it keeps its own."""
    sharded(tmp_path)
    model = on_meta()
    model.mix = nn.Linear(4, 4)
    load_weights(model, tmp_path, dtype=torch.float64)
    assert model.mix.weight.dtype == torch.float32
    assert model.words.weight.dtype == torch.float64
    plain = on_meta().bfloat16()
    load_weights(plain, tmp_path)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("dtype", "error", "words"),
    [
        ("bfloat16", InvalidTypeError, "torch.bfloat16"),
        (torch.int8, InvalidArgumentError, "floating-point"),
        (torch.complex64, InvalidArgumentError, "floating-point"),
    ],
)
def test_other_dtypes_are_refused(
    tmp_path: Path, dtype: Any, error: type[Exception], words: str
) -> None:
    """The model stays on the meta device."""
    sharded(tmp_path)
    model = on_meta()
    with pytest.raises(error, match=words):
        load_weights(model, tmp_path, dtype=dtype)
    assert model.words.weight.is_meta


def test_dtype_without_meta_tensors_is_refused(tmp_path: Path) -> None:
    """It would have no effect."""
    sharded(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"model\.to\(torch\.bfloat16\)"):
        load_weights(Language(), tmp_path, dtype=torch.bfloat16)


def test_overflow_is_refused(tmp_path: Path) -> None:
    """Values beyond the range of the dtype asked for, before anything is written."""
    sharded(tmp_path, scale=1e6)
    model = on_meta()
    with pytest.raises(WeightsMismatchError, match="float16"):
        load_weights(model, tmp_path, dtype=torch.float16)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_computed_buffers_on_meta_are_refused(tmp_path: Path) -> None:
    """No file contains them. A module that is built outside the meta device has them."""
    sharded(tmp_path)
    with torch.device("meta"):
        model = Language(Waves())
    with pytest.raises(InvalidArgumentError, match=r"`waves\.rates`.*`model\.waves = "):
        load_weights(model, tmp_path)
    assert model.words.weight.is_meta
    model.waves = Waves()
    load_weights(model, tmp_path)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


LOADED_IN_BFLOAT16 = """
import pathlib, sys
import torch
from torch import nn
from finetunelib.finetuning import load_weights, save_weights

def resident():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])

def build(width, layers):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

def load(width, layers):
    with torch.device("meta"):
        model = build(width, layers)
    load_weights(model, f"{sys.argv[1]}/{width}.safetensors", dtype=torch.bfloat16)
    return model

save_weights(build(2, 2), f"{sys.argv[1]}/2.safetensors")
load(2, 2)  # What is imported.
before = resident()
model = load(1024, 40)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_converted_tensors_lie_without_gaps_in_memory(tmp_path: Path) -> None:
    """Forty layers of 2 MiB each in bfloat16 take 80 MiB, not half as much again."""
    layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(40)))
    save_weights(layers, tmp_path / "1024.safetensors")
    command = [sys.executable, "-c", LOADED_IN_BFLOAT16, str(tmp_path)]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 80 * 1024 <= int(grown) < 96 * 1024
