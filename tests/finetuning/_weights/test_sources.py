"""Sources of weights: shards with an index, folders, torchvision enums, malformed files."""

from __future__ import annotations

import json
import struct
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from finetunelib.errors import CorruptFileError, FileMissingError, InvalidTypeError
from finetunelib.finetuning import load_weights, save_weights
from finetunelib.finetuning._weights import formats, sources
from finetuning._weights.small_weights import (
    equal_states,
    mlp,
    same_bits,
    state_of,
    with_prefix,
    write,
)

INDEX = "model.safetensors.index.json"


def write_shards(model: nn.Module, folder: Path) -> Path:
    """Write a model's tensors to two shards and their index, and return the index."""
    tensors = list(state_of(model).items())
    shards = {
        "model-00001-of-00002.safetensors": dict(tensors[::2]),
        "model-00002-of-00002.safetensors": dict(tensors[1::2]),
    }
    for shard, state in shards.items():
        save_file(state, folder / shard)
    return write_index(folder, {name: shard for shard, state in shards.items() for name in state})


def write_index(folder: Path, weight_map: Any) -> Path:
    """Write an index of safetensors, and return its path."""
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / INDEX


# Shards and folders


@pytest.mark.parametrize("give_folder", [False, True], ids=["index", "folder"])
def test_shards_are_read_by_their_index(tmp_path: Path, give_folder: bool) -> None:
    """The index or the folder that contains it can be passed."""
    saved, loaded = mlp(1), mlp(2)
    index = write_shards(saved, tmp_path)
    report = load_weights(loaded, tmp_path if give_folder else index)
    assert equal_states(saved, loaded)
    assert report.path == index


def test_folder_with_one_file_is_read(tmp_path: Path) -> None:
    """A small model has a single file without an index."""
    saved, loaded = mlp(1), mlp(2)
    path = save_weights(saved, tmp_path / "model.safetensors")
    assert load_weights(loaded, tmp_path).path == path
    assert equal_states(saved, loaded)


def test_folder_with_two_files_is_refused(tmp_path: Path) -> None:
    """The message contains both names."""
    save_weights(mlp(1), tmp_path / "one.safetensors")
    save_weights(mlp(1), tmp_path / "two.safetensors")
    with pytest.raises(FileMissingError, match=r"one\.safetensors, two\.safetensors"):
        load_weights(mlp(2), tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    """The message names a missing shard, and the model is unchanged."""
    index = write_shards(mlp(1), tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    model = mlp(2)
    before = state_of(model)
    with pytest.raises(FileMissingError) as caught:
        load_weights(model, index)
    assert "1 of 2 shards" in str(caught.value)
    assert "model-00002-of-00002.safetensors" in str(caught.value)
    assert same_bits(before, model.state_dict())


@pytest.mark.parametrize("name", ["plain." * 1000, "\udcff", "folder/" * 50 + "x" * 300])
def test_shard_whose_name_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    """A name that is too long or cannot be encoded is that of a missing file."""
    index = write_index(tmp_path, {"head.weight": f"{name}.safetensors"})
    with pytest.raises(FileMissingError, match="1 of 1 shards") as caught:
        load_weights(mlp(2), index)
    assert len(str(caught.value)) < 1000 + len(2 * str(tmp_path))


def test_cut_off_shard_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """All shards are checked before the first value is written."""
    index = write_shards(mlp(1), tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    model = mlp(2)
    before = state_of(model)
    with pytest.raises(CorruptFileError, match="model-00002-of-00002"):
        load_weights(model, index)
    assert same_bits(before, model.state_dict())


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "C:\\a.safetensors", "..\\a.safetensors", "a.pth"],
)
def test_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    """An index cannot name files in other folders or of other formats."""
    index = write_index(tmp_path, {"head.weight": shard})
    with pytest.raises(CorruptFileError) as caught:
        load_weights(mlp(2), index)
    assert shard in str(caught.value)


def test_name_that_is_missing_in_its_shard_is_named(tmp_path: Path) -> None:
    """An index that does not match its shards is refused with a name that is missing."""
    index = write_shards(mlp(1), tmp_path)
    weight_map = json.loads(index.read_text())["weight_map"]
    write_index(tmp_path, weight_map | {"extra": "model-00001-of-00002.safetensors"})
    with pytest.raises(CorruptFileError, match="`extra` in model-00001-of-00002"):
        load_weights(mlp(2), index)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000]
)
def test_malformed_index_is_corrupt(tmp_path: Path, text: str) -> None:
    """The message names a file that is not an index."""
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CorruptFileError, match=r"index\.json"):
        load_weights(mlp(2), tmp_path / INDEX)


