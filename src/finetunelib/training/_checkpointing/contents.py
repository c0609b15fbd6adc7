"""Checks every value in a checkpoint before any of it is used.

The digests of a checkpoint show that its files did not change, and not who wrote them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import TypeIs

from finetunelib._arguments import is_count, is_number
from finetunelib._escapes import one_line
from finetunelib._preserve import random_state_preserved, set_random_states
from finetunelib.errors import CheckpointError
from finetunelib.training._checkpointing.manifest import HISTORY, STATE
from finetunelib.training._history import History

#: The random states that every position has, and those of accelerators.
_RANDOM, _DEVICES = ("torch", "numpy", "python"), ("cuda", "mps")

#: The bytes in the state of a generator of an accelerator.
_DEVICE_STATE = 16

#: The keys of a `DataSignature`, without the names of the metrics, and the one that is optional.
_READING = ("samples", "batch_size", "batches", "gradient_accumulation_steps")
_STEPS_OF_ROW = "validate_every_n_steps"


class Contents:
    """The state in a checkpoint, whose values are compared with what a run can have.

    Args:
        path: The folder of the checkpoint.
        state: The state.
    """

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        self._file = path / STATE
        self._state = state

    def check(self, condition: bool, where: str, expected: str) -> None:
        """Raise if a condition about a value does not hold.

        Args:
            condition: The condition.
            where: How to reach the value in the state.
            expected: What the value must be.

        Raises:
            CheckpointError: If it does not hold.
        """
        if not condition:
            raise CheckpointError(
                f"`{self._file}` contains a state that does not fit: `{one_line(where)}` must be "
                f"{expected}. Pass the same optimizer, schedule and callbacks, or use another "
                "checkpoint."
            )

    def as_dict(self, value: object, where: str) -> dict[Any, Any]:
        """Return a value that must be a dict.

        Raises:
            CheckpointError: If it is not.
        """
        if not isinstance(value, dict):
            self.check(False, where, "a dict")
        return cast("dict[Any, Any]", value)

    def check_parts(self) -> None:
        """Raise if a part of the state has another type, except the optimizer and the position.

        Raises:
            CheckpointError: If a part has another type.
        """
        state = self._state
        for name in ("optimizer", "schedule", "precision", "callbacks", "buffers", "inside"):
            self.check(is_dict(state[name]), name, "a dict")
        for name, part in state["callbacks"].items():
            self.check(is_dict(part), f"callbacks.{name}", "a dict")
        for name, buffer in state["buffers"].items():
            plain = isinstance(buffer, Tensor) and buffer.layout is torch.strided
            self.check(plain and not buffer.is_quantized, f"buffers.{name}", "a tensor of values")
        frozen = state["frozen"]
        self.check(is_dict(frozen) and set(frozen) == {"first", "last"}, "frozen", "two dicts")
        self.check(_are_digests(frozen["first"] or {}), "frozen.first", "a dict of digests")
        self.check(_are_digests(frozen["last"]), "frozen.last", "a dict of digests")

    def check_position(self, batch: int) -> None:
        """Raise if the position in the data has values that no run has.

        Args:
            batch: The number of batches that were used, from the manifest.

        Raises:
            CheckpointError: If a value has another type, or does not agree with `batch`.
        """
        inside = self._state["inside"]
        if not inside:
            return  # The run had not started.
        reading = inside["reading"]
        keys = {*_READING, "metrics"}
        known = is_dict(reading) and keys <= set(reading) <= {*keys, _STEPS_OF_ROW}
        self.check(known, "inside.reading", "a dict of sizes")
        for name in (*_READING, _STEPS_OF_ROW):
            size = reading.get(name)
            self.check(size is None or is_count(size), f"inside.reading.{name}", "a size or None")
        metrics = reading["metrics"]
        self.check(_are_names(metrics), "inside.reading.metrics", "a list of names")
        batches = reading["batches"]
        self.check(batches is None or batch <= batches, "batch", f"at most {batches}")
        self._check_random(inside["random"])
        measured, by_steps = inside["measured"], reading.get(_STEPS_OF_ROW) is not None
        if batch or (measured and by_steps):
            self._check_measured(measured, metrics)
        else:
            self.check(measured == {}, "inside.measured", "empty between two epochs")
        for name in ("train", "val"):
            self._check_data(inside[name], f"inside.{name}")

    def _check_random(self, states: object) -> None:
        where = "inside.random"
        states = self.as_dict(states, where)
        known = set(_RANDOM) <= set(states) <= {*_RANDOM, *_DEVICES}
        self.check(known, where, "a dict of random states")
        for tensor in (*_listed(states.get("cuda")), *_listed(states.get("mps"))):
            self.check(_is_bytes(tensor), where, "a dict of random states")
        try:
            with random_state_preserved():
                set_random_states({name: states[name] for name in _RANDOM})
            possible = True
        except Exception:  # noqa: BLE001 - each generator has its own way to refuse a state
            possible = False
        self.check(possible, where, "states that the random generators accept")

    def _check_measured(self, measured: object, metrics: list[str]) -> None:
        where = "inside.measured"
        measured = self.as_dict(measured, where)
        self.check(set(measured) == {"loss", "metrics"}, where, "the sums of an unfinished epoch")
        loss = measured["loss"]
        sums = is_dict(loss) and set(loss) == {"sum", "weight"}
        sums = sums and all(is_number(value) for value in loss.values())
        self.check(sums, f"{where}.loss", "two numbers")
        states = self.as_dict(measured["metrics"], f"{where}.metrics")
        for name, state in states.items():
            known = name in metrics and is_dict(state)
            self.check(known, f"{where}.metrics.{name}", "the state of a metric of the run")

    def _check_data(self, data: object, where: str) -> None:
        generators = self.as_dict(data, where).get("generators", [])
        self.check(isinstance(generators, list), f"{where}.generators", "a list of states")
        for state in generators:
            self.check(_is_bytes(state), f"{where}.generators", "a list of states")
            try:
                if len(state) > _DEVICE_STATE:
                    torch.Generator().set_state(state)
                possible = True
            except (RuntimeError, TypeError):
                possible = False
            self.check(possible, f"{where}.generators", "states that a generator accepts")

    def check_like(self, saved: object, current: object, where: str) -> None:
        """Raise if a saved value is not of the kind of the current one.

        A dict may have more or fewer keys than the current one, as another version of PyTorch may.

        Raises:
            CheckpointError: If it is of another kind, or a list has another length.
        """
        if current is None or (saved is None and not is_number(current)):
            return
        if isinstance(current, Mapping):
            values = self.as_dict(saved, where)
            for name in values.keys() & current.keys():
                self.check_like(values[name], current[name], f"{where}.{name}")
        elif isinstance(current, list | tuple):
            items = list(saved) if isinstance(saved, list | tuple) else []
            same = isinstance(saved, list | tuple) and len(items) == len(current)
            self.check(same, where, f"a list of {len(current)} values")
            for position, (one, other) in enumerate(zip(items, current, strict=True)):
                self.check_like(one, other, f"{where}[{position}]")
        elif is_number(current) or isinstance(current, Tensor):
            number = is_number(saved) or (isinstance(saved, Tensor) and saved.numel() == 1)
            same_shape = getattr(saved, "shape", None) == getattr(current, "shape", ())
            self.check(number or same_shape, where, "a number")
        else:
            self.check(type(saved) is type(current), where, f"a {type(current).__name__}")


def check_history(path: Path, history: History, manifest: Mapping[str, Any]) -> None:
    """Raise if a history is not that of a run with the counters of a manifest.

    Args:
        path: The folder of the checkpoint.
        history: Its rows.
        manifest: Its manifest.

    Raises:
        CheckpointError: If the number of rows or one of their counters does not agree.
    """
    check = _wrong_steps if "rows" in manifest else _wrong_epochs
    wrong = check(history, manifest)
    if wrong:
        raise CheckpointError(
            f"`{path / HISTORY}` does not agree with its checkpoint: {wrong}. Use another "
            "checkpoint."
        )


def _wrong_epochs(history: History, manifest: Mapping[str, Any]) -> str:
    """Return what is wrong with a history of one row for each epoch, or an empty string."""
    epoch, step = manifest["epoch"], manifest["step"]
    if len(history) != epoch:
        return f"it has {len(history)} rows, but the run had completed {epoch} epochs"
    last = 0.0
    for number, row in enumerate(history.rows, start=1):
        if row.get("epoch", number) != number:
            return f"row {number} is that of epoch {row['epoch']:.0f}"
        steps = row.get("step", last)
        if not last <= steps <= step:
            return f"row {number} has {steps:.0f} of {step} steps"
        last = steps
    return ""


def _wrong_steps(history: History, manifest: Mapping[str, Any]) -> str:
    """Return what is wrong with a history whose rows follow steps, or an empty string."""
    step, last_epoch = manifest["step"], manifest["epoch"] + (manifest["batch"] > 0)
    last = {"epoch": 1.0, "step": 0.0}
    for number, row in enumerate(history.rows, start=1):
        if not {"epoch", "step"} <= row.keys():
            return f"row {number} has no epoch or no step"
        if not last["epoch"] <= row["epoch"] <= last_epoch:
            return f"row {number} is that of epoch {row['epoch']:.0f} of {last_epoch}"
        if not last["step"] < row["step"] <= step:
            return f"row {number} has {row['step']:.0f} of {step} steps"
        last = row
    return ""


def is_dict(value: object) -> TypeIs[dict[Any, Any]]:
    """Return whether a value is a dict."""
    return isinstance(value, dict)


def is_finite(value: object) -> bool:
    """Return whether a value is a finite number, or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and math.isfinite(value.item())
    return is_number(value) and abs(value) < 2**63


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_digests(value: object) -> bool:
    return is_dict(value) and all(
        isinstance(name, str)
        and isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{64}", digest) is not None
        for name, digest in value.items()
    )


def _is_bytes(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.uint8 and value.ndim == 1


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
