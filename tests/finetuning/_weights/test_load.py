"""Weights files: written atomically, read without running code, and reported per tensor."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from finetunelib import build_mlp, freeze_and_replace_head
from finetunelib.errors import (
    CorruptFileError,
    FileMissingError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotWritableError,
    WeightsMismatchError,
)
from finetunelib.finetuning import LoadReport, load_weights, save_weights
from finetunelib.models import MLP
from support_disk import files_limited_to


def mlp(seed: int, *, classes: int = 3) -> MLP:
    """Return a small model with buffers."""
    return build_mlp(4, [5], classes, normalization=nn.BatchNorm1d, seed=seed)


class Tied(nn.Module):
    """A language model whose head shares its weight with the embedding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(7, 4)
        self.embedding.weight = nn.Parameter(torch.rand(7, 4, generator=generator))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


class Buffers(nn.Module):
    """Named tensors of many dtypes and shapes."""

    def __init__(self, fill: int) -> None:
        super().__init__()
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.uint8,
            torch.bool,
            torch.complex64,
        ):
            name = str(dtype).removeprefix("torch.")
            self.register_buffer(f"of_{name}", torch.full((2, 3), fill, dtype=dtype))
        self.register_buffer("number", torch.tensor(fill))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4).t() * fill)


class Views(nn.Module):
    """A model with a buffer that is a slice of another."""

    whole: Tensor
    part: Tensor

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.register_buffer("whole", torch.full((4,), fill))
        self.register_buffer("part", self.whole[:2])


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have the same tensors, with equal bits and dtypes."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name])
        for name, tensor in first.items()
    )


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Return the names whose values are not bit for bit the same."""
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def names_in(folder: Path) -> list[str]:
    """Return all names in a folder, including hidden files."""
    return sorted(path.name for path in folder.iterdir())


# Round trips


@pytest.mark.parametrize(
    "make",
    [mlp, Buffers, Tied, lambda fill: nn.Linear(3, 2, dtype=torch.bfloat16)],
    ids=["mlp", "dtypes", "tied", "bfloat16"],
)
def test_saved_weights_are_restored_bit_for_bit(
    tmp_path: Path, make: Callable[[int], nn.Module]
) -> None:
    """Parameters and buffers of any dtype and layout are equal after saving and loading."""
    saved, loaded = make(1), make(2)
    assert not equal_states(saved, loaded)
    load_weights(loaded, save_weights(saved, tmp_path / "a.safetensors"))
    assert equal_states(saved, loaded)


def test_special_values_are_restored_bit_for_bit(tmp_path: Path) -> None:
    """Infinities, the sign of zero and the payload of NaN are preserved."""
    values = torch.tensor([float("inf"), -0.0, 1e-45, float("nan")])
    saved, loaded = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    saved.weight.data.copy_(values)
    load_weights(loaded, save_weights(saved, tmp_path / "a.safetensors"))
    assert torch.equal(loaded.weight.view(torch.int32), saved.weight.view(torch.int32))


def test_tied_weights_are_still_tied_after_loading(tmp_path: Path) -> None:
    """Loading writes into the shared tensor and keeps it shared."""
    model = Tied(2)
    load_weights(model, save_weights(Tied(1), tmp_path / "a.safetensors"))
    assert model.head.weight is model.embedding.weight


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    """A file contains a shared tensor under one name."""
    path = save_weights(Tied(), tmp_path / "a.safetensors")
    assert len(safetensors.torch.load_file(path)) == 1


def test_tied_weights_count_under_every_name(tmp_path: Path) -> None:
    """The report of a complete file lists both names as loaded."""
    report = load_weights(Tied(2), save_weights(Tied(1), tmp_path / "a.safetensors"))
    assert set(report.loaded) == {"embedding.weight", "head.weight"}
    assert report.match == 1.0


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_tied_weights_are_found_under_either_name(tmp_path: Path, name: str) -> None:
    """A file with one of the names of a shared tensor provides both."""
    torch.save({name: torch.ones(7, 4)}, tmp_path / "a.pth")
    model = Tied()
    report = load_weights(model, tmp_path / "a.pth")
    assert report.match == 1.0
    assert torch.equal(model.head.weight, torch.ones(7, 4))


def test_buffer_that_is_a_part_of_another_is_restored(tmp_path: Path) -> None:
    """Tensors that share a part of their memory are saved too."""
    model = Views(2.0)
    load_weights(model, save_weights(Views(1.0), tmp_path / "a.safetensors"))
    assert torch.equal(model.whole, torch.ones(4))
    assert torch.equal(model.part, torch.ones(2))


def test_model_without_tensors_is_restored(tmp_path: Path) -> None:
    """A model without tensors matches completely."""
    report = load_weights(nn.ReLU(), save_weights(nn.ReLU(), tmp_path / "a.safetensors"))
    assert (report.loaded, report.missing) == ((), ())


# save_weights


def test_save_returns_the_path(tmp_path: Path) -> None:
    """A string path is returned as a `Path`."""
    path = tmp_path / "a.safetensors"
    assert save_weights(mlp(0), str(path)) == path


def test_saved_file_is_read_by_safetensors(tmp_path: Path) -> None:
    """Other programs read the names of the state dict."""
    model = mlp(0)
    path = save_weights(model, tmp_path / "a.safetensors")
    assert safetensors.torch.load_file(path).keys() == model.state_dict().keys()


def test_save_creates_missing_folders(tmp_path: Path) -> None:
    """Missing parent folders are created."""
    assert save_weights(mlp(0), tmp_path / "a" / "b" / "c.safetensors").is_file()


def test_save_leaves_the_model_alone(tmp_path: Path) -> None:
    """Neither values nor modes nor gradients change."""
    model = mlp(0)
    model(torch.ones(2, 4)).sum().backward()
    model.backbone.eval()
    before = copies(model)
    gradients = [parameter.grad for parameter in model.parameters()]
    save_weights(model, tmp_path / "a.safetensors")
    assert moved(before, model) == set()
    assert all(
        parameter.grad is gradient
        for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert (model.training, model.backbone.training) == (True, False)


def test_save_leaves_no_temporary_file(tmp_path: Path) -> None:
    """The folder contains only the file afterwards."""
    save_weights(mlp(0), tmp_path / "a.safetensors")
    assert names_in(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a", "a.onnx", "safetensors"])
def test_save_refuses_another_ending(tmp_path: Path, name: str) -> None:
    """The message names the path, and nothing is written."""
    with pytest.raises(InvalidArgumentError) as caught:
        save_weights(mlp(0), tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert names_in(tmp_path) == []


def test_save_refuses_a_path_below_a_file(tmp_path: Path) -> None:
    """The message names the file that is used as a folder."""
    (tmp_path / "obstacle").write_text("a file")
    with pytest.raises(PathNotWritableError) as caught:
        save_weights(mlp(0), tmp_path / "obstacle" / "a.safetensors")
    assert f"`{tmp_path / 'obstacle'}`" in str(caught.value)


def test_interrupted_save_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """An error of safetensors on a full disk is raised as an error of the library."""
    with files_limited_to(1000), pytest.raises(PathNotWritableError) as caught:
        save_weights(nn.Linear(100, 100), tmp_path / "a.safetensors")
    assert str(tmp_path / "a.safetensors") in str(caught.value)


def test_interrupted_save_keeps_the_existing_file(tmp_path: Path) -> None:
    """A file that cannot be completed does not replace the existing one."""
    path = save_weights(mlp(0), tmp_path / "a.safetensors")
    former = path.read_bytes()
    with files_limited_to(1000), contextlib.suppress(Exception):
        save_weights(nn.Linear(100, 100), path)
    assert path.read_bytes() == former
    assert names_in(tmp_path) == ["a.safetensors"]


# load_weights: what is read


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_state_dict_is_read(tmp_path: Path, ending: str, key: str | None) -> None:
    """It may be at the top of the file or under a usual key of training scripts."""
    saved, loaded = mlp(1), mlp(2)
    state = saved.state_dict()
    torch.save({"epoch": 3, key: state} if key else state, tmp_path / f"a{ending}")
    load_weights(loaded, tmp_path / f"a{ending}")
    assert equal_states(saved, loaded)


def test_state_dict_of_an_old_pytorch_is_read(tmp_path: Path) -> None:
    """Files from before PyTorch 1.6 are not zip archives."""
    saved, loaded = mlp(1), mlp(2)
    torch.save(saved.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    load_weights(loaded, tmp_path / "a.pth")
    assert equal_states(saved, loaded)


def test_model_keeps_its_dtype(tmp_path: Path) -> None:
    """Weights in single precision are converted to the model's double precision."""
    saved, loaded = mlp(1), mlp(2).double()
    load_weights(loaded, save_weights(saved, tmp_path / "a.safetensors"))
    assert equal_states(loaded, saved.double())


