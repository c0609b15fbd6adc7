"""No file of a checkpoint can run code, even with correct digests."""

from __future__ import annotations

import contextlib
import copyreg
import io
import json
import os
import pickle
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetunelib import Trainer
from finetunelib.callbacks import EMA, ModelCheckpoint
from finetunelib.errors import CheckpointError, FinetuneLibError
from finetunelib.training._checkpointing.folder import newest_checkpoint, open_checkpoint
from finetunelib.training._checkpointing.manifest import HISTORY, MANIFEST, STATE, WEIGHTS
from training._checkpointing.checkpoint_files import DATA, forge, trainer

MEBIBYTE = 1 << 20


class Bomb:
    """Creates a file when it is unpickled, which shows that code ran."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def watched(tmp_path: Path) -> Trainer:
    """Return a Trainer with the callbacks of the checkpoints in these tests."""
    callbacks = [EMA(0.5), ModelCheckpoint(tmp_path / "new", monitor="train_loss")]
    return trainer(callbacks=callbacks, optimizer=torch.optim.AdamW)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of a run with callbacks."""
    trained = watched(tmp_path)
    trained.fit(DATA, epochs=1)
    return trained.save_checkpoint(tmp_path / "run" / "one")


@contextlib.contextmanager
def bounded_memory(limit: int = 64 * MEBIBYTE) -> Iterator[None]:
    """Check that the memory of Python objects stays below a limit in a block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def assert_refused(checkpoint: Path, name: str, tmp_path: Path) -> None:
    """Check that the checkpoint is refused, nothing changes, and the file is named."""
    there = watched(tmp_path)
    before = {n: t.clone() for n, t in there.model.state_dict().items()}
    for action in (
        lambda: there.load_checkpoint(checkpoint),
        lambda: there.fit(DATA, epochs=2, resume_from=checkpoint),
        lambda: there.fit(DATA, epochs=2, resume_from=checkpoint.parent),
    ):
        with pytest.raises(FinetuneLibError) as caught:
            action()
        assert str(checkpoint / name) in str(caught.value)
    assert not (tmp_path / "canary").exists()
    assert all(before[n].equal(t) for n, t in there.model.state_dict().items())
    assert there.state.step == 0


def put(state: Any, place: tuple[Any, ...], value: object) -> None:
    """Put a value at a position inside nested dicts and lists."""
    for key in place[:-1]:
        state = state[key]
    state[place[-1]] = value


PLACES: list[tuple[Any, ...]] = [
    ("optimizer",),
    ("optimizer", "state", 0, "exp_avg"),
    ("optimizer", "param_groups", 0, "lr"),
    ("schedule",),
    ("precision",),
    ("precision", "scale"),
    ("callbacks",),
    ("callbacks", "EMA", "averages"),
    ("callbacks", "EMA", "averages", "weight"),
    ("callbacks", "ModelCheckpoint", "best"),
    ("callbacks", "Other"),
    ("frozen",),
    ("frozen", "first"),
    ("inside",),
    ("inside", "random"),
    ("more",),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_pickle_hidden_in_the_state_does_not_run(
    checkpoint: Path, tmp_path: Path, place: tuple[Any, ...]
) -> None:
    """At each position in a state, an object that would run code is refused."""
    state = torch.load(checkpoint / STATE, weights_only=True)
    put(state, place, Bomb(tmp_path / "canary"))
    torch.save(state, checkpoint / STATE)
    forge(checkpoint)
    assert_refused(checkpoint, STATE, tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_as_a_key_does_not_run(checkpoint: Path, tmp_path: Path, *, legacy: bool) -> None:
    """A key of a dict is refused too, in PyTorch's current format and its old one."""
    torch.save(
        {Bomb(tmp_path / "canary"): 1},
        checkpoint / STATE,
        _use_new_zipfile_serialization=not legacy,
    )
    forge(checkpoint)
    assert_refused(checkpoint, STATE, tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, STATE, HISTORY])
