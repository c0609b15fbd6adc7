"""Lightning."""

# pyright: reportMissingImports=false
from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from lightning import pytorch as lightning
from torch import Tensor, nn
from torch.nn import functional

from _peers.base import Arrays, Feed, Job, Peer, as_loader, concatenated, loader_of, sgd

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class _Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__()
        self.model = model
        self.metric = job.metric
        kind: dict[str, Any] = {"task": "multiclass", "num_classes": job.classes}
        self.train_accuracy = torchmetrics.Accuracy(**kind)
        self.val_accuracy = torchmetrics.Accuracy(**kind)

    def training_step(self, batch: Any, _: int) -> Tensor:
        outputs = self.model(batch[0])
        loss = functional.cross_entropy(outputs, batch[1])
        if self.metric:
            self.train_accuracy(outputs, batch[1])
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        outputs = self.model(batch[0])
        self.val_accuracy(outputs, batch[1])
        self.log("val_loss", functional.cross_entropy(outputs, batch[1]))
        self.log("val_accuracy", self.val_accuracy, on_step=False, on_epoch=True)

    def predict_step(self, batch: Any, _: int) -> Any:
        return self.model(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.model)


class Lightning(Peer):
    """A `LightningModule` that logs with torchmetrics."""

    name = "lightning"
    statement = "import lightning.pytorch"

    def __init__(self, model: nn.Module, job: Job) -> None:
        super().__init__(model, job)
        warnings.filterwarnings("ignore", module="lightning")
        self.module = _Module(model, job)
        self.trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=job.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=job.bar,
            enable_model_summary=False,
            callbacks=[lightning.Callback() for _ in range(job.callbacks)],
            default_root_dir=job.folder,
        )

    def fit(self, feed: Feed) -> None:
        # A second call trains more epochs.
        self.trainer.fit_loop.max_epochs = self.trainer.current_epoch + self.job.epochs
        self.trainer.fit(self.module, as_loader(feed))

    def evaluate(self, data: Arrays) -> tuple[float, float]:
        found = self.trainer.validate(self.module, loader_of(data, self.job), verbose=False)[0]
        return found["val_loss"], found["val_accuracy"]

    def predict(self, inputs: Tensor) -> Tensor:
        loader = loader_of((inputs,), self.job)  # type: ignore[arg-type]
        return concatenated(self.trainer.predict(self.module, loader))

    def save(self, folder: Path) -> None:
        self.trainer.save_checkpoint(folder / "lightning.ckpt")

    def restore(self, folder: Path) -> None:
        state = torch.load(folder / "lightning.ckpt", weights_only=False)
        self.module.load_state_dict(state["state_dict"])
        self.trainer.optimizers[0].load_state_dict(state["optimizer_states"][0])
