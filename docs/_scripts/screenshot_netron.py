"""Save a screenshot of a model in Netron, for the documentation.

Run it from the root of the repository, with Chromium or Chrome installed:

    PYTHONPATH=tests python docs/_scripts/screenshot_netron.py model.onnx netron.png

Instead of a file, pass `mlp` or the name of a torchvision model to use random weights. These
commands create the screenshots of the documentation:

    ... mlp docs/_static/netron-layer.png --node Gemm --width 1000 --height 780
    ... resnet18 docs/_static/netron-resnet18.png --width 800 --height 700

Netron uses brackets that need a Chinese or Japanese font, such as Debian's fonts-wqy-microhei.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision
from torch import nn

from finetunelib import build_mlp, visualize
from support_chromium import chromium, find_chromium


def main() -> None:
    """Open the model in a headless browser, and save a screenshot."""
    parser = argparse.ArgumentParser(description="Save a screenshot of a model in Netron.")
    parser.add_argument("model", help="a model file, mlp, or the name of a torchvision model")
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    parser.add_argument("--node", help="the node to click on, by its label, such as Gemm")
    parser.add_argument("--width", type=int, default=1200, help="of the page, in pixels")
    parser.add_argument("--height", type=int, default=1000, help="of the page, in pixels")
    arguments = parser.parse_args()
    path = find_chromium()
    if path is None:
        parser.error("no Chromium or Chrome was found")
    with (
        visualize(model_of(arguments.model), browser=False) as server,
        chromium(path, width=arguments.width, height=arguments.height) as browser,
    ):
        if arguments.node:
            page = browser.node(server.url, arguments.node)
        else:
            page = browser.graph(server.url)
    arguments.picture.write_bytes(page.picture)


def model_of(name: str) -> nn.Module | Path:
    """Return the model or file that a command-line argument names."""
    if name == "mlp":
        return build_mlp(784, [500], 10, seed=0)
    if Path(name).suffix:
        return Path(name)
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


if __name__ == "__main__":
    main()