def test_parameters_stay_the_same_objects(tmp_path: Path) -> None:
    """An existing optimizer still trains the loaded model."""
    model = mlp(2)
    before = list(model.parameters())
    load_weights(model, save_weights(mlp(1), tmp_path / "a.safetensors"))
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))


def test_loading_into_a_frozen_model_leaves_it_frozen(tmp_path: Path) -> None:
    """Loading changes values and not `requires_grad`."""
    model = freeze_and_replace_head(mlp(2), num_classes=3)
    saved = mlp(1)
    load_weights(model, save_weights(saved, tmp_path / "a.safetensors"))
    assert equal_states(model, saved)
    assert {name for name, part in model.named_parameters() if part.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_loading_leaves_gradients_and_modes_alone(tmp_path: Path) -> None:
    """Loading changes neither gradients nor modes and records no graph."""
    model = mlp(2)
    model(torch.ones(2, 4)).sum().backward()
    model.backbone.eval()
    gradients = [parameter.grad for parameter in model.parameters()]
    load_weights(model, save_weights(mlp(1), tmp_path / "a.safetensors"))
    assert all(
        parameter.grad is gradient and parameter.is_leaf
        for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert (model.training, model.backbone.training) == (True, False)


# load_weights: what is reported


def other_file(folder: Path) -> Path:
    """Write a file with an additional name, a missing name and another class count."""
    state = mlp(1, classes=7).state_dict()
    del state["backbone.1.bias"]
    state["extra.weight"] = torch.ones(2)
    path = folder / "other.pth"
    torch.save(state, path)
    return path


FITTING = {
    "backbone.1.weight",
    "backbone.2.weight",
    "backbone.2.bias",
    "backbone.2.running_mean",
    "backbone.2.running_var",
    "backbone.2.num_batches_tracked",
}


def test_report_of_a_complete_file(tmp_path: Path) -> None:
    """Every name of the model is loaded, and nothing is unexpected."""
    model = mlp(2)
    path = save_weights(mlp(1), tmp_path / "a.safetensors")
    report = load_weights(model, path)
    assert report == LoadReport(
        path=path,
        loaded=tuple(model.state_dict()),
        missing=(),
        unexpected=(),
        wrong_shape={},
        digests=report.digests,
    )


def test_report_of_another_models_file(tmp_path: Path) -> None:
    """Loaded, missing and unexpected names are listed, and both shapes of reshaped tensors."""
    report = load_weights(mlp(2), other_file(tmp_path), minimum_match=0.5)
    assert set(report.loaded) == FITTING
    assert report.missing == ("backbone.1.bias",)
    assert report.unexpected == ("extra.weight",)
    assert report.wrong_shape == {"head.weight": ((7, 5), (3, 5)), "head.bias": ((7,), (3,))}


def test_match_is_the_fraction_of_the_models_tensors(tmp_path: Path) -> None:
    """Six of nine tensors of the model are in the file; its extra name does not count."""
    report = load_weights(mlp(2), other_file(tmp_path), minimum_match=0.5)
    assert report.match == 6 / 9


def test_report_reads_as_text(tmp_path: Path) -> None:
    """The text contains the counts, the file's name and every name that did not fit."""
    text = str(load_weights(mlp(2), other_file(tmp_path), minimum_match=0.5))
    for part in (
        "6 of 9",
        "other.pth",
        "backbone.1.bias",
        "extra.weight",
        "head.weight",
        "[7, 5]",
        "[3, 5]",
    ):
        assert part in text


def test_long_lists_of_names_are_cut_in_the_text(tmp_path: Path) -> None:
    """The text shows some of the names and the number of the others."""
    torch.save({f"extra{number:02}": torch.ones(1) for number in range(30)}, tmp_path / "a.pth")
    text = str(load_weights(mlp(2), tmp_path / "a.pth", minimum_match=0.0))
    shown = text.count("extra")
    assert 0 < shown < 30
    assert f"{30 - shown} more" in text


def test_report_cannot_be_changed(tmp_path: Path) -> None:
    """A report is immutable."""
    report = load_weights(mlp(2), save_weights(mlp(1), tmp_path / "a.safetensors"))
    with pytest.raises(AttributeError):
        report.missing = ()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


# load_weights: what does not fit


def test_partial_load_writes_what_fits_and_nothing_else(tmp_path: Path) -> None:
    """Tensors that fit have the file's values, and the others keep theirs."""
    model = mlp(2)
    before = copies(model)
    path = other_file(tmp_path)
    load_weights(model, path, minimum_match=0.5)
    file = torch.load(path)
    after = model.state_dict()
    assert all(torch.equal(after[name], file[name]) for name in FITTING)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - FITTING)


@pytest.mark.parametrize(
    ("minimum", "fits"), [(0.0, True), (6 / 9, True), (0.67, False), (1.0, False)]
)
def test_minimum_match_decides(tmp_path: Path, minimum: float, fits: bool) -> None:
    """Six of nine tensors are enough for two thirds, and not for more."""
    model = mlp(2)
    path = other_file(tmp_path)
    if fits:
        assert load_weights(model, path, minimum_match=minimum).match == 6 / 9
    else:
        with pytest.raises(WeightsMismatchError):
            load_weights(model, path, minimum_match=minimum)


@pytest.mark.parametrize("minimum", [-0.1, 1.1, 50, float("nan")])
def test_minimum_match_outside_its_range_is_an_error_that_names_it(
    tmp_path: Path, minimum: float
) -> None:
    """`minimum_match` is a fraction and not a percentage."""
    path = save_weights(mlp(1), tmp_path / "a.safetensors")
    with pytest.raises(InvalidArgumentError) as caught:
        load_weights(mlp(2), path, minimum_match=minimum)
    assert "`minimum_match`" in str(caught.value)
    assert str(minimum) in str(caught.value)


def test_mismatch_lists_the_file_and_every_name(tmp_path: Path) -> None:
    """The message contains missing, unexpected and reshaped names, and how to allow them."""
    path = other_file(tmp_path)
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(mlp(2), path)
    for part in (
        str(path),
        "backbone.1.bias",
        "extra.weight",
        "head.weight",
        "[7, 5]",
        "[3, 5]",
        "minimum_match=",
    ):
        assert part in str(caught.value)


def test_other_class_count_is_an_error_that_names_both_shapes(tmp_path: Path) -> None:
    """A checkpoint of seven classes does not fit a model of three."""
    path = save_weights(mlp(1, classes=7), tmp_path / "a.safetensors")
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(mlp(2), path)
    assert "head.weight" in str(caught.value)
    assert "[7, 5]" in str(caught.value)
    assert "[3, 5]" in str(caught.value)


def test_one_unexpected_name_is_an_error(tmp_path: Path) -> None:
    """By default, names must match in both directions."""
    torch.save(mlp(1).state_dict() | {"extra.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsMismatchError, match=r"extra\.weight"):
        load_weights(mlp(2), tmp_path / "a.pth")


def test_refused_file_leaves_the_model_bit_for_bit(tmp_path: Path) -> None:
    """No tensor is written if the file is refused."""
    model = mlp(2)
    before = copies(model)
    with pytest.raises(WeightsMismatchError):
        load_weights(model, other_file(tmp_path))
    assert moved(before, model) == set()


# load_weights: files without weights


class Canary:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_unpickling_the_object_runs_code(tmp_path: Path) -> None:
    """The object of the next test runs code if a file is trusted."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "sang")))
    assert (tmp_path / "sang").is_dir()


def save_as_archive(content: object, path: Path) -> None:
    """Write a file as PyTorch does today."""
    torch.save(content, path)


def save_as_of_old(content: object, path: Path) -> None:
    """Write a file as PyTorch did before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_as_pickle(content: object, path: Path) -> None:
    """Write a plain pickle with a protocol that PyTorch can read."""
    path.write_bytes(pickle.dumps(content, protocol=2))


WRITERS = pytest.mark.parametrize(
    "write",
    [save_as_archive, save_as_of_old, save_as_pickle],
    ids=["archive", "old file", "pickle"],
)


@WRITERS
@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin"])
def test_file_with_code_is_refused_and_runs_nothing(
    tmp_path: Path, write: Callable[[object, Path], None], ending: str
) -> None:
    """Code in a file does not run, and the message names the file."""
    path = tmp_path / f"evil{ending}"
    write({"head.weight": Canary(tmp_path / "sang")}, path)
    with pytest.raises(CorruptFileError) as caught:
        load_weights(mlp(2), path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "sang").exists()


def test_file_of_a_whole_model_is_refused(tmp_path: Path) -> None:
    """The message names the first class in the file, and how to save the weights alone."""
    torch.save(mlp(1), tmp_path / "a.pth")
    with pytest.raises(CorruptFileError) as caught:
        load_weights(mlp(2), tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)
    assert "`finetunelib.models.MLP`" in str(caught.value)
    assert "state_dict()" in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([torch.ones(1)], "list"),
        (torch.ones(1), "Tensor"),
        ({"epoch": 3, "weights": {"head.weight": torch.ones(1)}}, "epoch, weights"),
        ({1: torch.ones(1)}, "1"),
        ({"state_dict": {"head.weight": torch.ones(1), "step": 3}}, "head.weight, step"),
    ],
    ids=["list", "tensor", "unknown key", "number for a name", "number for a tensor"],
)
def test_file_without_a_state_dict_is_an_error_with_its_content(
    tmp_path: Path, content: Any, named: str
) -> None:
    """The message contains the path and the keys or type of the content."""
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CorruptFileError) as caught:
        load_weights(mlp(2), tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)
    assert named in str(caught.value)


