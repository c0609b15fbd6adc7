"""`check_bounded`: files of torch.save are accepted, and files that claim too much are rejected."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from finetunelib.errors import CorruptFileError
from finetunelib.finetuning import load_weights
from finetunelib.finetuning._pickles import archives
from finetunelib.finetuning._pickles.bounds import check_bounded
from finetunelib.finetuning._pickles.values import UnsafePickleError
from finetuning._pickles.handmade import (
    START,
    STOP,
    call,
    legacy_storage,
    name,
    number,
    numbers,
    state,
    storage,
    tensor,
    text,
    write_archive,
    write_legacy,
)

BASE = torch.arange(12.0).reshape(3, 4)


def with_attribute() -> nn.Parameter:
    """Return a parameter with an attribute of its own, as some frameworks set."""
    parameter = nn.Parameter(BASE)
    parameter.is_expert = True  # type: ignore[attr-defined]
    return parameter


CONTENTS: dict[str, Callable[[], object]] = {
    "state dict": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).state_dict(),
    "views": lambda: {"t": BASE.t(), "row": BASE[1], "column": BASE[:, 2], "empty": BASE[:0]},
    "expanded": lambda: {"a": torch.zeros(1).expand(5)},
    "scalar": lambda: torch.tensor(1.5),
    "dtypes": lambda: [BASE.to(dtype) for dtype in (torch.float16, torch.bool, torch.complex64)],
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "parameter": lambda: [nn.Parameter(BASE), with_attribute()],
    "meta": lambda: torch.empty(3, device="meta"),
    "plain values": lambda: [None, True, -5, 10**30, 1.5, 1j, "text", b"\xff\x00", "long" * 1000],
    "containers": lambda: [(1, (2, 3)), {"a": [1]}, {1, 2}, {(1, "a"): 2}, torch.Size([2, 3])],
    "collections": lambda: [collections.OrderedDict(a=1), collections.Counter("aab")],
    "devices": lambda: [torch.device("cpu"), torch.device("cuda", 1), torch.float32],
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_what_torch_saves_is_accepted(
    tmp_path: Path, content: Callable[[], object], archive: bool
) -> None:
    """Files of `torch.save` that `weights_only=True` can load pass the check."""
    torch.save(content(), tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    torch.load(tmp_path / "a.pth", weights_only=True)
    check_bounded(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn, torch.bfloat16])
def test_new_dtypes_are_accepted(tmp_path: Path, dtype: torch.dtype) -> None:
    """Dtypes without a storage class of their own pass the check."""
    torch.save({"a": BASE.to(dtype)}, tmp_path / "a.pth")
    check_bounded(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_quantized_tensor_is_accepted(tmp_path: Path) -> None:
    """A quantized tensor passes the check; `load_weights` rejects it with its own message."""
    torch.save({"weight": torch.quantize_per_tensor(BASE, 0.1, 0, torch.qint8)}, tmp_path / "a.pth")
    check_bounded(tmp_path / "a.pth")
    with pytest.raises(CorruptFileError, match="quantized"):
        load_weights(nn.Linear(4, 3, bias=False), tmp_path / "a.pth")


def test_optimizer_state_is_accepted(tmp_path: Path) -> None:
    """The state of an optimizer passes the check."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "a.pth")
    check_bounded(tmp_path / "a.pth")


HUGE = 2**40


def nested(kind: str, levels: int) -> bytes:
    """Return a list of tuples or lists, each of which contains the one before twice."""
    start = b")" if kind == "tuple" else b"]"
    code = start + b"q\x00"
    for _ in range(levels):
        twice = b"h\x00h\x00\x86" if kind == "tuple" else b"](h\x00h\x00e"
        code += twice + b"q\x00"
    return code


