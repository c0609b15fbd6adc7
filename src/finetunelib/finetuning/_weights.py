"""Weights files: written whole as safetensors, read without running any code in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetunelib._files import check_readable, check_writable, whole_file
from finetunelib._typing import StrPath
from finetunelib.errors import (
    CorruptFileError,
    InvalidArgumentError,
    PathNotWritableError,
    WeightsMismatchError,
)

#: Keys under which training scripts keep a state dict inside a larger file.
_NESTED_UNDER = ("state_dict", "model_state_dict", "model")

_PICKLED = (".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of every tensor of a weights file and of the model.

    Attributes:
        path: The file that was read.
        loaded: Names of the model's tensors that now hold the file's values.
        missing: Names of the model that the file does not have.
        unexpected: Names of the file that the model does not have.
        wrong_shape: Name to (shape in the file, shape in the model), for names that both have.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import load_weights, save_weights
        >>> model = build_mlp(4, [8], 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_weights(model, os.path.join(folder, "mlp.safetensors"))
        ...     report = load_weights(model, path)
        >>> print(report)
        4 of 4 tensors loaded from mlp.safetensors.
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def match(self) -> float:
        """The share of the model's tensors that were loaded, in [0, 1]."""
        return len(self.loaded) / self._tensors if self._tensors else 1.0

    @property
    def _tensors(self) -> int:
        return len(self.loaded) + len(self.missing) + len(self.wrong_shape)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} of {self._tensors} tensors loaded from {self.path.name}."]
        if self.missing:
            lines.append(f"Missing in the file: {_listed(self.missing)}.")
        if self.unexpected:
            lines.append(f"Unknown to the model: {_listed(self.unexpected)}.")
        if self.wrong_shape:
            shapes = [
                f"{name} (file {list(theirs)}, model {list(ours)})"
                for name, (theirs, ours) in self.wrong_shape.items()
            ]
            lines.append(f"Of another shape: {_listed(shapes)}.")
        return "\n".join(lines)


def save_weights(model: nn.Module, path: StrPath) -> Path:
    """Write a model's parameters and buffers to a safetensors file, whole or not at all.

    Args:
        model: The model; where its tensors live does not matter.
        path: The file to write, ending in `.safetensors`. Missing folders are made.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: `path` has another ending, or the model holds state that is no
            tensor, or tensors on the meta device.
        PathNotWritableError: Nothing can be written there; a former file is unchanged.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import save_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(build_mlp(4, [], 2), os.path.join(folder, "mlp.safetensors")).name
        'mlp.safetensors'
    """
    from safetensors import SafetensorError  # Here: importing the package stays cheap.
    from safetensors.torch import save_file

    file = check_writable(path)
    if file.suffix != ".safetensors":
        raise InvalidArgumentError(
            f"`path` must end in .safetensors, but is `{file}`. That format cannot hold code; "
            f"write `{file.with_suffix('.safetensors').name}`."
        )
    state = _tensors_of(model)
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for names in _tied_names(state):
        tensor = state[names[0]].detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # A tensor that is a part of another is written as one of its own.
        tensors[names[0]] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    with whole_file(file) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise PathNotWritableError(f"`{file}` could not be written: {error}") from error
    return file


