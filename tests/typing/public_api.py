"""The types of the public API, checked by mypy and pyright; this file is not run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, assert_type

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import ResNet, resnet18

from finetunelib import Trainer, build_mlp, export_onnx, freeze_and_replace_head, visualize
from finetunelib.callbacks import EMA, EarlyStopping, ModelCheckpoint
from finetunelib.data import InMemoryDataset, TensorBatches, in_memory
from finetunelib.export import (
    ExportReport,
    OnnxMetadata,
    Verification,
    load_onnx_metadata,
    verify_onnx,
)
from finetunelib.finetuning import (
    Certificate,
    Head,
    LoadReport,
    find_head,
    fingerprint,
    freeze,
    is_frozen,
    load_weights,
    replace_head,
    save_weights,
    unfreeze,
)
from finetunelib.models import MLP
from finetunelib.training import Accuracy, History, StepOutput, Task
from finetunelib.visualization import (
    NetronServer,
    Summary,
    SummaryRow,
    plot_confusion,
    plot_history,
    plot_predictions,
    summary,
)

inputs, targets = torch.zeros(4, 784), torch.zeros(4).long()
dataset = TensorDataset(inputs, targets)

model = build_mlp(784, [500], 10, activation=nn.GELU, normalization=nn.BatchNorm1d)
assert_type(model, MLP)

trainer = Trainer(
    model,
    loss_fn=nn.CrossEntropyLoss(),
    optimizer=partial(torch.optim.AdamW, weight_decay=0.1),
    lr=1e-3,
    lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, 10),
    metrics={"accuracy": Accuracy(), "mean": lambda outputs, targets: outputs.mean()},
    callbacks=[EarlyStopping(), EMA(), ModelCheckpoint("runs", every_n_steps=100, keep=3)],
    precision="bf16-mixed",
)
Trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
Trainer(model, optimizer=torch.optim.Adam)
assert_type(trainer.fit((inputs, targets), DataLoader(dataset), epochs=1), History)
trainer.fit(dataset, [(inputs, targets)], max_steps=3)
trainer.fit((inputs.numpy(), targets.numpy()), epochs=1)
trainer.fit(dataset, epochs=3, resume_from=Path("runs"))
assert_type(trainer.save_checkpoint("runs/last"), Path)
trainer.load_checkpoint("runs")
assert_type(trainer.history["val_loss"], Sequence[float])
assert_type(trainer.evaluate(dataset), dict[str, float])
assert_type(trainer.predict(inputs), Tensor)

assert_type(freeze_and_replace_head(model, num_classes=5), MLP)
assert_type(freeze_and_replace_head(resnet18(), num_classes=5), ResNet)
freeze_and_replace_head(model, head=lambda features: nn.Linear(features, 2), at="head")
assert_type(find_head(model), Head)
assert_type(find_head(model, (inputs, targets)), Head)
assert_type(find_head(model, {"input_ids": targets}), Head)
assert_type(replace_head(model, 5, example_input={"input_ids": targets}), nn.Module)
assert_type(freeze(model, ["backbone", model.head, "*.bias"], except_="head"), dict[str, str])
assert_type(freeze(model, except_last=1), dict[str, str])
unfreeze(model, last=1)
assert_type(is_frozen(model, "head"), bool)
assert_type(fingerprint(model), dict[str, str])
assert_type(trainer.history.certificate, Certificate | None)
assert_type(save_weights(model, "a.safetensors"), Path)
assert_type(load_weights(model, Path("a.safetensors")), LoadReport)

report = export_onnx(model, "a.onnx", inputs, sample_inputs=inputs)
assert_type(report, ExportReport)
export_onnx(model, "a.onnx", (inputs, targets))
export_onnx(
    model,
    "a.onnx",
    {"tokens": inputs},
    dynamic_shapes={"tokens": {1: "length"}},
    labels=("a", "b"),
    preprocessing=((0.1, 0.2, 0.3), 0.5),
    metadata={"author": "me"},
    certificate=trainer.history.certificate,
)
metadata: OnnxMetadata = load_onnx_metadata("a.onnx")
labels: list[str] | None = metadata["labels"]
export_onnx(model, "a.onnx", {"inputs": inputs})
assert_type(verify_onnx("a.onnx", model, [inputs]), Verification)

with visualize(model) as server:
    assert_type(server, NetronServer)
    assert_type(server.url, str)

table = summary(model, depth=2)
assert_type(table, Summary)
assert_type(table.rows, tuple[SummaryRow, ...])
assert_type(table.bytes, int)
summary(model, (inputs, targets))
summary(model, {"inputs": inputs})

assert_type(plot_history(trainer.history), Figure)
plot_history({"one": trainer.history}, metrics=["loss", "lr"], title="Runs", dark=True)
assert_type(plot_confusion(model, dataset, class_names=["a", "b"], normalize=False), Figure)
assert_type(plot_predictions(model, (inputs, targets), count=9), Figure)
plot_predictions(model, DataLoader(dataset), to_image=lambda sample: sample.reshape(28, 28))
plot_predictions(model, dataset, mean=(0.5, 0.5, 0.5), std=inputs)

assert_type(in_memory(dataset), InMemoryDataset)
for batch in TensorBatches(inputs, targets, batch_size=2).epoch(0):
    assert_type(batch, Any)  # A tuple of tensors or dicts of them, or one dict.


class Own(Task):
    """A custom task."""

    def step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> StepOutput:
        """Compute a loss."""
        outputs = model(batch[0])
        return StepOutput(outputs.mean(), outputs, batch[1], len(outputs))


Trainer(model, task=Own())

Trainer(model, precision="fp8")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
build_mlp("784", [500], 10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