# Safetensors with a wrong header


def test_index_that_is_too_long_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index is read only up to a limit."""
    index = write_shards(mlp(1), tmp_path)
    monkeypatch.setattr(sources, "_LARGEST_INDEX", index.stat().st_size - 1)
    with pytest.raises(CorruptFileError, match="more than"):
        load_weights(mlp(2), index)


def test_header_that_is_too_long_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length of a header is checked before it is parsed."""
    path = save_weights(mlp(1), tmp_path / "a.safetensors")
    monkeypatch.setattr(formats, "_LONGEST_HEADER", 100)
    with pytest.raises(CorruptFileError, match="header"):
        load_weights(mlp(2), path)


def with_header(folder: Path, header: object, data: bytes = bytes(16)) -> Path:
    """Write a safetensors file with any header."""
    text = json.dumps(header).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder / "a.safetensors"


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F8_E8M0", "shape": [16], "data_offsets": [0, 16]},
    ],
    ids=[
        "size that its bytes do not have",
        "size that the file does not have",
        "negative size",
        "place before the data",
        "end before the start",
        "unknown dtype",
        "bytes of nobody",
        "dtype that is not read",
    ],
)
def test_wrong_header_is_corrupt(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Sizes are compared with the file before memory is allocated."""
    path = with_header(tmp_path, {"weight": fields})
    with pytest.raises(CorruptFileError) as caught:
        load_weights(nn.Linear(4, 1, bias=False), path)
    assert str(path) in str(caught.value)


def test_length_of_a_header_beyond_the_file_is_corrupt(tmp_path: Path) -> None:
    """The first eight bytes can contain any number."""
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(CorruptFileError):
        load_weights(mlp(2), tmp_path / "a.safetensors")


def test_every_dtype_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    """Values of every dtype in both safetensors and PyTorch are equal bit for bit."""
    dtypes = (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint16, torch.uint32, torch.uint64, torch.complex64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
    state = {str(place): torch.tensor([0.0, 1.0]).to(dtype) for place, dtype in enumerate(dtypes)}
    save_file(state, tmp_path / "a.safetensors")
    model = nn.Module()
    for name, tensor in state.items():
        model.register_buffer(name, torch.zeros(2).to(tensor.dtype))
    load_weights(model, tmp_path / "a.safetensors")
    expected = load_file(tmp_path / "a.safetensors")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8))


# Files of torch.save


@pytest.mark.parametrize("key", ["module", "net"])
def test_more_keys_of_training_scripts_are_known(tmp_path: Path, key: str) -> None:
    """DeepSpeed saves a state dict under `module`, and many scripts under `net`."""
    saved, loaded = mlp(1), mlp(2)
    load_weights(loaded, write({"epoch": 3, key: state_of(saved)}, tmp_path))
    assert equal_states(saved, loaded)


def test_average_is_not_mistaken_for_the_weights(tmp_path: Path) -> None:
    """A file that contains only an average needs `key`, as the message says."""
    path = write({"ema": state_of(mlp(1))}, tmp_path)
    with pytest.raises(CorruptFileError, match='key="ema"'):
        load_weights(mlp(2), path)
    loaded = mlp(2)
    load_weights(loaded, path, key="ema")
    assert equal_states(mlp(1), loaded)


def test_nested_keys_and_wrappers_are_combined(tmp_path: Path) -> None:
    """Checkpoints of data parallel training have both, and the keys may be in any order."""
    state = with_prefix("module.", state_of(mlp(1)))
    for content in (
        {"model": state},
        {"model": {"state_dict": state}},
        {"state_dict": {"model": state}},
    ):
        loaded = mlp(2)
        load_weights(loaded, write(content, tmp_path))
        assert equal_states(mlp(1), loaded)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensor_without_plain_values_is_named(tmp_path: Path, kind: str) -> None:
    """A tensor that cannot be copied into a model is refused before anything changes."""
    made = torch.eye(3).to_sparse() if kind == "sparse" else torch.empty(3, 3, device="meta")
    with pytest.raises(CorruptFileError, match=f"`weight` as a {kind} tensor"):
        load_weights(nn.Linear(3, 3, bias=False), write({"weight": made}, tmp_path))


def test_entry_of_another_type_is_named(tmp_path: Path) -> None:
    """The message names the entry that is not a tensor."""
    state: dict[str, object] = {**state_of(mlp(1)), "best_accuracy": 0.9}
    with pytest.raises(CorruptFileError, match="`best_accuracy` is of type float"):
        load_weights(mlp(2), write(state, tmp_path))


def test_model_does_not_depend_on_the_file(tmp_path: Path) -> None:
    """Writing over the file later does not change the model, even if it was on the meta device.

    A mapping of the file would show the new bytes, or end the program.
    """
    path = write(state_of(nn.Linear(64, 64)), tmp_path)
    with torch.device("meta"):
        layers = [nn.Linear(64, 64)]
    layers.append(nn.Linear(64, 64))
    for model in layers:
        load_weights(model, path)
    before = [state_of(model) for model in layers]
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    after = [model.state_dict() for model in layers]
    assert all(same_bits(old, new) for old, new in zip(before, after, strict=True))


# torchvision's weights


class Source:
    """The value of a member of a torchvision enum: the URL of the file."""

    def __init__(self, url: str) -> None:
        self.url = url


class Sources(Enum):
    """A base of enums like torchvision's."""

    @property
    def url(self) -> str:
        """The URL of the file."""
        source: Source = self.value
        return source.url


def weights_of(url: str) -> Enum:
    """Return a member of an enum like torchvision's."""
    make: Any = Sources  # Any: type checkers do not support enums that are created by a call.
    member: Enum = next(iter(make("Weights", {"V1": Source(url)})))
    return member


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that torch hub uses for weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_torchvision_weights_are_read_from_the_hubs_folder(hub: Path) -> None:
    """A file that was downloaded before needs no network."""
    saved = models.squeezenet1_1(weights=None)
    loaded = models.squeezenet1_1(weights=None)
    path = write(state_of(saved), hub, "squeezenet1_1-b8a52dc0.pth")
    weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    assert load_weights(loaded, weights).path == path
    assert equal_states(saved, loaded)


def test_weights_are_downloaded_to_the_hubs_folder(tmp_path: Path, hub: Path) -> None:
    """A missing file is downloaded and kept."""
    saved, loaded = mlp(1), mlp(2)
    source = write(state_of(saved), tmp_path, "net.pth")
    report = load_weights(loaded, weights_of(source.as_uri()))
    assert equal_states(saved, loaded)
    assert report.path == hub / "net.pth"
    source.unlink()
    load_weights(mlp(3), weights_of(source.as_uri()))


def test_downloaded_file_with_another_digest_is_refused(tmp_path: Path, hub: Path) -> None:
    """The digest in a file's name is checked, and the wrong file is removed."""
    source = write(state_of(mlp(1)), tmp_path, "net-01234567.pth")
    with pytest.raises(FileMissingError, match="hash"):
        load_weights(mlp(2), weights_of(source.as_uri()))
    assert list(hub.iterdir()) == []


def test_failed_download_names_the_url_and_the_path(tmp_path: Path, hub: Path) -> None:
    """The message says where to save a file that was downloaded by hand."""
    url = (tmp_path / "nowhere.pth").as_uri()
    with pytest.raises(FileMissingError) as caught:
        load_weights(mlp(2), weights_of(url))
    assert url in str(caught.value)
    assert str(hub / "nowhere.pth") in str(caught.value)


def test_enum_in_place_of_its_member_is_an_error_that_shows_one() -> None:
    """The message shows a member of the enum."""
    with pytest.raises(InvalidTypeError, match=r"ResNet18_Weights\.DEFAULT"):
        load_weights(mlp(2), models.ResNet18_Weights)  # pyright: ignore[reportArgumentType]


def test_value_of_a_wrong_type_is_an_error() -> None:
    """A state dict is not a file."""
    with pytest.raises(InvalidTypeError, match="`file`"):
        load_weights(mlp(2), state_of(mlp(1)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_pickle_that_claims_memory_is_refused(tmp_path: Path) -> None:
    """A small file cannot request gigabytes of memory."""
    path = tmp_path / "small.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            claim = b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R."
            archive.writestr(name, claim if name.endswith("data.pkl") else content)
    with pytest.raises(CorruptFileError, match="bytearray"):
        load_weights(nn.Linear(2, 2), path)
