"""Freeze every torchvision classification model except a new head, and train it.

    python tests/conformance/freezing.py [--again] [--only NAME]

Each of the 80 models has random weights and is trained on two images of the smallest size that it
accepts: three steps in a hand-written loop, which calls `model.train()` before each, and three in
the Trainer. The frozen part must stay bitwise unchanged, and the features of a sample must not
depend on the rest of its batch. The results are written after each model. An interrupted run can be
continued; `--again` starts from scratch. The largest models need some gigabytes of memory. All of
them together take about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.finetuning import fingerprint, is_frozen

RESULTS = Path(__file__).parent / "results" / "freezing.json"
CLASSES = 3
STEPS = 3
SIZES = (32, 64, 96, 128, 224)

AdamW = partial(torch.optim.AdamW, weight_decay=0.5)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one model.

    Attributes:
        loop: What went wrong in the hand-written loop, or an empty string.
        trainer: What went wrong in the Trainer, or an empty string.
    """

    size: int
    parameters: int
    frozen_tensors: int
    has_batchnorm: bool
    has_active_dropout: bool
    loop: str
    trainer: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything frozen stayed the same."""
        return not (self.loop or self.trainer)


def names() -> list[str]:
    """Return the names of torchvision's classification models."""
    return list(torchvision.models.list_models(module=torchvision.models))


def check(name: str) -> Outcome:
    """Freeze and train one model."""
    started = time.perf_counter()
    torch.manual_seed(0)
    model, size = build(name)
    images = torch.rand(2 * STEPS, 3, size, size, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(2 * STEPS) % CLASSES
    fill_statistics(model, images)
    dropout, batchnorm = has_active_dropout(model), has_batchnorm(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*auxiliary.*", UserWarning)
        freeze_and_replace_head(model, num_classes=CLASSES, example_input=images[:2])
    frozen = fingerprint(model)
    loop = (
        not_frozen(model, frozen)
        or train_by_hand(model, images, targets, frozen)
        or mixed_features(model, images)
    )
    trainer = train_with_trainer(model, images, targets, frozen)
    return Outcome(
        size=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        frozen_tensors=len(frozen),
        has_batchnorm=batchnorm,
        has_active_dropout=dropout,
        loop=loop,
        trainer=trainer,
        seconds=round(time.perf_counter() - started, 2),
    )


def build(name: str) -> tuple[nn.Module, int]:
    """Return a model with random weights, and the smallest image size that it accepts."""
    # A vision transformer is built for one image size, a multiple of its patch size.
    own = {"image_size": 28 if name.endswith("14") else 32} if name.startswith("vit_") else {}
    with warnings.catch_warnings():
        # GoogLeNet and Inception warn about a change of their default initialization.
        warnings.simplefilter("ignore", FutureWarning)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **own)
    for size in own.values() or SIZES:
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(2, 3, size, size))
        except (RuntimeError, ValueError, AssertionError):
            continue
        return model.train(), size
    raise ValueError(f"{name} takes none of the sizes {SIZES}")


