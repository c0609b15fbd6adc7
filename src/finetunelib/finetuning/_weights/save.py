"""Writing a model's weights to a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._files.atomic import atomic_file
from finetunelib._files.paths import check_writable
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.errors import InvalidArgumentError, PathNotWritableError
from finetunelib.finetuning._weights.state import check_has_values, tensors_of, tied_names


@public("finetunelib.finetuning")
def save_weights(model: nn.Module, path: StrPath) -> Path:
    """Write a model's parameters and buffers to a safetensors file, atomically.

    Tied tensors are written once. A model wrapped by torch.compile or data parallelism is saved
    under the names inside the wrapper.

    Args:
        model: The model, on any device.
        path: The file to write, ending in `.safetensors`. Missing folders are created.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If `path` has another ending, or the model's state contains something
            other than tensors, or tensors on the meta device.
        InvalidTypeError: If `model` is not an `nn.Module`.
        PathNotWritableError: If the file cannot be written. An existing file is unchanged.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import save_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(build_mlp(4, [], 2), os.path.join(folder, "mlp.safetensors")).name
        'mlp.safetensors'
    """
    check_model(model)
    file = check_writable(path)
    if file.suffix != ".safetensors":
        raise InvalidArgumentError(
            f"`path` must end in .safetensors, a format that cannot contain code, got `{file}`. "
            f"Write `{file.with_suffix('.safetensors').name}`."
        )
    check_has_values(tensors_of(unwrapped(model)))
    with atomic_file(file) as temporary:
        write_tensors(tensors_to_write(model), temporary, place=file)
    return file


def tensors_to_write(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers on the CPU, tied ones under their first name.

    Raises:
        InvalidArgumentError: If the model's state contains something without values.
    """
    state = tensors_of(unwrapped(model))
    check_has_values(state)
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for names in tied_names(state):
        tensor = state[names[0]].detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory.
        tensors[names[0]] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors


def write_tensors(tensors: Mapping[str, Tensor], file: Path, *, place: Path) -> None:
    """Write tensors to a temporary safetensors file.

    Args:
        tensors: The tensors on the CPU, which must be contiguous and share no memory.
        file: The file to write.
        place: The final path of the file, for messages.

    Raises:
        PathNotWritableError: If the file cannot be written.
    """
    # Imported here because the package should stay fast to import.
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise PathNotWritableError(f"`{place}` could not be written: {error}") from error
