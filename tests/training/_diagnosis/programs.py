"""Programs with a mistake, by the code of its finding, and programs that look similar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp
from finetunelib.finetuning import freeze, replace_head

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(96, 6, generator=GENERATOR)
TARGETS = INPUTS[:, :3].argmax(1)
IMAGES = torch.randn(96, 3, 6, 6, generator=GENERATOR)
BYTES = torch.randint(0, 256, (96, 6), generator=GENERATOR).float()


@dataclass
class Program:
    """A model with its data and the options of its Trainer."""

    model: nn.Module
    inputs: Any = field(default_factory=lambda: INPUTS)
    targets: Tensor = field(default_factory=lambda: TARGETS)
    val: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def trainer(self) -> Trainer:
        """Return its Trainer."""
        options: dict[str, Any] = {"batch_size": 48, "progress": False} | self.options
        return Trainer(self.model, **options)

    @property
    def train(self) -> Any:
        """Its training data."""
        return self.inputs, self.targets


def mlp(*layers: nn.Module, outputs: int = 3) -> nn.Sequential:
    """Return a small network with layers after it."""
    return nn.Sequential(build_mlp(6, [8], outputs, seed=0), *layers)


def binary(*layers: nn.Module, **options: Any) -> Program:
    """Return a program with one output, two labels and BCEWithLogitsLoss."""
    labels = (INPUTS.sum(1, keepdim=True) > 0).float()
    return Program(
        mlp(*layers, outputs=1),
        targets=labels,
        options={"loss_fn": nn.BCEWithLogitsLoss()} | options,
    )


def nll(*layers: nn.Module) -> Program:
    """Return a program with NLLLoss."""
    return Program(mlp(*layers), options={"loss_fn": nn.NLLLoss()})


def large_logits(factor: float) -> Program:
    """Return a program whose model multiplies its logits."""
    model: Any = build_mlp(6, [8], 3, seed=0)
    with torch.no_grad():
        model.head.weight.mul_(factor)
    return Program(model)


def with_norm(**options: Any) -> nn.Sequential:
    """Return a network with BatchNorm and dropout in a part of its own."""
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(part, nn.Linear(8, 3))


def part_in_eval() -> Program:
    """Return a program whose BatchNorm is in eval mode together with the part around it."""
    model = with_norm()
    model[0].eval()
    return Program(model)


def new_head_frozen() -> Program:
    """Return a model whose new head is frozen with the rest of the model, except one layer."""
    model = replace_head(build_mlp(6, [8, 8], 5, seed=0), num_classes=3)
    model.requires_grad_(False)
    model.get_submodule("backbone.3").requires_grad_(True)
    return Program(model)


def norm_alone_in_eval() -> Program:
    """Return a program with only the BatchNorm in eval mode."""
    model: Any = with_norm()
    model[0][1].eval()
    return Program(model)


def dropout_part_in_eval() -> Program:
    """Return a program with a part in eval mode that has dropout and no BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)), nn.Linear(8, 3))
    model[0].eval()
    return Program(model)


def dropout_alone_in_eval() -> Program:
    """Return a program with only the dropout in eval mode, which somebody set."""
    model: Any = dropout_part_in_eval().model
    model.train()
    model[0][1].eval()
    return Program(model)


def frozen_norm() -> Program:
    """Return a program whose part with BatchNorm and dropout is frozen by this library."""
    model = with_norm()
    freeze(model, "0")
    return Program(model)


