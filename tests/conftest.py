"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run torch on one thread, which is faster for small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder with the real MNIST. Without it a test is skipped, or fails in CI."""
    default = Path(__file__).parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("FINETUNELIB_DATA") or default)
    if not (folder / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        message = f"MNIST is not in {folder}; set FINETUNELIB_DATA"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