HOSTILE = {
    "size of a bytearray": call("builtins.bytearray", number(HUGE)),
    "size of a tensor": call("torch.FloatTensor", number(HUGE)),
    "chain of codecs": call(
        "_codecs.encode", call("_codecs.encode", text("a" * 100), text("hex")), text("hex")
    ),
    "codec that decompresses": call("_codecs.encode", text("a"), text("zlib")),
    "missing storage": tensor(storage("9", 1), 0, numbers(1), numbers(1)),
    "storage larger than its entry": tensor(storage("0", 5), 0, numbers(5), numbers(1)),
    "negative storage": tensor(storage("0", -1), 0, numbers(1), numbers(1)),
    "tensor larger than its storage": tensor(storage("0", 4), 0, numbers(HUGE), numbers(1)),
    "tensor behind its storage": tensor(storage("0", 4), 4, numbers(1), numbers(1)),
    "negative stride": tensor(storage("0", 4), 3, numbers(4), numbers(-1)),
    "stride of another length": tensor(storage("0", 4), 0, numbers(4), numbers(1, 1)),
    "repeated element": tensor(storage("0", 4), 0, numbers(HUGE), numbers(0)),
    "quantized tensor": call(
        "torch._utils._rebuild_qtensor",
        *(storage("0", 4), number(0), numbers(HUGE), numbers(0), b")", b"\x89", b"}"),
    ),
    "new object": name("torch.Tensor") + b")\x81",
    "state of a tensor": tensor(storage("0", 4), 0, numbers(4), numbers(1)) + b")b",
    "replaced attribute": call(
        "torch._utils._rebuild_parameter_with_state",
        tensor(storage("0", 4), 0, numbers(4), numbers(1)),
        b"\x89",
        call("collections.OrderedDict"),
        b"}" + text("__class__") + name("torch.Size") + b"s",
    ),
    "shared tuples": nested("tuple", 40),
    "shared lists": nested("list", 40),
    "tuple as a key": b"}" + nested("tuple", 30) + b"Ns",
    "deep nesting": b"]" * 1000 + b"a" * 999,
    "list that contains itself": b"]q\x00h\x00a",
    "string beyond the end": b"X\xff\xff\xff\xff",
    "unknown instruction": b"\x95" + b"\xff" * 8,
    "list as a key": b"}]Ns",
    "empty stack": b"\x87",
    "unknown memo": b"h\x07",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archive_is_rejected(tmp_path: Path, value: bytes) -> None:
    """An archive that claims more than it contains is rejected before it is loaded."""
    path = write_archive(tmp_path / "a.pth", state(value), {"0": bytes(16)})
    with pytest.raises((ValueError, UnsafePickleError)):
        check_bounded(path)
    with pytest.raises(CorruptFileError):
        load_weights(nn.Linear(4, 1, bias=False), path)


@pytest.mark.parametrize(
    "value",
    [
        HOSTILE["size of a bytearray"],
        HOSTILE["chain of codecs"],
        HOSTILE["shared lists"],
        tensor(legacy_storage("0", HUGE), 0, numbers(1), numbers(1)),
        tensor(legacy_storage("0", 4), 0, numbers(HUGE), numbers(1)),
        b"(" + text("module") + name("torch.Size") + text("a.py") + text("x") + b"tQ",
    ],
    ids=["bytearray", "codecs", "lists", "storage", "tensor", "module"],
)
def test_hostile_legacy_file_is_rejected(tmp_path: Path, value: bytes) -> None:
    """A legacy file is followed like an archive."""
    data = struct.pack("<q", 4) + bytes(16)
    path = write_legacy(tmp_path / "a.pth", state(value), b"]" + text("0") + b"a", data)
    with pytest.raises((ValueError, UnsafePickleError)):
        check_bounded(path)
    with pytest.raises(CorruptFileError):
        load_weights(nn.Linear(4, 1, bias=False), path)


def test_intact_handmade_files_are_accepted(tmp_path: Path) -> None:
    """The files above are rejected for what they claim, not for how they are written."""
    value = tensor(storage("0", 4), 0, numbers(1, 4), numbers(4, 1))
    values = struct.pack("<4f", 1, 2, 3, 4)
    model = nn.Linear(4, 1, bias=False)
    load_weights(model, write_archive(tmp_path / "a.pth", state(value), {"0": values}))
    assert model.weight.tolist() == [[1, 2, 3, 4]]
    value = tensor(legacy_storage("0", 4), 0, numbers(1, 4), numbers(4, 1))
    data = struct.pack("<q", 4) + values
    path = write_legacy(tmp_path / "b.pth", state(value), b"]" + text("0") + b"a", data)
    load_weights(model, path)
    assert model.weight.tolist() == [[1, 2, 3, 4]]


def test_keys_with_equal_hashes_are_rejected(tmp_path: Path) -> None:
    """Thousands of integers with one hash would make a dict as slow as a list of them."""
    modulus = 2**61 - 1
    items = b"".join(number(modulus * n) + b"N" for n in range(4))
    check_bounded(write_archive(tmp_path / "few.pth", START + b"}(" + items + b"u" + STOP))
    items = b"".join(b"\x8a\x0a" + (modulus * n).to_bytes(10, "little") + b"N" for n in range(2000))
    with pytest.raises(ValueError, match="hash"):
        check_bounded(write_archive(tmp_path / "many.pth", START + b"}(" + items + b"u" + STOP))


def test_same_keys_in_many_dicts_are_accepted(tmp_path: Path) -> None:
    """Equal keys of different dicts are not counted as keys with equal hashes."""
    torch.save([{0: 1} for _ in range(3000)], tmp_path / "a.pth")
    check_bounded(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [b"}", b"N"], ids=["dict", "none"])
def test_millions_of_small_values_are_rejected(tmp_path: Path, value: bytes) -> None:
    """One byte of a pickle creates a value that takes up to a few hundred bytes."""
    content = START + b"](" + value * 3_000_000 + b"e" + STOP
    with pytest.raises(ValueError, match=r"memory|instructions"):
        check_bounded(write_archive(tmp_path / "a.pth", content))


def test_class_or_function_is_named(tmp_path: Path) -> None:
    """The message contains the function that a pickle would call."""
    path = write_archive(tmp_path / "a.pth", state(call("posix.system", text("true"))))
    with pytest.raises(CorruptFileError, match=r"`posix\.system`"):
        load_weights(nn.Linear(4, 1), path)


def test_names_in_a_file_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check imports nothing that a pickle refers to, not even lazy attributes of torch."""
    (tmp_path / "imported_by_a_pickle.py").write_text("open('canary', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for dotted in ("imported_by_a_pickle.f", "torch.imported_by_a_pickle", "torch.onnx"):
        with pytest.raises(UnsafePickleError):
            check_bounded(write_archive(tmp_path / "a.pth", state(name(dotted))))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("entry", ["A/DATA.PKL", "a/Data.pkl"])
def test_entries_that_differ_in_case_are_rejected(tmp_path: Path, entry: str) -> None:
    """Torch ignores the case of names, so it could load the entry that was not checked."""
    path = write_archive(tmp_path / "a.pth", state(b"N"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, state(call("builtins.bytearray", number(HUGE))))
    with pytest.raises(ValueError, match="ambiguous"):
        check_bounded(path)


def test_pickle_in_capitals_is_followed(tmp_path: Path) -> None:
    """The content is found whatever the case of its name, as torch finds it."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/DATA.PKL", state(call("builtins.bytearray", number(HUGE))))
        archive.writestr("a/version", "3\n")
    with pytest.raises(UnsafePickleError):
        check_bounded(path)