def load_weights(model: nn.Module, file: StrPath, *, minimum_match: float = 1.0) -> LoadReport:
    """Load a weights file into a model, and report every tensor that did not fit.

    Reads safetensors, and `.pth`, `.pt` or `.bin` files with `weights_only=True`, so that nothing
    in a file can run. A state dict may lie under a key `state_dict`, `model_state_dict` or
    `model`.

    Args:
        model: The model. Its tensors keep their device and dtype.
        file: The path of the weights file.
        minimum_match: The share of the model's tensors that the file must provide, in [0, 1].
            1 demands that names and shapes agree entirely, in both directions; less loads what
            fits and says in the report what did not.

    Returns:
        What was loaded, and what was missing, unexpected or of another shape.

    Raises:
        FileMissingError: There is no such file.
        CorruptFileError: The file is damaged, of another kind, or holds more than weights.
        WeightsMismatchError: Too little fits; the model is unchanged then.
        InvalidArgumentError: `minimum_match` is outside [0, 1], or the model holds state that is
            no tensor, or tensors on the meta device.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import load_weights, save_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_weights(build_mlp(4, [8], 3), os.path.join(folder, "mlp.safetensors"))
        ...     print(load_weights(build_mlp(4, [8], 5), path, minimum_match=0.5))
        2 of 4 tensors loaded from mlp.safetensors.
        Of another shape: head.weight (file [3, 8], model [5, 8]), head.bias (file [3], model [5]).
    """
    if not 0.0 <= minimum_match <= 1.0:
        raise InvalidArgumentError(f"`minimum_match` must be in [0, 1], but is {minimum_match}.")
    path = check_readable(file, purpose="weights file")
    theirs = _read(path)
    ours = _tensors_of(model)
    # Tied names stand for one tensor, which the file may hold under any of them.
    for names in _tied_names(ours):
        known = next((name for name in names if name in theirs), None)
        if known is not None:
            theirs |= {name: theirs[known] for name in names if name not in theirs}

    fitting = {
        name: tensor
        for name, tensor in theirs.items()
        if name in ours and tensor.shape == ours[name].shape
    }
    report = LoadReport(
        path,
        loaded=tuple(name for name in ours if name in fitting),
        missing=tuple(name for name in ours if name not in theirs),
        unexpected=tuple(name for name in theirs if name not in ours),
        wrong_shape={
            name: (tuple(theirs[name].shape), tuple(tensor.shape))
            for name, tensor in ours.items()
            if name in theirs and name not in fitting
        },
    )
    incomplete = minimum_match == 1.0 and bool(report.unexpected)
    if report.match < minimum_match or incomplete:
        raise WeightsMismatchError(
            f"`{path}` does not fit the model, which is unchanged. {report}\n"
            "If this is meant, pass the share that has to fit, such as `minimum_match=0.5`."
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            ours[name].copy_(tensor)
    return report


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name.

    Raises:
        InvalidArgumentError: The model's state holds something else, or has no values yet.
    """
    state = dict(model.state_dict())
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InvalidArgumentError(
                f"The model's state holds `{name}`, a {type(value).__name__} and no tensor, which "
                "a weights file cannot hold."
            )
        if value.is_meta:
            raise InvalidArgumentError(
                f"`{name}` is on the meta device and has no values. Give the model memory first: "
                '`model.to_empty(device="cpu")`.'
            )
    return state


def _tied_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of tensors, those of one and the same tensor together."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        same = (
            (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
            if tensor.numel()
            else (name,)
        )
        groups.setdefault(same, []).append(name)
    return list(groups.values())


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLED:
        return _read_pickled(path)
    raise CorruptFileError(
        f"`{path}` is of no known kind. Weights files end in .safetensors, {', '.join(_PICKLED)}."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(
            f"`{path}` is no whole safetensors file: {error}. Copy or download it again."
        ) from error
    return tensors


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptFileError(
            f"`{path}` holds more than weights (or is damaged), and loading it could run code: "
            f"{str(error).strip().partition(chr(10))[0]} Save only `model.state_dict()`, where the "
            "file comes from."
        ) from error
    # A damaged file makes torch's reader fail in any way; what it raises is about the file.
    except Exception as error:
        raise CorruptFileError(
            f"`{path}` cannot be read as a file of torch.save: {error}. Copy or download it again."
        ) from error
    for key in _NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CorruptFileError(
            f"`{path}` holds {_kind(content)}, but a state dict (name to tensor) is needed. "
            "Save `model.state_dict()`."
        )
    return dict(content)


def _kind(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict with the keys {_listed([str(key) for key in content])}"
    return f"an object of type {type(content).__name__}"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
