"""Fixtures for all tests of callbacks."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """Run each test in this folder on one thread."""