def test_compressed_archive_is_rejected(tmp_path: Path) -> None:
    """Torch never compresses, and a small compressed entry may unpack to any size."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", state(text("a" * 1000)))
    with pytest.raises(ValueError, match="compressed"):
        check_bounded(path)


def test_entries_that_share_bytes_are_rejected(tmp_path: Path) -> None:
    """Entries that all point to the same bytes claim more than the file has."""
    path = write_archive(tmp_path / "a.pth", state(b"N"), {str(n): bytes(4000) for n in range(9)})
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", len(content))
    place = content.find(b"PK\1\2")
    while place >= 0:
        content[place + 20 : place + 28] = size + size
        place = content.find(b"PK\1\2", place + 1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="claim"):
        check_bounded(path)


def test_number_of_entries_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is checked before the directory of an archive is read."""
    path = write_archive(tmp_path / "a.pth", state(b"N"), {str(n): b"" for n in range(50)})
    monkeypatch.setattr(archives, "_MOST_ENTRIES", 50)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ValueError, match="53 entries"):
        check_bounded(path)


@pytest.mark.parametrize("tail", [b"x", b"PK\5\6" + bytes(18)], ids=["byte", "second directory"])
def test_archive_with_something_behind_it_is_rejected(tmp_path: Path, tail: bytes) -> None:
    """Readers of archives could find different directories in such a file."""
    path = write_archive(tmp_path / "a.pth", state(b"N"))
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(zipfile.BadZipFile):
        check_bounded(path)


def test_legacy_file_with_an_archive_behind_it_is_a_legacy_file(tmp_path: Path) -> None:
    """Torch decides by the first bytes of a file, and so does the check."""
    legacy = write_legacy(tmp_path / "a.pth", state(call("builtins.bytearray", number(HUGE))))
    archive = write_archive(tmp_path / "b.pth", state(b"N"))
    legacy.write_bytes(legacy.read_bytes() + archive.read_bytes())
    with pytest.raises(UnsafePickleError):
        check_bounded(legacy)


def test_tar_archive_is_rejected(tmp_path: Path) -> None:
    """The sizes in a tar archive are unchecked, and `weights_only=True` does not load one."""
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(ValueError, match="tar"):
        check_bounded(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\3\4", os.urandom(0) + bytes(600)])
def test_other_content_is_rejected(tmp_path: Path, content: bytes) -> None:
    """Empty, truncated and unrelated files are rejected."""
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        check_bounded(tmp_path / "a.pth")


def test_code_does_not_run(tmp_path: Path) -> None:
    """A bare pickle is followed without calling anything, and the message names the function."""

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "a.pth").write_bytes(pickle.dumps({"weight": Runs()}, 2))
    with pytest.raises(CorruptFileError, match="mkdir"):
        load_weights(nn.Linear(4, 1), tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
