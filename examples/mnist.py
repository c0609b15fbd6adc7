"""Train a network on handwritten digits, fine-tune it, export it to ONNX and view it.

python examples/mnist.py                    # MNIST, or the scikit-learn digits
python examples/mnist.py --epochs 2 --view  # shorter, and opens Netron in the browser
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.datasets import MNIST

from finetunelib import Trainer, build_mlp, export_onnx, freeze_and_replace_head, visualize
from finetunelib.errors import MissingDependencyError
from finetunelib.finetuning import load_weights, save_weights
from finetunelib.training import History
from finetunelib.visualization import plot_confusion, plot_history, plot_predictions

Samples: TypeAlias = tuple[Tensor, Tensor]

#: Seconds after which `--dataset auto` gives up on the MNIST servers.
PATIENCE = 15.0


def main() -> int:
    """Run all steps, and return 0 if the exported file was verified."""
    options = parse_options()
    started = time.perf_counter()
    name, train, test = load_digits(options.dataset, options.data_dir)
    sizes = f"{len(train[0]):,} training images and {len(test[0]):,} test images"
    print(f"1. Data: {name}, {sizes}.", flush=True)

    model = build_mlp(784, [500], 10, seed=options.seed)
    trainer = Trainer(model, lr=0.01, batch_size=100, seed=options.seed)
    history = pretraining = trainer.fit(train, test, epochs=options.epochs)
    pretrained = trainer.evaluate(test)["accuracy"]
    seconds = sum(history["seconds"])
    print(f"2. Trained 784-500-10 in {seconds:.1f} s: {pretrained:.2%} test accuracy.")

    folder: Path = options.output_dir
    weights = save_weights(model, folder / "pretrained.safetensors")
    history.to_json(folder / "pretrained_history.json")
    print(f"3. Saved the weights: {weights}")

    restored = build_mlp(784, [500], 10)
    print(f"4. Loaded into a new model: {load_weights(restored, weights)}", flush=True)

    torch.manual_seed(options.seed)  # Initializes the new head.
    tuned = freeze_and_replace_head(restored, num_classes=10)
    trainer = Trainer(tuned, lr=0.005, batch_size=100, seed=options.seed)
    history = trainer.fit(train, test, epochs=options.epochs)
    fine_tuned = trainer.evaluate(test)["accuracy"]
    seconds = sum(history["seconds"])
    print(f"5. Fine-tuned a new head on frozen features in {seconds:.1f} s: {fine_tuned:.2%}.")
    save_weights(tuned, folder / "fine_tuned.safetensors")
    history.to_json(folder / "fine_tuned_history.json")

    raw = test[0][:100].mul(255).round().to(torch.uint8)  # As in the MNIST files.
    np.save(folder / "digits.npy", raw[:10].numpy())
    report = export_onnx(
        tuned,
        folder / "mnist.onnx",
        raw[:2],
        sample_inputs=raw,
        preprocessing=(0.0, 1.0),  # `ToTensor`, as part of the graph.
        softmax=True,
        labels=[str(digit) for digit in range(10)],
        certificate=history.certificate,
        self_test=True,
    )
    print(f"6. Exported {report}")

    print(f"7. {draw(folder, {'from scratch': pretraining, 'new head': history}, tuned, test)}")

    with visualize(report.path, browser=None if options.view else False, block=False) as viewer:
        hint = "Ctrl-C closes it" if options.view else "--view opens it"
        print(f"8. Shown in Netron at {viewer.url}; {hint}.", flush=True)
        if options.view:
            viewer.wait()

    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    print(f"Done in {time.perf_counter() - started:.0f} s. In {folder}: {files}")
    verified = report.verification is not None and report.verification.status == "verified"
    return 0 if verified else 1


def draw(folder: Path, histories: dict[str, History], model: nn.Module, test: Samples) -> str:
    """Save the plots, and return which; without matplotlib there are none."""
    try:
        figures = {
            "history.png": plot_history(histories),
            "mistakes.png": plot_predictions(model, test),
            "confusion.png": plot_confusion(model, test),
        }
    except MissingDependencyError as error:
        return f"Drew no pictures. {error}"
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
    return f"Drew {', '.join(figures)}"


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", choices=["auto", "mnist", "digits"], default="auto")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("FINETUNELIB_DATA") or "data"),
        help="the folder of MNIST, or to download it to (default: $FINETUNELIB_DATA or data)",
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--view", action="store_true", help="open Netron in the browser")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    return options


def load_digits(dataset: str, folder: Path) -> tuple[str, Samples, Samples]:
    """Return a name, training samples and test samples: MNIST if it is available."""
    if dataset == "digits":
        return load_small_digits()
    try:
        return load_mnist(folder, download=False)
    except RuntimeError:
        pass  # Not downloaded yet.
    socket.setdefaulttimeout(PATIENCE / 2)  # Ends a download that stalls.
    reason = "its servers do not respond"
    if dataset == "mnist" or servers_answer():
        try:
            return load_mnist(folder, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
    if dataset == "mnist":
        sys.exit(f"MNIST cannot be downloaded to `{folder}`: {reason}. Try --dataset digits.")
    print(f"MNIST is not in `{folder}` and {reason}: using the scikit-learn digits instead.")
    return load_small_digits()


def load_mnist(folder: Path, *, download: bool) -> tuple[str, Samples, Samples]:
    """Return MNIST from a folder, and download it first if asked to."""
    train, test = (MNIST(folder, train=part, download=download) for part in (True, False))
    return "MNIST", samples_of(train), samples_of(test)


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
    name = "scikit-learn digits"
    return name, (inputs[train], targets[train]), (inputs[test], targets[test])


def servers_answer() -> bool:
    """Return whether an MNIST server responds within `PATIENCE` seconds.

    The request runs in a thread, because a name lookup has no time limit.
    """
    answered = threading.Event()
    finished = threading.Event()

    def ask() -> None:
        for mirror in MNIST.mirrors:
            try:
                with urllib.request.urlopen(
                    f"{mirror}{MNIST.resources[-1][0]}", timeout=PATIENCE / 2
                ) as response:
                    if response.read(1):
                        answered.set()
                        break
            except OSError:
                continue
        finished.set()

    threading.Thread(target=ask, daemon=True).start()
    finished.wait(PATIENCE)
    return answered.is_set()


if __name__ == "__main__":
    sys.exit(main())
