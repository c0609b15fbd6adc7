"""Files that training programs write: endings, several state dicts, overflow, and suggestions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib.errors import (
    CorruptFileError,
    FileMissingError,
    InvalidArgumentError,
    InvalidTypeError,
    WeightsMismatchError,
)
from finetunelib.finetuning import load_weights, save_weights
from finetuning._weights.small_weights import equal_states, mlp, same_bits, state_of, write


def filled(value: float) -> dict[str, Tensor]:
    """Return a state dict of `nn.Linear(3, 2)` in which every value is the same."""
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), value)}


def value_in(model: nn.Linear) -> float:
    """Return the value of all weights of a layer."""
    assert (model.weight == model.weight[0, 0]).all()
    return model.weight[0, 0].item()


def load(content: Any, folder: Path, **options: Any) -> float:
    """Save some content, load it into a layer, and return the layer's value."""
    torch.save(content, folder / "file.pth")
    model = nn.Linear(3, 2)
    load_weights(model, folder / "file.pth", **options)
    return value_in(model)


# Endings, indexes and folders


@pytest.mark.parametrize("name", ["last.ckpt", "best.pth.tar", "best.pt.tar", "pytorch_model.bin"])
def test_ending_of_a_training_program_is_read(tmp_path: Path, name: str) -> None:
    """A file of `torch.save` is read under each usual ending."""
    torch.save({"epoch": 1, "state_dict": filled(2.0)}, tmp_path / name)
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path / name)
    assert value_in(model) == 2.0


def shards(folder: Path) -> Path:
    """Write a state dict as two shards of `torch.save` with an index."""
    places = {}
    for number, (name, tensor) in enumerate(filled(2.0).items()):
        places[name] = f"pytorch_model-0000{number}.bin"
        torch.save({name: tensor}, folder / places[name])
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return index


@pytest.mark.parametrize("by_folder", [True, False])
def test_index_of_pickled_shards_is_read(tmp_path: Path, by_folder: bool) -> None:
    """The index, or the folder that contains it, can be passed."""
    index = shards(tmp_path)
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path if by_folder else index)
    assert value_in(model) == 2.0


def test_missing_pickled_shard_is_named(tmp_path: Path) -> None:
    """The model is left unchanged."""
    index = shards(tmp_path)
    (tmp_path / "pytorch_model-00001.bin").unlink()
    model = nn.Linear(3, 2)
    before = state_of(model)
    with pytest.raises(FileMissingError, match="pytorch_model-00001"):
        load_weights(model, index)
    assert same_bits(before, state_of(model))


@pytest.mark.parametrize("shard", ["../other.bin", "/tmp/other.bin", "model.safetensors"])
def test_pickled_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    """Only shards of the same format next to the index are read."""
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": shard}}), encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"other|model"):
        load_weights(nn.Linear(3, 2), index)


def test_folder_of_a_training_run_is_read(tmp_path: Path) -> None:
    """Files of optimizers and arguments next to the weights are ignored."""
    torch.save(filled(2.0), tmp_path / "pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        torch.save(filled(1.0), tmp_path / name)
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path)
    assert value_in(model) == 2.0


def test_safetensors_are_preferred_in_a_folder(tmp_path: Path) -> None:
    """A folder with both formats is read from safetensors."""
    torch.save(filled(1.0), tmp_path / "pytorch_model.bin")
    source = nn.Linear(3, 2)
    source.load_state_dict(filled(2.0))
    save_weights(source, tmp_path / "model.safetensors")
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path)
    assert value_in(model) == 2.0


def test_folder_with_several_files_is_refused(tmp_path: Path) -> None:
    """The message contains the names to choose from."""
    for name in ("a.pth", "b.ckpt"):
        torch.save(filled(1.0), tmp_path / name)
    with pytest.raises(FileMissingError, match=r"a\.pth, b\.ckpt"):
        load_weights(nn.Linear(3, 2), tmp_path)


# Several state dicts


BOTH: dict[str, dict[str, Any]] = {
    "ema": {"state_dict": filled(1.0), "state_dict_ema": filled(2.0)},
    "wrapped": {
        "model": filled(1.0),
        "model_ema": {f"module.{name}": value for name, value in filled(2.0).items()},
    },
    "nested": {"model": filled(1.0), "ema": {"shadow": filled(2.0), "decay": 0.99}},
    "equals": {"student": filled(1.0), "teacher": filled(2.0)},
    "other names": {
        "model": filled(1.0),
        "average": {f"net.{name}": value for name, value in filled(2.0).items()},
    },
}
KEYS = {
    "ema": ("state_dict", "state_dict_ema"),
    "wrapped": ("model", "model_ema"),
    "nested": ("model", "ema.shadow"),
    "equals": ("student", "teacher"),
    "other names": ("model", "average"),
}


