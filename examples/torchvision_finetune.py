"""Fine-tune a torchvision model on a folder of images.

python examples/torchvision_finetune.py  # a demonstration on digits
python examples/torchvision_finetune.py --images pets --weights resnet18-f37072fd.pth --size 224

The folder contains `train/CLASS/*.png` and `val/CLASS/*.png` (or other image formats). The weights
file comes from torchvision or from `save_weights`.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision import models
from torchvision.datasets import MNIST, ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from finetunelib import Trainer, export_onnx, freeze_and_replace_head
from finetunelib.callbacks import EarlyStopping
from finetunelib.data import InMemoryDataset, in_memory
from finetunelib.errors import FinetuneLibError
from finetunelib.finetuning import load_weights, save_weights

Samples: TypeAlias = tuple[Tensor, Tensor]

#: The classes of the demonstration. The backbone learns the first five, the new head the others.
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: The number of images per digit for pretraining, fine-tuning and validation.
PRETRAIN, TRAIN, VAL = 80, 40, 30

#: The batch size.
BATCH = 20

#: The fraction of the model's tensors that a weights file must contain; its head may differ.
ENOUGH = 0.8

#: The folders to search for MNIST, in this order.
FOLDERS = (os.environ.get("FINETUNELIB_DATA") or "data", "../shared/datasets")

#: Converts bytes to the inputs of torchvision models: [0, 1], normalized as for ImageNet.
NORMALIZE = v2.Compose(
    [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)


def main() -> int:
    """Fine-tune, and return 0 if the exported file was verified."""
    options = parse_options()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            images, weights = options.images, options.weights
            if images is None:
                images = Path(temporary)
                digits = write_digits(images, options.dataset)
                if weights is None:
                    weights = pretrain(options, digits, images / "pretrain")
            verified = fine_tune(options, images, weights)
        except FinetuneLibError as error:
            sys.exit(f"{type(error).__name__}: {error}")
    files = ", ".join(sorted(file.name for file in options.output_dir.iterdir()))
    print(f"Done in {time.perf_counter() - started:.0f} s. In {options.output_dir}: {files}")
    return 0 if verified else 1


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--images", type=Path, help="a folder with train/ and val/ (default: digits)"
    )
    parser.add_argument("--model", default="resnet18", help="a torchvision classification model")
    parser.add_argument("--weights", type=Path, help="a weights file of that model")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pretrain-epochs", type=int, default=2, help="for the demonstration")
    parser.add_argument("--dataset", choices=["auto", "mnist", "digits"], default="auto")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/torchvision_finetune"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("size", "epochs", "pretrain_epochs"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must be at least 1, got {getattr(options, name)}")
    known = models.list_models(module=models)
    if options.model not in known:
        close = ", ".join(difflib.get_close_matches(options.model, known)) or "resnet18"
        parser.error(
            f"--model must be one of the {len(known)} classification models of torchvision, got "
            f"{options.model!r}. Similar names: {close}"
        )
    return options


def fine_tune(options: argparse.Namespace, images: Path, weights: Path | None) -> bool:
    """Train a new head, save and export the model, and return whether the export is verified."""
    train, classes = read_images(images / "train", options.size)
    val, val_classes = read_images(images / "val", options.size)
    if classes != val_classes:
        sys.exit(f"train/ and val/ must have the same classes, got {classes} and {val_classes}.")
    print(f"Images: {len(train)} for training, {len(val)} for validation, {len(classes)} classes.")

    torch.manual_seed(options.seed)
    model = build(options.model)
    if weights is None:
        print(
            "No --weights: the backbone is random, so its features are of little use.", flush=True
        )
    else:
        print(f"Weights: {load_weights(model, weights, minimum_match=ENOUGH)}", flush=True)

    torch.manual_seed(options.seed)  # Initializes the new head.
    samples = torch.stack([val[row][0] for row in range(min(len(val), 100))])
    tuned = freeze_and_replace_head(model, len(classes), example_input=samples[:2])
    stop = EarlyStopping("val_accuracy", patience=4, restore_best=True)
    trainer = Trainer(tuned, lr=0.005, batch_size=BATCH, callbacks=[stop], seed=options.seed)
    before = trainer.evaluate(val)["accuracy"]
    trainer.fit(train, val, epochs=options.epochs)
    after = trainer.evaluate(val)["accuracy"]
    print(f"Accuracy with the new head: {before:.1%} before training, {after:.1%} after.")

    file = save_weights(tuned, options.output_dir / "fine_tuned.safetensors")
    (options.output_dir / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    check_reload(options.model, tuned, file, len(classes), samples)

    report = export_onnx(
        tuned, options.output_dir / "model.onnx", samples[:2], sample_inputs=samples
    )
    print(f"Exported {report}")
    print(f"Its outputs are, in this order: {', '.join(classes)}.")
    return report.verification is not None and report.verification.status == "verified"


def read_images(folder: Path, size: int) -> tuple[InMemoryDataset, list[str]]:
    """Return the images of a folder, in memory and normalized per batch, and their classes."""
    transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    try:
        dataset = ImageFolder(str(folder), transform)
    except FileNotFoundError as error:
        sys.exit(f"`{folder}` must contain a folder of images for each class: {error}")
    return in_memory(dataset, batch_transform=NORMALIZE, progress=False), list(dataset.classes)


def build(name: str, num_classes: int = 1000) -> nn.Module:
    """Return a torchvision model with random weights, by default for the ImageNet classes."""
    # These two are trained with auxiliary heads, which fine-tuning does not need.
    auxiliary = name in {"googlenet", "inception_v3"}
    options = {"aux_logits": False, "init_weights": True} if auxiliary else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return model


def check_reload(
    name: str, tuned: nn.Module, file: Path, num_classes: int, samples: Tensor
) -> None:
    """Rebuild the model from its weights file, as another program would, and compare."""
    # A weights file stores neither the architecture nor what is frozen.
    reloaded = freeze_and_replace_head(build(name), num_classes, example_input=samples[:2])
    report = load_weights(reloaded, file)
    with torch.no_grad():
        same = torch.equal(reloaded.eval()(samples), tuned.eval()(samples))
    if not same:
        sys.exit(f"The outputs of {file} differ from those of the saved model.")
    print(f"Reloaded: {report} The outputs are the same, bit for bit.", flush=True)


def pretrain(options: argparse.Namespace, digits: str, folder: Path) -> Path:
    """Train the whole model on images of five digits, and return its weights file.

    This replaces a download.
    """
    data, classes = read_images(folder, options.size)
    torch.manual_seed(options.seed)
    model = build(options.model, len(classes))
    steps = options.pretrain_epochs * math.ceil(len(data) / BATCH)
    trainer = Trainer(
        model,
        lr=0.02,
        # Decaying the learning rate to 0 lets the running statistics catch up with the weights.
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_scheduler_interval="step",
        batch_size=BATCH,
        seed=options.seed,
    )
    trainer.fit(data, epochs=options.pretrain_epochs)
    accuracy = trainer.evaluate(data)["accuracy"]
    file = save_weights(model, options.output_dir / "pretrained.safetensors")
    print(f"Pretrained {options.model} on the digits 0 to 4 of {digits} ({accuracy:.1%}): {file}")
    return file


def write_digits(folder: Path, dataset: str) -> str:
    """Write the digits as images: 0 to 4 for pretraining, 5 to 9 to train/ and val/."""
    name, train, test = load_digits(dataset, FOLDERS)
    for digit, title in enumerate(DIGITS):
        of_train, of_test = train[0][train[1] == digit], test[0][test[1] == digit]
        if digit < 5:
            write_images(folder / "pretrain" / title, of_train[:PRETRAIN])
        else:
            write_images(folder / "train" / title, of_train[:TRAIN])
            write_images(folder / "val" / title, of_test[:VAL])
    print(f"Wrote a folder of images from the digits of {name}: {folder}", flush=True)
    return name


def write_images(folder: Path, images: Tensor) -> None:
    """Write images `(n, height, width)`, uint8, as PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        to_pil_image(image).save(folder / f"{number:03}.png")


def load_digits(dataset: str, folders: Sequence[str]) -> tuple[str, Samples, Samples]:
    """Return a name, training images (bytes) and test images: MNIST if it is on disk."""
    for folder in folders if dataset != "digits" else ():
        try:
            train, test = (MNIST(folder, train=part) for part in (True, False))
        except RuntimeError:
            continue  # Not found.
        return "MNIST", (train.data, train.targets), (test.data, test.targets)
    if dataset == "mnist":
        sys.exit(f"MNIST is not in {' or '.join(folders)}. Set FINETUNELIB_DATA to its folder.")
    return load_small_digits()


def load_small_digits() -> tuple[str, Samples, Samples]:
    """Return the 1,797 handwritten digits of scikit-learn, 8x8, as bytes."""
    from sklearn.datasets import load_digits as load_sklearn_digits

    values, labels = load_sklearn_digits(return_X_y=True)
    images = torch.as_tensor(values).mul(255 / 16).to(torch.uint8).reshape(-1, 8, 8)
    targets = torch.as_tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return "scikit-learn", (images[train], targets[train]), (images[test], targets[test])


if __name__ == "__main__":
    sys.exit(main())
