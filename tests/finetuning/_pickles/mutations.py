"""Loads mutated weights files and states of checkpoints under a limit on the address space.

Run it by hand for a long sweep, from the root of the repository:

    PYTHONPATH=src:tests python -m finetuning._pickles.mutations --count 10000

Each file must be loaded, or rejected by an error of the library that leaves the model unchanged. It
must not ask for more memory than the limit, nor take more than the CPU time of `_SECONDS`.
"""

from __future__ import annotations

import argparse
import collections
import gc
import hashlib
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from finetunelib import Trainer
from finetunelib.errors import FinetuneLibError
from finetunelib.finetuning import load_weights
from finetunelib.training._checkpointing.folder import open_checkpoint
from finetuning._pickles import handmade

#: The memory that a file may take: this many bytes, and this many times its size.
_BASE, _FACTOR = 256 * 2**20, 17

#: The CPU time that a file may take. On an idle machine it is a few seconds at most.
_SECONDS = 30

_INTERESTING = [0, 1, 4, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1]

_NAMES = [
    *("builtins.bytearray", "torch.FloatTensor", "torch.Tensor", "_codecs.encode", "builtins.set"),
    *("collections.OrderedDict", "collections.Counter", "torch.Size", "posix.system"),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_qtensor"),
    *("torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_meta_tensor_no_storage"),
    *("torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter", "torch.float32"),
]


class ViolationError(Exception):
    """A file did what no file may do."""


class Target:
    """A kind of file: its original bytes, where they are written, and how they are loaded."""

    def __init__(self, path: Path, load: Callable[[], object]) -> None:
        self.path = path
        self.original = path.read_bytes()
        self.load = load


def model() -> nn.Module:
    """Return the model that all weights files are loaded into."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def targets(folder: Path) -> dict[str, Target]:
    """Write one file of each kind, and return them by name."""
    torch.manual_seed(0)
    state = model().state_dict()
    torch.save(state, folder / "archive.pth")
    torch.save({"state_dict": state, "epoch": 3, "best": [0.5, None]}, folder / "nested.pt")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "plain.safetensors")}))
    names = ("archive.pth", "nested.pt", "legacy.pth", "plain.safetensors", index.name)
    found = {name: Target(folder / name, partial(_load, folder / name)) for name in names}
    return found | {"checkpoint": _checkpoint(folder / "checkpoint")}


def _load(path: Path) -> None:
    loaded = model()
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    try:
        load_weights(loaded, path)
    except FinetuneLibError:
        if any(not _same(before[n], t) for n, t in loaded.state_dict().items()):
            raise ViolationError("the model was changed") from None
        raise


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def _checkpoint(folder: Path) -> Target:
    data = torch.randn(16, 4), torch.randint(0, 3, (16,))
    trainer = Trainer(model(), optimizer=torch.optim.AdamW, progress=False, batch_size=8)
    trainer.fit(data, epochs=1)
    trainer.save_checkpoint(folder)
    return Target(folder / "state.pt", lambda: _load_checkpoint(folder))


def _load_checkpoint(folder: Path) -> object:
    """Load a state after updating its digests."""
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "state.pt").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["state.pt"] = {"bytes": len(content), "sha256": digest}
    del manifest["digest"]
    signed = json.dumps(manifest, sort_keys=True).encode()
    manifest["digest"] = hashlib.sha256(signed).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_checkpoint(folder).state


def mutate(content: bytes, other: bytes, generator: random.Random) -> bytes:
    """Return a file with a few random changes."""
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 4, 8])):
        place = generator.randrange(len(changed)) if changed else 0
        kind = generator.randrange(7)
        if kind == 0 and changed:
            changed[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[place : place + 8] = struct.pack("<Q", generator.choice(_INTERESTING))
        elif kind == 2:
            changed[place : place + 4] = struct.pack("<I", generator.choice(_INTERESTING) % 2**32)
        elif kind == 3:
            del changed[place : place + generator.randrange(1, 64)]
        elif kind == 4:
            piece = changed[place : place + generator.randrange(1, 64)]
            changed[place:place] = piece * generator.choice([1, 2, 1000])
        elif kind == 5:
            start = generator.randrange(len(other))
            changed[place:place] = other[start : start + generator.randrange(1, 256)]
        else:
            del changed[place:]
    return bytes(changed)


def program(generator: random.Random) -> bytes:
    """Return a pickle of random instructions, with numbers and names that may cause errors."""
    code = handmade.START + handmade.EMPTY_DICT + handmade.text("weight")
    for _ in range(generator.randrange(1, 200)):
        code += generator.choice(_PIECES)(generator)
    return code + b"s."


_PIECES: list[Callable[[random.Random], bytes]] = [
    lambda g: handmade.number(g.choice(_INTERESTING)),
    lambda g: handmade.text(g.choice(["a", "hex", "latin1", "storage", "cpu", "0", "a" * 5000])),
    lambda g: handmade.name(g.choice(_NAMES)),
    lambda g: g.choice([b"}", b"]", b")", b"N", b"\x88", b"(", b"t", b"\x85", b"\x86", b"\x87"]),
    lambda g: g.choice([b"R", b"R", b"b", b"\x81", b"a", b"e", b"s", b"u", b"Q"]),
    lambda g: g.choice([b"q", b"h", b"h"]) + bytes([g.randrange(4)]),
    lambda g: g.choice([b"](h\x00h\x00eq\x00", b"h\x00h\x00\x86q\x00"]) * g.choice([1, 30, 2000]),
    lambda g: g.choice([b"]", b")", b"}", b"N"]) * g.choice([10, 100_000]),
    lambda g: handmade.storage("0", g.choice(_INTERESTING)),
    lambda g: handmade.numbers(g.choice(_INTERESTING), g.choice(_INTERESTING)),
    lambda g: handmade.tensor(
        handmade.storage("0", 4),
        g.choice(_INTERESTING),
        handmade.numbers(g.choice(_INTERESTING)),
        handmade.numbers(g.choice([0, 1, 2**40])),
    ),
    lambda g: handmade.call(g.choice(_NAMES), handmade.number(g.choice(_INTERESTING))),
]


def run(count: int, seed: int) -> collections.Counter[str]:
    """Load `count` mutated files, and return the number of each outcome.

    Raises:
        ViolationError: If a file takes too much memory or time, changes a model, or raises an error
            that is not the library's.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    generator = random.Random(seed)
    signal.signal(signal.SIGVTALRM, _too_slow)
    with tempfile.TemporaryDirectory() as name:
        found = targets(Path(name))
        for target in found.values():
            target.load()  # Imports happen before memory is limited.
        for number in range(count):
            kind = generator.choice(list(found))
            target = found[kind]
            other = found[generator.choice(list(found))].original
            content = mutate(target.original, other, generator)
            if target.path.suffix in (".pth", ".pt") and generator.random() < 0.5:
                writer = handmade.write_legacy if kind == "legacy.pth" else handmade.write_archive
                content = writer(target.path, program(generator)).read_bytes()
            target.path.write_bytes(content)
            try:
                outcomes[f"{kind}: {_outcome(target, len(content))}"] += 1
            except ViolationError as violation:
                kept = Path(tempfile.gettempdir()) / f"{seed}-{number}-{target.path.name}"
                kept.write_bytes(content)
                raise ViolationError(f"{violation} (kept as {kept})") from violation
            target.path.write_bytes(target.original)
    return outcomes