def convolutional(*, frozen: bool = False) -> nn.Sequential:
    """Return a network of images with BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    if frozen:
        freeze(model, "1")
    return model


class Unused(nn.Module):
    """Has a layer that `forward` does not use, or multiplies with zero."""

    def __init__(self, *, times_zero: bool, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.other = nn.Linear(6, 3), nn.Linear(6, 3)
        self.times_zero = times_zero
        self.other.requires_grad_(not frozen)

    def forward(self, inputs: Tensor) -> Any:
        outputs = self.used(inputs)
        return outputs + 0.0 * self.other(inputs) if self.times_zero else outputs


def in_bfloat16(optimizer: Any, lr: float) -> Program:
    """Return a program with weights in bfloat16."""
    model = build_mlp(6, [8], 3, seed=0)
    return Program(
        model.to(torch.bfloat16), INPUTS.bfloat16(), options={"optimizer": optimizer, "lr": lr}
    )


class Adapter(nn.Linear):
    """A layer with a low-rank update that starts from zero, as in LoRA."""

    def __init__(self, *, enabled: bool) -> None:
        torch.manual_seed(0)
        super().__init__(6, 3)
        self.requires_grad_(False)
        self.enabled = enabled
        self.lora_A = nn.Linear(6, 2, bias=False)
        self.lora_B = nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - the name of nn.Linear
        update = self.lora_B(self.lora_A(input))
        return super().forward(input) + (update if self.enabled else 0.0 * update)


class Embedded(nn.Module):
    """Divides bytes in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_mlp(6, [8], 3, seed=0)

    def forward(self, inputs: Tensor) -> Any:
        return self.inner(inputs / 255)


def leaking(count: int) -> Program:
    """Return a program with some training samples among 40 of its validation data."""
    others = torch.randn(40 - count, 6, generator=torch.Generator().manual_seed(1))
    return Program(mlp(), val=(torch.cat([INPUTS[:count], others]), TARGETS[:40]))


def few_distinct() -> Program:
    """Return a program with inputs of which there are only four."""
    torch.manual_seed(0)
    inputs = torch.randint(0, 2, (96, 2)).float().repeat(1, 3)
    return Program(mlp(), inputs, val=(inputs[:20].clone(), TARGETS[:20]))


def similar_images(*, leak: bool) -> Program:
    """Return a program with images whose middle is the same."""
    images = IMAGES.clone()
    images[:, 1] = 0.0
    train, val = images[:60], images[0 if leak else 60 :][:36]
    return Program(convolutional(frozen=True), train, TARGETS[:60], (val.clone(), TARGETS[:36]))


def constant_outputs() -> Program:
    """Return a program whose model returns the same row for each sample at first."""
    model: Any = build_mlp(6, [8], 3, seed=0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.2, 0.3, 0.5]))
    return Program(model)


#: What is wrong, by the code of the finding.
MISTAKES: dict[str, Callable[[], Program]] = {
    "softmax-before-cross-entropy": lambda: Program(mlp(nn.Softmax(1))),
    "log-softmax-before-cross-entropy": lambda: Program(mlp(nn.LogSoftmax(1))),
    "sigmoid-before-bce-with-logits": lambda: binary(nn.Sigmoid()),
    "logits-into-nll-loss": nll,
    "initial-loss-too-high": partial(large_logits, 300.0),
    "inputs-in-0-255": lambda: Program(mlp(), BYTES),
    "inputs-far-from-unit-scale": lambda: Program(mlp(), INPUTS * 1e-5),
    "labels-of-one-class": lambda: Program(mlp(), targets=torch.full((96,), 2)),
    "validation-in-training-data": partial(leaking, 40),
    "batchnorm-in-eval": norm_alone_in_eval,
    "batchnorm-with-one-sample": lambda: Program(
        convolutional(), IMAGES[:24], TARGETS[:24], options={"batch_size": 1}
    ),
    "dropout-in-eval": dropout_part_in_eval,
    "new-head-frozen": new_head_frozen,
    "parameter-without-gradient": lambda: Program(Unused(times_zero=False)),
    "update-below-precision": partial(in_bfloat16, torch.optim.AdamW, 1e-6),
    "adapter-not-moving": lambda: Program(Adapter(enabled=False)),
}