@pytest.mark.parametrize("kind", BOTH)
def test_several_state_dicts_need_a_key(tmp_path: Path, kind: str) -> None:
    """The message contains all keys, and the model is unchanged."""
    path = write(BOTH[kind], tmp_path)
    model = nn.Linear(3, 2)
    before = state_of(model)
    with pytest.raises(InvalidArgumentError) as caught:
        load_weights(model, path)
    assert all(f"`{key}`" in str(caught.value) for key in KEYS[kind])
    assert same_bits(before, state_of(model))


@pytest.mark.parametrize("kind", ["ema", "wrapped", "nested", "equals"])
@pytest.mark.parametrize("which", [0, 1])
def test_key_chooses_a_state_dict(tmp_path: Path, kind: str, which: int) -> None:
    """A dotted key names a dict inside another."""
    assert load(BOTH[kind], tmp_path, key=KEYS[kind][which]) == which + 1.0


def test_key_may_contain_a_dot(tmp_path: Path) -> None:
    """A key of the file is compared before it is split at dots."""
    assert load({"step.1": filled(1.0), "step.2": filled(2.0)}, tmp_path, key="step.2") == 2.0


def test_key_of_a_wrapper_is_searched_further(tmp_path: Path) -> None:
    """The state dict may be under a usual key inside the chosen one."""
    content = {"ema": {"module": filled(2.0), "updates": 3}, "model": filled(1.0)}
    assert load(content, tmp_path, key="ema") == 2.0


@pytest.mark.parametrize("key", ["ema", "state_dict.weight.x", ""])
def test_unknown_key_is_refused_with_those_of_the_file(tmp_path: Path, key: str) -> None:
    """The message contains the keys of the state dicts."""
    with pytest.raises(InvalidArgumentError, match="`state_dict_ema`"):
        load(BOTH["ema"], tmp_path, key=key)


def test_key_is_refused_for_safetensors(tmp_path: Path) -> None:
    """A safetensors file contains only one state dict."""
    path = save_weights(nn.Linear(3, 2), tmp_path / "a.safetensors")
    with pytest.raises(InvalidArgumentError, match="`key`"):
        load_weights(nn.Linear(3, 2), path, key="state_dict")


def test_key_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    """The message contains the type."""
    with pytest.raises(InvalidTypeError, match="int"):
        load(filled(1.0), tmp_path, key=3)


OTHERS: dict[str, Any] = {
    "optimizer": torch.optim.Adam(nn.Linear(3, 2).parameters()).state_dict(),
    "mean_std": {"mean": torch.zeros(3), "std": torch.ones(3)},
    "loss_state": {"centers": torch.zeros(7, 4)},
    "callbacks": {"checkpoint": {"best_k_models": {"a.ckpt": torch.tensor(0.5)}}},
    "state_dict_of_nothing": {},
}


def test_other_tensors_of_a_checkpoint_are_not_mistaken_for_weights(tmp_path: Path) -> None:
    """Optimizer states, statistics and scores do not make the file ambiguous."""
    saved, loaded = mlp(1), mlp(2)
    path = write({"state_dict": state_of(saved), "epoch": 3, **OTHERS}, tmp_path)
    load_weights(loaded, path)
    assert equal_states(saved, loaded)


# Overflow


def refuse_overflow(state: Mapping[str, Tensor], model: nn.Module, folder: Path) -> str:
    """Return the message of the error about values that overflow."""
    before = state_of(model)
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(model, write(dict(state), folder), minimum_match=0.1)
    assert same_bits(before, state_of(model))
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "file", "model"),
    [
        (7e4, torch.float32, torch.float16),
        (-7e4, torch.bfloat16, torch.float16),
        (1e39, torch.float64, torch.float32),
        (3.4e38, torch.float32, torch.bfloat16),
        (1e5, torch.float32, torch.float8_e5m2),
        (70000, torch.int32, torch.float16),
    ],
)
def test_value_beyond_the_range_is_refused(
    tmp_path: Path, value: float, file: torch.dtype, model: torch.dtype
) -> None:
    """Only the tensor that overflows is named, and nothing is loaded."""
    layer = nn.Linear(1, 1).to(model)
    state = {"weight": torch.zeros(1, 1), "bias": torch.tensor([value], dtype=file)}
    message = refuse_overflow(state, layer, tmp_path)
    assert "bias (file" in message
    assert "weight (file" not in message


