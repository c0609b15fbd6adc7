"""Train three custom heads on a frozen convolutional network.

python examples/custom_head.py            # MNIST, or the scikit-learn digits
python examples/custom_head.py --shots 5  # with fewer images of each new digit
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision.datasets import MNIST

from finetunelib import Trainer, export_onnx, freeze_and_replace_head
from finetunelib.finetuning import find_head

Samples: TypeAlias = tuple[Tensor, Tensor]

#: The network learns the digits below this one, and the heads learn the other five.
FIRST_NEW_DIGIT = 5
NEW_DIGITS = 5

#: The number of features at each of the 3x3 positions of the last feature map.
WIDTH = 64

#: The folders to search for MNIST, in this order.
FOLDERS = (os.environ.get("FINETUNELIB_DATA") or "data", "../shared/datasets")


class CosineClassifier(nn.Module):
    """A head whose logits are scaled cosines between the features and one vector per class.

    After Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018),
    with their learned scale, initially 10. They also remove the ReLU before the classifier; here
    the features are used unchanged.

    Args:
        in_features: The number of features.
        num_classes: The number of classes.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, in_features) * in_features**-0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `(batch, num_classes)` of features `(batch, in_features)`."""
        directions = functional.normalize(self.weight, dim=1)
        return self.scale * functional.linear(functional.normalize(features, dim=1), directions)


class ConvNet(nn.Module):
    """A small network for images `(batch, 1, 28, 28)`, with a pooling and a linear classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *convolution(1, 16), *convolution(16, 32), *convolution(32, WIDTH)
        )
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(batch, num_classes)`."""
        logits: Tensor = self.classifier(self.backbone(images))
        return logits


def convolution(channels: int, out_channels: int) -> list[nn.Module]:
    """Return the layers of a block that halves height and width."""
    return [
        nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of training one head.

    Attributes:
        model: The model with its trained head.
        place: The dotted name of the head.
        before: The test accuracy with the untrained head, in [0, 1].
        after: The test accuracy after training, in [0, 1].
        frozen: The number of tensors outside the head, all unchanged bit for bit.
    """

    model: nn.Module
    place: str
    before: float
    after: float
    frozen: int


def cosine_as_module(model: nn.Module) -> str:
    """Replace the head by a module, and return its name."""
    found = find_head(model)
    freeze_and_replace_head(model, head=CosineClassifier(found.in_features, NEW_DIGITS))
    return found.name


def layers_from_callable(model: nn.Module) -> str:
    """Replace the head by a function that is called with the number of features."""
    place = find_head(model).name
    freeze_and_replace_head(
        model,
        head=lambda width: nn.Sequential(
            nn.Linear(width, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, NEW_DIGITS)
        ),
    )
    return place


def whole_part_by_name(model: nn.Module) -> str:
    """Replace the classifier and its pooling, which keeps the positions of the features."""
    freeze_and_replace_head(
        model,
        head=nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * 3 * 3, NEW_DIGITS)),
        at="classifier",
        # The default guess of 224 pixels does not fit this head.
        example_input=torch.zeros(2, 1, 28, 28),
    )
    return "classifier"


#: For each head, a function that changes the model and returns the dotted name of the head.
HEADS: Mapping[str, Callable[[nn.Module], str]] = {
    "cosine, as a module": cosine_as_module,
    "two layers, as a callable": layers_from_callable,
    "no pooling, by name": whole_part_by_name,
}


def main() -> int:
    """Pretrain on five digits, train three heads on the others, and export each model."""
    options = parse_options()
    started = time.perf_counter()
    name, train, test = load_digits(
        options.dataset, [options.data_dir] if options.data_dir else FOLDERS
    )
    old_train, old_test = old_digits(train), old_digits(test)
    few, new_test = first_of_each(new_digits(train), options.shots), new_digits(test)

    pretrained = pretrain(old_train, options.steps, options.seed)
    accuracy = Trainer(pretrained).evaluate(old_test)["accuracy"]
    print(f"1. Pretrained on the digits 0 to 4 of {name}: {accuracy:.1%} test accuracy.")
    print(f"2. {find_head(pretrained)}")
    print(
        f"3. New heads for the digits 5 to 9, from {options.shots} images of each, "
        f"measured on {len(new_test[0]):,}:",
        flush=True,
    )

    verified = []
    print(f"   {'head':<26}{'place':<14}{'before':>7}{'after':>8}  {'frozen':<24}ONNX")
    for title, add_head in HEADS.items():
        result = fine_tune(pretrained, add_head, few, new_test, options.seed)
        file = options.output_dir / f"{title.partition(',')[0].replace(' ', '_')}.onnx"
        report = export_onnx(result.model, file, new_test[0][:2], sample_inputs=new_test[0][:100])
        status = report.verification.status if report.verification else "not verified"
        verified.append(status == "verified")
        print(
            f"   {title:<26}{result.place:<14}{result.before:>7.1%}{result.after:>8.1%}  "
            f"{f'{result.frozen} tensors bit for bit':<24}{status}: {file}",
            flush=True,
        )
    print(f"Done in {time.perf_counter() - started:.0f} s.")
    return 0 if all(verified) else 1


def pretrain(samples: Samples, steps: int, seed: int) -> nn.Module:
    """Return a trained network, in place of downloaded weights."""
    torch.manual_seed(seed)
    model = ConvNet(FIRST_NEW_DIGIT)
    trainer = Trainer(
        model,
        lr=0.05,
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_scheduler_interval="step",
        seed=seed,
        progress=False,
    )
    trainer.fit(samples, max_steps=steps)
    return model


def fine_tune(
    pretrained: nn.Module,
    add_head: Callable[[nn.Module], str],
    few: Samples,
    test: Samples,
    seed: int,
) -> Result:
    """Train a new head on a copy of the model, and check that nothing else has changed."""
    model = copy.deepcopy(pretrained)
    torch.manual_seed(seed)  # Initializes the new head.
    place = add_head(model)
    trainer = Trainer(model, lr=0.02, batch_size=10, seed=seed, progress=False)
    before = trainer.evaluate(test)["accuracy"]
    trainer.fit(few, epochs=30)
    frozen = [name for name in model.state_dict() if not name.startswith(f"{place}.")]
    changed = [
        name
        for name in frozen
        if not torch.equal(model.state_dict()[name], pretrained.state_dict()[name])
    ]
    if changed:
        sys.exit(f"These frozen tensors have changed: {', '.join(changed)}.")
    return Result(model, place, before, trainer.evaluate(test)["accuracy"], len(frozen))


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", choices=["auto", "mnist", "digits"], default="auto")
    parser.add_argument("--data-dir", help=f"folder of MNIST (default: {' or '.join(FOLDERS)})")
    parser.add_argument("--shots", type=int, default=10, help="images per new digit")
    parser.add_argument("--steps", type=int, default=150, help="pretraining steps")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/custom_head"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("shots", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def old_digits(samples: Samples) -> Samples:
    """Return the samples of the digits 0 to 4."""
    images, digits = samples
    return images[digits < FIRST_NEW_DIGIT], digits[digits < FIRST_NEW_DIGIT]


def new_digits(samples: Samples) -> Samples:
    """Return the samples of the digits 5 to 9, as classes 0 to 4."""
    images, digits = samples
    new = digits >= FIRST_NEW_DIGIT
    return images[new], digits[new] - FIRST_NEW_DIGIT


def first_of_each(samples: Samples, count: int) -> Samples:
    """Return the first `count` samples of each class."""
    images, classes = samples
    rows = torch.cat([(classes == number).nonzero()[:count, 0] for number in range(NEW_DIGITS)])
    return images[rows], classes[rows]


def load_digits(dataset: str, folders: Sequence[str]) -> tuple[str, Samples, Samples]:
    """Return a name, training samples and test samples: MNIST if it is on disk."""
    for folder in folders if dataset != "digits" else ():
        try:
            train, test = (MNIST(folder, train=part) for part in (True, False))
        except RuntimeError:
            continue  # Not found.
        return "MNIST", samples_of(train), samples_of(test)
    if dataset == "mnist":
        sys.exit(f"MNIST is not in {' or '.join(folders)}. Pass its folder with --data-dir.")
    return load_small_digits()


def samples_of(dataset: MNIST) -> Samples:
    """Return the images, (n, 1, 28, 28) in [0, 1] as from `ToTensor`, and the labels."""
    return dataset.data.unsqueeze(1).float().div(255), dataset.targets


def load_small_digits() -> tuple[str, Samples, Samples]:
    """Return the 1,797 handwritten digits of scikit-learn, 8x8, enlarged to 28x28."""
    from sklearn.datasets import load_digits as load_sklearn_digits

    images, labels = load_sklearn_digits(return_X_y=True)
    inputs = torch.as_tensor(images, dtype=torch.float32).div(16).reshape(-1, 1, 8, 8)
    inputs = functional.interpolate(inputs, size=(28, 28), mode="bilinear")
    targets = torch.as_tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return "scikit-learn", (inputs[train], targets[train]), (inputs[test], targets[test])


if __name__ == "__main__":
    sys.exit(main())