#: Other ways to make the same mistakes.
VARIANTS: dict[str, tuple[str, Callable[[], Program]]] = {
    "softmax in a function of tokens": (
        "softmax-before-cross-entropy",
        lambda: Program(nn.Sequential(mlp(), nn.Softmax(1), nn.Unflatten(1, (3, 1)), nn.Flatten())),
    ),
    "sigmoid and a view": (
        "sigmoid-before-bce-with-logits",
        lambda: binary(nn.Sigmoid(), nn.Unflatten(1, (1, 1)), nn.Flatten()),
    ),
    "probabilities into NLLLoss": ("logits-into-nll-loss", lambda: nll(nn.Softmax(1))),
    "scores below zero into NLLLoss": ("logits-into-nll-loss", lambda: nll(nn.LogSigmoid())),
    "large inputs": ("inputs-far-from-unit-scale", lambda: Program(mlp(), INPUTS * 1e4)),
    "labels of one class, with BCE": (
        "labels-of-one-class",
        lambda: Program(
            mlp(outputs=1),
            targets=torch.ones(96, 1),
            options={"loss_fn": nn.BCEWithLogitsLoss()},
        ),
    ),
    "one of forty samples": ("validation-in-training-data", partial(leaking, 1)),
    "one of two validation sets": (
        "validation-in-training-data",
        lambda: Program(
            mlp(), val={"new": (INPUTS + 1, TARGETS), "old": (INPUTS.clone(), TARGETS)}
        ),
    ),
    "images with the same middle": (
        "validation-in-training-data",
        partial(similar_images, leak=True),
    ),
    "SGD with momentum in bfloat16": (
        "update-below-precision",
        partial(in_bfloat16, partial(torch.optim.SGD, momentum=0.9), 1e-6),
    ),
}

#: What looks like a mistake and is none.
NEAR_MISSES: dict[str, Callable[[], Program]] = {
    "logits": lambda: Program(mlp()),
    "log-probabilities for NLLLoss": lambda: nll(nn.LogSoftmax(1)),
    "positive logits that do not sum to 1": lambda: Program(mlp(nn.ReLU())),
    "logits between 0 and 1": lambda: Program(mlp(nn.Sigmoid())),
    "a last layer of zeros with biases that sum to 1": constant_outputs,
    "logits between 0 and 1, with BCE": lambda: binary(nn.Hardtanh(0.0, 1.0)),
    "a sigmoid for BCELoss": lambda: binary(nn.Sigmoid(), loss_fn=nn.BCELoss()),
    "a confident model": partial(large_logits, 10.0),
    "class weights with label smoothing": lambda: Program(
        mlp(),
        options={
            "loss_fn": nn.CrossEntropyLoss(torch.tensor([0.001, 100.0, 0.1]), label_smoothing=0.2)
        },
    ),
    "bytes that the model divides": lambda: Program(Embedded(), BYTES),
    "bytes that BatchNorm scales": lambda: Program(
        nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), BYTES
    ),
    "double precision": lambda: Program(mlp().double(), INPUTS.double()),
    "whole numbers up to 20": lambda: Program(mlp(), (BYTES / 13).round()),
    "inputs of which all are zero": lambda: Program(
        mlp(), torch.zeros(96, 6), torch.zeros(96).long()
    ),
    "indices of an embedding": lambda: Program(
        nn.Sequential(nn.Embedding(256, 4), nn.Flatten(), nn.Linear(24, 3)), BYTES.long()
    ),
    "numbers that are all the same in a regression": lambda: Program(
        mlp(outputs=1), targets=torch.ones(96, 1), options={"loss_fn": nn.MSELoss()}
    ),
    "all but one label of one class": lambda: Program(mlp(), targets=torch.tensor([0] * 95 + [1])),
    "validation on the training data itself": lambda: Program(mlp(), val=(INPUTS, TARGETS)),
    "validation on other data": partial(leaking, 0),
    "inputs of which few are distinct": few_distinct,
    "other images with the same middle": partial(similar_images, leak=False),
    "a model in eval mode": lambda: Program(with_norm().eval()),
    "a frozen part": frozen_norm,
    "a dropout that was set to eval": dropout_alone_in_eval,
    "a frozen BatchNorm and one sample": lambda: Program(
        convolutional(frozen=True), IMAGES[:24], TARGETS[:24], options={"batch_size": 1}
    ),
    "gradients of zero": lambda: Program(Unused(times_zero=True)),
    "a frozen layer that is not used": lambda: Program(Unused(times_zero=False, frozen=True)),
    "bfloat16 with a large learning rate": partial(in_bfloat16, torch.optim.AdamW, 1e-2),
    "bfloat16 with momentum": partial(in_bfloat16, partial(torch.optim.SGD, momentum=0.9), 0.1),
    "a learning rate of zero": partial(in_bfloat16, torch.optim.SGD, 0.0),
    "an adapter that moves": lambda: Program(Adapter(enabled=True)),
}