def save_as_safetensors(content: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file."""
    safetensors.torch.save_file(content, path)


@pytest.mark.parametrize(
    ("write", "ending"),
    [(save_as_archive, ".pth"), (save_as_of_old, ".pth"), (save_as_safetensors, ".safetensors")],
    ids=["archive", "old file", "safetensors"],
)
def test_file_cut_off_anywhere_is_corrupt(
    tmp_path: Path, write: Callable[[dict[str, Tensor], Path], None], ending: str
) -> None:
    """A file that was cut off after any byte raises the same error."""
    path = tmp_path / f"a{ending}"
    write({"weight": torch.ones(2, 3)}, path)
    whole = path.read_bytes()
    model = nn.Linear(3, 2, bias=False)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError) as caught:
            load_weights(model, path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b"hello", b"\x00" * 100, b"version https://git-lfs"],
    ids=["empty", "page", "text", "zeros", "pointer"],
)
def test_file_with_other_content_is_corrupt(tmp_path: Path, ending: str, content: bytes) -> None:
    """The message names an empty file, or an HTML page that was downloaded instead."""
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        load_weights(mlp(2), path)
    assert str(path) in str(caught.value)


def test_corrupt_file_leaves_the_model_bit_for_bit(tmp_path: Path) -> None:
    """Nothing is written if the file is damaged."""
    path = save_weights(mlp(1), tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    model = mlp(2)
    before = copies(model)
    with pytest.raises(CorruptFileError):
        load_weights(model, path)
    assert moved(before, model) == set()


@pytest.mark.parametrize("name", ["a.onnx", "a", "a.npz", "a.pth.zip"])
def test_another_ending_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    """The message lists the endings of the formats that are read."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CorruptFileError) as caught:
        load_weights(mlp(2), tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert ".safetensors" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """The message contains the path."""
    with pytest.raises(FileMissingError) as caught:
        load_weights(mlp(2), tmp_path / "nowhere.pth")
    assert str(tmp_path / "nowhere.pth") in str(caught.value)


def test_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    """The message says that the path is a folder, also if its name ends like a file's."""
    folder = tmp_path / "a.safetensors"
    folder.mkdir()
    with pytest.raises(FileMissingError) as caught:
        load_weights(mlp(2), folder)
    assert str(folder) in str(caught.value)


def test_names_show_their_public_path() -> None:
    """`__module__` is the package that users import from."""
    assert {value.__module__ for value in (LoadReport, load_weights, save_weights)} == {
        "finetunelib.finetuning"
    }


def test_swapped_arguments_are_refused(tmp_path: Path) -> None:
    """The error says that the model comes first."""
    swapped: Any = (tmp_path / "a.safetensors", nn.Linear(2, 2))
    for function in (save_weights, load_weights):
        with pytest.raises(InvalidTypeError, match="first argument"):
            function(*swapped)


def test_minimum_match_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    """A string is not a number."""
    path, share = save_weights(nn.Linear(2, 2), tmp_path / "a.safetensors"), "0.5"
    wrong: Any = share
    with pytest.raises(InvalidTypeError, match="minimum_match"):
        load_weights(nn.Linear(2, 2), path, minimum_match=wrong)


def test_loading_counts_as_a_change_of_each_tensor(tmp_path: Path) -> None:
    """PyTorch's version counters show it, whether values are copied or read into place."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    path = save_weights(model, tmp_path / "w.safetensors")
    for other in (copy.deepcopy(model), copy.deepcopy(model).double()):
        weight = other.get_parameter("0.weight")
        weight.data = weight.data.t().contiguous().t()  # Cannot be read into.
        versions = {name: tensor._version for name, tensor in other.state_dict().items()}
        load_weights(other, path)
        for name, tensor in other.state_dict().items():
            assert tensor.equal(model.state_dict()[name].to(tensor.dtype)), name
            assert tensor._version > versions[name], name