def fill_statistics(model: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm the statistics of the images, as in a pretrained model.

    Without them a deep model with random weights lets its features grow or vanish.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(images[:4] * 2 - 1)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    for name, parameter in model.named_parameters():
        if name.endswith(
            "layer_scale"
        ):  # ConvNeXt's 1e-6 would hide the effect of its dropped branches.
            parameter.detach().fill_(1.0)
    model.train()


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether a model has running statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def has_active_dropout(model: nn.Module) -> bool:
    """Return whether a model drops activations or layers in train mode."""
    rates = [
        getattr(module, "p", 0.0)
        for module in model.modules()
        if type(module).__name__ in ("Dropout", "StochasticDepth")
    ]
    return any(rate > 0 for rate in rates)


def train_by_hand(
    model: nn.Module, images: Tensor, targets: Tensor, frozen: Mapping[str, str]
) -> str:
    """Take three steps in an ordinary loop, and return what went wrong."""
    head = head_tensors(model, frozen)
    before = {name: tensor.detach().clone() for name, tensor in head.items()}
    optimizer = AdamW(model.parameters(), lr=0.01)
    for start in range(0, len(images), 2):
        model.train()
        optimizer.zero_grad()
        outputs = model(images[start : start + 2])
        torch.autograd.backward(functional.cross_entropy(outputs, targets[start : start + 2]))
        optimizer.step()
    return wrong(model, frozen, before)


def train_with_trainer(
    model: nn.Module, images: Tensor, targets: Tensor, frozen: Mapping[str, str]
) -> str:
    """Take three steps in the Trainer, and return what went wrong."""
    before = {name: tensor.detach().clone() for name, tensor in head_tensors(model, frozen).items()}
    trainer = Trainer(
        model,
        optimizer=AdamW,
        lr=0.01,
        batch_size=2,
        device="cpu",
        cache_features=False,  # The frozen part must run in every step.
        progress=False,
        ignore=["initial-loss-too-high"],  # The statistics of BatchNorm are random.
    )
    history = trainer.fit((images, targets), epochs=1)
    if history.certificate is None or history.certificate.digests != frozen:
        return "the certificate does not cover everything that is frozen"
    return wrong(model, frozen, before)


def not_frozen(model: nn.Module, frozen: Mapping[str, str]) -> str:
    """Return the parts outside the head that are not frozen, or an empty string."""
    head = head_name(model)
    left = [name for name in head_tensors(model, frozen) if name.rpartition(".")[0] != head]
    return (
        f"{len(left)} tensors outside `{head}` are not frozen, among them {left[:3]}"
        if left
        else ""
    )


def head_name(model: nn.Module) -> str:
    """Return the name of the module that the last trainable parameter belongs to."""
    return [name for name, p in model.named_parameters() if p.requires_grad][-1].rpartition(".")[0]


def wrong(model: nn.Module, frozen: Mapping[str, str], head: Mapping[str, Tensor]) -> str:
    """Return what is wrong after training, or an empty string."""
    after = fingerprint(model)
    if after != frozen:
        moved = [name for name, seen in frozen.items() if after.get(name) != seen]
        return f"{len(moved)} frozen tensors moved, among them {moved[:3]}"
    now = head_tensors(model, frozen)
    still = [name for name, tensor in head.items() if torch.equal(tensor, now[name])]
    if still or not head:
        return f"the head did not move: {still}"
    if is_frozen(model):
        return "nothing is trainable"
    return ""


def head_tensors(model: nn.Module, frozen: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the parameters and buffers that are not frozen."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if name not in frozen}


def mixed_features(model: nn.Module, images: Tensor) -> str:
    """Return how a sample's features depend on the other samples, or an empty string."""
    head = model.get_submodule(head_name(model))
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()[0]))
    with torch.no_grad():
        for other in (1, 2):
            model.train()
            model(torch.stack([images[0], images[other]]))
        model(torch.stack([images[3], images[4]]))
    handle.remove()
    beside_one, beside_two, of_another = seen
    scale = beside_one.abs().max().item()
    if not 0.0 < scale < float("inf") or torch.equal(beside_one, of_another):
        return f"the features say nothing: they are the same for all images, or up to {scale}"
    # The order of sums may depend on the batch, which causes rounding errors of float32 in
    # up to a few hundred layers. BatchNorm in train mode or dropout changes values by 10% or more.
    off = (beside_one - beside_two).abs().max().item() / scale
    return (
        f"the features of a sample depend on its batch: {off:.1e} of {scale}" if off > 1e-4 else ""
    )


def write(models: Mapping[str, Mapping[str, object]]) -> None:
    """Write the results so far."""
    outcomes = list(models.values())
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "torchvision", "finetunelib")},
        },
        "tried": len(outcomes),
        "ok": sum(not (outcome["loop"] or outcome["trainer"]) for outcome in outcomes),
        "with_batchnorm": sum(bool(outcome["has_batchnorm"]) for outcome in outcomes),
        "with_active_dropout": sum(bool(outcome["has_active_dropout"]) for outcome in outcomes),
        "models": dict(sorted(models.items())),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Check the models without a result, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--again", action="store_true", help="also check models that have a result")
    parser.add_argument("--only", help="check the models with this text in their names again")
    options = parser.parse_args()
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.exists() else {}
    results = {} if options.again else {name: stored[name] for name in names() if name in stored}
    failed = False
    for name in names():
        known = name in results and not (results[name]["loop"] or results[name]["trainer"])
        if (options.only and options.only not in name) or (not options.only and known):
            continue
        try:
            outcome = check(name)
        except Exception:  # noqa: BLE001 - the other models are checked too
            failed = True
            print(f"{name}: failed\n{traceback.format_exc()}", flush=True)  # noqa: T201 - it reports
            continue
        results[name] = asdict(outcome)
        write(results)
        failed |= not outcome.ok
        print(name, results[name], flush=True)  # noqa: T201
        gc.collect()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