def _outcome(target: Target, size: int) -> str:
    started = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    try:
        with _address_space(_BASE + _FACTOR * size), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.load()
    except FinetuneLibError as error:
        _check_causes(error)
        return "rejected"
    except ViolationError:
        raise
    except BaseException as error:
        raise ViolationError(f"{type(error).__name__}: {error}") from error
    else:
        return "loaded"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        gc.collect()
        _slowest[0] = max(_slowest[0], time.process_time() - started)


#: The CPU time of the slowest file.
_slowest = [0.0]


def _check_causes(error: BaseException | None) -> None:
    """Check that a file was not rejected only because memory was refused."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text:
            raise ViolationError(f"it asked for too much memory: {error}") from error
        error = error.__cause__


class _address_space:  # noqa: N801 - used like a function
    """Limits the address space to what the process has now and a number of bytes."""

    def __init__(self, room: int) -> None:
        self._room = room

    def __enter__(self) -> None:
        self._previous = resource.getrlimit(resource.RLIMIT_AS)
        status = Path("/proc/self/status").read_text()
        size = next(int(line.split()[1]) for line in status.splitlines() if "VmSize" in line)
        resource.setrlimit(resource.RLIMIT_AS, (1024 * size + self._room, self._previous[1]))

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._previous)


def _too_slow(number: int, frame: object) -> None:
    raise ViolationError(f"it took more than {_SECONDS} seconds")


def main() -> None:
    """Run a sweep, and print the outcomes."""
    parser = argparse.ArgumentParser(description="Load mutated files under a memory limit.")
    parser.add_argument("--count", type=int, default=10_000, help="the number of files")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the mutations")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for outcome, number in sorted(run(arguments.count, arguments.seed).items()):
        sys.stdout.write(f"{outcome} {number}\n")
    sys.stdout.write(f"slowest: {_slowest[0]:.1f} s of CPU time\n")


if __name__ == "__main__":
    main()
