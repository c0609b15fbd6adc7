"""Saving and restoring a model and its optimizer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _parts.paired import Prepared, alternate, with_noise
from _peers.base import Job, Peer
from _peers.names import peer_of


def measure(names: Sequence[str], rounds: int, folder: Path, width: int = 2048) -> dict[str, Any]:
    """Return the processor times for a model of three square layers, trained for one step."""
    peers: dict[str, Peer] = {}
    folders: dict[str, Path] = {}
    failed: dict[str, Any] = {}
    batch = torch.rand(10, width), torch.arange(10)
    for label, name in with_noise(names):
        folders[label] = folder / label
        folders[label].mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
        peers[label] = peer_of(name)(model, Job(metric=False, folder=folders[label], classes=width))
        try:
            peers[label].fit([batch])
        except Exception as error:  # noqa: BLE001 - a trainer that cannot do this is reported
            failed[label] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    able = [label for label in peers if label not in failed]
    save = alternate({at: partial(_save, peers[at], folders[at]) for at in able}, rounds)
    restore = alternate({at: partial(_restore, peers[at], folders[at]) for at in able}, rounds)
    return {"save": save | failed, "restore": restore | failed}


def _save(peer: Peer, folder: Path) -> Prepared:
    shutil.rmtree(folder)
    folder.mkdir()
    return partial(peer.save, folder)


def _restore(peer: Peer, folder: Path) -> Prepared:
    return partial(peer.restore, folder)
