"""The trainers by name. Each is imported when it is used."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import cast

from _peers.base import Peer

#: Module and class of each trainer, the hand-written loop and this library first.
PEERS = {
    "hand": "hand.Hand",
    "finetunelib": "ours.Ours",
    "lightning": "by_lightning.Lightning",
    "ignite": "by_ignite.Ignite",
    "skorch": "by_skorch.Skorch",
    "accelerate": "by_accelerate.Accelerate",
    "fastai": "by_fastai.Fastai",
    "transformers": "by_transformers.Transformers",
    "keras": "by_keras.Keras",
}

#: The distributions of those whose name differs.
DISTRIBUTIONS = {"ignite": "pytorch-ignite", "hand": "torch"}


def version_of(name: str) -> str | None:
    """Return the version of a trainer, or `None` if it is not installed."""
    try:
        return metadata.version(DISTRIBUTIONS.get(name, name))
    except metadata.PackageNotFoundError:
        return None


def peer_of(name: str) -> type[Peer]:
    """Return the class of a trainer."""
    module, _, kind = PEERS[name].partition(".")
    return cast("type[Peer]", getattr(import_module(f"_peers.{module}"), kind))
