"""Keras with PyTorch."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _peers.base import LR, MOMENTUM, Arrays, Data, Feed, Job, Peer, as_loader, loader_of

os.environ["KERAS_BACKEND"] = "torch"

import keras


class _Nothing(keras.callbacks.Callback):  # type: ignore[misc]
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Do nothing."""


def _converted(model: nn.Module) -> Any:
    """Return the model with keras's layers; a backbone that has none is wrapped."""
    layers: list[Any] = []
    for module in _layers_of(model):
        if isinstance(module, nn.Linear):
            dense = keras.layers.Dense(module.out_features, use_bias=module.bias is not None)
            dense.build((None, module.in_features))
            dense.set_weights([value.detach().numpy().T for value in module.parameters()])
            dense.trainable = module.weight.requires_grad
            layers.append(dense)
        elif isinstance(module, nn.ReLU):
            layers.append(keras.layers.ReLU())
        elif not isinstance(module, nn.Flatten):
            wrapped = keras.layers.TorchModuleWrapper(module)
            wrapped.trainable = False
            layers.append(wrapped)
    return keras.Sequential(layers)


def _layers_of(model: nn.Module) -> list[nn.Module]:
    head = getattr(model, "fc", None)
    if isinstance(head, nn.Linear):  # A ResNet.
        return [nn.Sequential(*list(model.children())[:-1], nn.Flatten()), head]
    parts = list(model.children())
    return [leaf for part in parts for leaf in _layers_of(part)] if parts else [model]


class Keras(Peer):
    """A converted model, compiled without XLA, trained on arrays."""

    name = "keras"
    statement = "import os; os.environ['KERAS_BACKEND'] = 'torch'; import keras"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        self.keras = _converted(model)
        self.keras.compile(
            optimizer=keras.optimizers.SGD(LR, momentum=MOMENTUM),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"] if job.metric else None,
            jit_compile=False,
        )
        self._options: dict[str, Any] = {
            "epochs": job.epochs,
            "verbose": 1 if job.bar else 0,
            "callbacks": [_Nothing() for _ in range(job.callbacks)],
        }

    def fit(self, feed: Feed) -> None:
        self.keras.fit(as_loader(feed), **self._options)

    def train(self, data: Data) -> None:
        if isinstance(data, tuple):
            inputs, targets = (values.numpy() for values in data)
            self.keras.fit(inputs, targets, batch_size=self.job.batch_size, **self._options)
        else:
            self.fit(loader_of(data, self.job, shuffle=True))

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        inputs, targets = (values.numpy() for values in data)
        found = self.keras.evaluate(inputs, targets, batch_size=self.job.batch_size, verbose=0)
        return float(found[0]), float(found[1])

    def predict(self, inputs: Tensor) -> Tensor:
        size = self.job.batch_size
        return torch.from_numpy(self.keras.predict(inputs.numpy(), batch_size=size, verbose=0))

    def save(self, folder: Path) -> None:
        self.keras.save(folder / "keras.keras")

    def restore(self, folder: Path) -> None:
        self.keras = keras.models.load_model(folder / "keras.keras")