def test_a_bare_pickle_under_another_name_does_not_run(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    """A pickle that is renamed to any file of a checkpoint is not read."""
    (checkpoint / name).write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    forge(checkpoint)
    assert_refused(checkpoint, name, tmp_path)


def test_a_pickle_as_a_manifest_does_not_run(checkpoint: Path, tmp_path: Path) -> None:
    """A manifest must be JSON."""
    (checkpoint / MANIFEST).write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    assert_refused(checkpoint, MANIFEST, tmp_path)


def test_weights_of_torch_under_the_name_of_safetensors_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A file of torch.save with code in it is not a safetensors file."""
    torch.save({"weight": Bomb(tmp_path / "canary")}, checkpoint / WEIGHTS)
    forge(checkpoint)
    assert_refused(checkpoint, WEIGHTS, tmp_path)


def safetensors_of(header: Any, data: bytes = b"\0" * 60, length: int | None = None) -> bytes:
    """Return the bytes of a safetensors file with any header and any length claimed for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: tuple[int, ...] = (3, 4)) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


LIES: dict[str, bytes] = {
    "a length beyond the file": safetensors_of({}, length=1 << 20),
    "a length beyond any memory": safetensors_of({}, length=(1 << 63) - 1),
    "a length of all ones": safetensors_of({}, length=(1 << 64) - 1),
    "offsets beyond the file": safetensors_of({"weight": tensor(1 << 40, (1 << 40) + 48)}),
    "negative offsets": safetensors_of({"weight": tensor(-48, 0)}),
    "offsets the wrong way round": safetensors_of({"weight": tensor(48, 0)}),
    "a shape larger than its bytes": safetensors_of({"weight": tensor(0, 48, (1 << 20, 1 << 20))}),
    "a shape that overflows": safetensors_of({"weight": tensor(0, 48, (1 << 62, 1 << 62))}),
    "overlapping tensors": safetensors_of({"weight": tensor(0, 48), "bias": tensor(36, 48, (3,))}),
    "deep nesting": safetensors_of(b"[" * 100_000),
    "an empty file": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_false_header_of_the_weights_is_refused(
    checkpoint: Path, tmp_path: Path, lie: str
) -> None:
    """False lengths, offsets and shapes allocate no memory and load no values."""
    (checkpoint / WEIGHTS).write_bytes(LIES[lie])
    forge(checkpoint)
    with bounded_memory():
        assert_refused(checkpoint, WEIGHTS, tmp_path)


def torch_file(content: bytes, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return the bytes of a file of torch.save with a custom pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("state/data.pkl", content)
        archive.writestr("state/byteorder", "little")
        archive.writestr("state/version", "3\n")
    return file.getvalue()


FOUR_GIBIBYTES = b"\x8a\x05\x00\x00\x00\x00\x01"
BOMBS: dict[str, bytes] = {
    "bytes of a claimed size": torch_file(
        b"\x80\x02cbuiltins\nbytearray\n" + FOUR_GIBIBYTES + b"\x85R."
    ),
    "a tensor of a claimed size": torch_file(
        b"\x80\x02ctorch\nFloatTensor\n" + FOUR_GIBIBYTES + b"\x85R."
    ),
    "a compressed pickle": torch_file(
        b"\x80\x02X" + struct.pack("<I", 100 * MEBIBYTE) + b"a" * (100 * MEBIBYTE) + b".",
        compression=zipfile.ZIP_DEFLATED,
    ),
    "deep nesting": torch_file(b"\x80\x02" + b"(" * 10_000 + b"t" * 10_000 + b"."),
    "no pickle": torch_file(b"\x00\x01\x02"),
    "an archive without a pickle": torch_file(b"")[:-30] + b"\0" * 30,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_state_that_would_fill_the_memory_is_refused(
    checkpoint: Path, tmp_path: Path, bomb: str
) -> None:
    """Claimed sizes are not allocated."""
    (checkpoint / STATE).write_bytes(BOMBS[bomb])
    forge(checkpoint)
    with bounded_memory():
        assert_refused(checkpoint, STATE, tmp_path)


@pytest.mark.parametrize("state", [None, 5, [1, 2], "text", torch.ones(2)])
def test_a_state_of_another_type_is_refused(
    checkpoint: Path, tmp_path: Path, state: object
) -> None:
    """A file that PyTorch reads safely but that is not a dict is not a state."""
    torch.save(state, checkpoint / STATE)
    forge(checkpoint)
    assert_refused(checkpoint, STATE, tmp_path)


@pytest.mark.parametrize(
    "history",
    ["[" * 100_000, "{}", "[1]", '[{"epoch": "one"}]', '[{"epoch": [1]}]', "\ufeff", "[", "null"],
)
def test_a_history_of_another_type_is_refused(
    checkpoint: Path, tmp_path: Path, history: str
) -> None:
    """A history is a list of rows of numbers, without deeper nesting."""
    (checkpoint / HISTORY).write_text(history)
    forge(checkpoint)
    assert_refused(checkpoint, HISTORY, tmp_path)


MANIFESTS: dict[str, str] = {
    "deep nesting": "[" * 500_000,
    "a deep digest": '{"digest": "' + "0" * 64 + '", "a": ' + "[" * 900 + "]" * 900 + "}",
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "no digest": "{}",
    "a huge number": '{"digest": ' + "9" * 100_000 + "}",
    "no JSON": "%",
    "NUL": "\0" * 100,
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_of_another_type_is_refused(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    """JSON of any other form is reported as damage."""
    (checkpoint / MANIFEST).write_text(MANIFESTS[kind])
    with bounded_memory():
        assert_refused(checkpoint, MANIFEST, tmp_path)


def test_a_huge_manifest_is_not_read(checkpoint: Path, tmp_path: Path) -> None:
    """A manifest of 100 MB allocates no memory, and is reported as too long."""
    os.truncate(checkpoint / MANIFEST, 100 * MEBIBYTE)
    with bounded_memory(), pytest.raises(CheckpointError, match="too long") as caught:
        open_checkpoint(checkpoint)
    assert str(checkpoint / MANIFEST) in str(caught.value)
    assert_refused(checkpoint, MANIFEST, tmp_path)


FORGED: dict[str, dict[str, Any]] = {
    "no files": {"files": {}},
    "files in a list": {"files": [WEIGHTS, STATE, HISTORY]},
    "files outside": {"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}},
    "sizes in words": {"files": {n: {"bytes": "1", "sha256": "0"} for n in (WEIGHTS, STATE)}},
    "format in words": {"format": "1"},
    "an epoch in words": {"epoch": "1"},
    "a step below zero": {"step": -1},
    "no batch": {"batch": None},
    "no age": {"created_ns": None},
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_manifest_with_a_missing_key_is_refused(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    """A correct digest is not enough."""
    forge(checkpoint, **FORGED[kind])
    assert_refused(checkpoint, MANIFEST, tmp_path)


def test_a_later_format_is_named_with_the_version_that_wrote_it(checkpoint: Path) -> None:
    """An unknown format is not reported as damage."""
    forge(checkpoint, format=2, finetunelib="9.9.9", files=None)
    with pytest.raises(CheckpointError, match=r"format 2.*9\.9\.9"):
        open_checkpoint(checkpoint)


def test_a_manifest_cannot_name_files_outside_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    """Files with unknown names are never opened, read or deleted."""
    secret = tmp_path / "secret"
    secret.write_text("of the user")
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    extra = {name: {"bytes": 1, "sha256": "0" * 64} for name in ("../../secret", str(secret))}
    forge(checkpoint, files=manifest["files"] | extra)
    resumed = watched(tmp_path)
    resumed.fit(DATA, epochs=2, resume_from=checkpoint)
    resumed.save_checkpoint(checkpoint)
    assert secret.read_text() == "of the user"


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", "a/b", "", ".", "epoch-1", 7])
def test_the_best_one_of_a_file_cannot_lead_out_of_the_folder(
    tmp_path: Path, name: str | int
) -> None:
    """A name that ModelCheckpoint would not give is refused, and nothing is loaded."""
    callback = ModelCheckpoint(tmp_path, monitor="train_loss")
    with pytest.raises(CheckpointError, match="best") as caught:
        callback.load_state_dict({"best": name, "improvement": {"best": 0.0}})
    assert repr(name) in str(caught.value)
    assert callback.best_path is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
@pytest.mark.parametrize("name", [WEIGHTS, STATE, HISTORY, MANIFEST])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(checkpoint: Path, name: str) -> None:
    """A file that could be read forever is refused immediately."""
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    failures: list[BaseException] = []

    def look() -> None:
        try:
            newest_checkpoint(checkpoint)
        except CheckpointError as error:
            failures.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert str(checkpoint / name) in str(failures[0])


def test_a_bomb_would_have_worked(tmp_path: Path) -> None:
    """The object of these tests does run code from a plain pickle."""
    assert copyreg.dispatch_table.get(Bomb) is None
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