def test_integer_beyond_the_range_is_refused(tmp_path: Path) -> None:
    """An integer buffer would become another number."""
    model = nn.Module()
    model.register_buffer("index", torch.zeros(2, dtype=torch.int8))
    assert "index" in refuse_overflow({"index": torch.tensor([1, 300])}, model, tmp_path)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 65504.0])
def test_value_within_the_range_is_loaded(tmp_path: Path, value: float) -> None:
    """Infinity in the file is not an overflow, and neither is the largest value of the dtype."""
    model = nn.Linear(1, 1).half()
    state = {"weight": torch.tensor([[value]]), "bias": torch.zeros(1)}
    load_weights(model, write(state, tmp_path))
    torch.testing.assert_close(model.weight.item(), value, equal_nan=True)


# Suggestions


def refusal(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> WeightsMismatchError:
    """Return the error about a file that does not fit."""
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(model, write(dict(state), folder))
    return caught.value


def test_error_carries_the_renaming_to_pass(tmp_path: Path) -> None:
    """`rename=error.rename` loads the file, and a report has the same attribute."""
    state = {f"net.{name}": value for name, value in state_of(mlp(1)).items()}
    loaded = mlp(2)
    error = refusal(loaded, state, tmp_path)
    report = load_weights(loaded, tmp_path / "a.pth", minimum_match=0.0)
    assert error.rename == report.rename == {"net.": ""}
    load_weights(loaded, tmp_path / "a.pth", rename=error.rename)
    assert equal_states(mlp(1), loaded)


def test_error_without_a_renaming_has_an_empty_one(tmp_path: Path) -> None:
    """It can be passed on without a check."""
    error = refusal(nn.Linear(3, 2), {"other": torch.zeros(7)}, tmp_path)
    assert error.rename == {}
    assert error.report.missing == ("weight", "bias")


def test_message_about_many_tensors_is_short(tmp_path: Path) -> None:
    """A renaming of many entries is an attribute, and only its beginning is in the text."""
    source = nn.Sequential(*(nn.Linear(2, 2 + n) for n in range(60)))
    model = nn.ModuleDict({f"layer_{n}_of_a_long_name": nn.Linear(2, 2 + n) for n in range(60)})
    error = refusal(model, source.state_dict(), tmp_path)
    assert len(error.rename) == 60
    assert len(str(error)) < 2500
    assert load_weights(model, tmp_path / "a.pth", rename=error.rename).match == 1.0


class Words(nn.Module):
    """An embedding, a layer over the vocabulary, and a classifier."""

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 4)
        self.decode = nn.Linear(4, vocabulary)
        self.classify = nn.Linear(4, classes)


def test_embedding_of_another_vocabulary_is_told_apart_from_a_head(tmp_path: Path) -> None:
    """The layer over the same vocabulary belongs to the embedding; the classifier does not."""
    text = str(refusal(Words(12, 5), Words(10, 3).state_dict(), tmp_path))
    assert "`embed.weight` has 10 rows in the file and 12 in the model" in text
    assert "`decode.weight`, `decode.bias`" in text
    assert "`classify` has 3 classes in the file and 5 in the model" in text


def test_embedding_alone_is_not_called_a_head(tmp_path: Path) -> None:
    """Rows of an embedding are not classes."""
    text = str(refusal(Words(12, 3), Words(10, 3).state_dict(), tmp_path))
    assert "10 rows" in text
    assert "classes" not in text


def test_missing_tensor_that_the_file_ties_to_an_embedding_is_explained(tmp_path: Path) -> None:
    """Tying the two, as the message says, loads the file."""
    model = nn.Module()
    model.embed = nn.Embedding(12, 4)
    model.lm_head = nn.Linear(4, 12, bias=False)
    state = {"embed.weight": torch.ones(12, 4)}
    text = str(refusal(model, state, tmp_path))
    assert "`model.lm_head.weight = model.embed.weight`" in text
    model.lm_head.weight = model.embed.weight
    assert load_weights(model, tmp_path / "a.pth").match == 1.0


def test_repr_of_a_report_is_short(tmp_path: Path) -> None:
    """It contains counts and no digests."""
    report = load_weights(mlp(2), write(state_of(mlp(1)), tmp_path))
    assert repr(report) == "LoadReport('a.pth', 9 loaded)"
    report = load_weights(mlp(2, classes=5), tmp_path / "a.pth", minimum_match=0.5)
    assert repr(report) == "LoadReport('a.pth', 7 loaded, 2 wrong_shape)"
