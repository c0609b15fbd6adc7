"""Save a picture of a model as Netron's page shows it, for the documentation.

Run it from the repository's root, with Chromium or Chrome installed:

    PYTHONPATH=tests python docs/_scripts/screenshot_netron.py model.onnx netron.png

Netron writes brackets that a machine without a font for Chinese or Japanese (such as Debian's
fonts-wqy-microhei) shows as empty boxes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finetunelib import visualize
from support_chromium import chromium, find_chromium


def main() -> None:
    """Show the model file in a headless browser, and write what it drew."""
    parser = argparse.ArgumentParser(description="Save a picture of a model in Netron.")
    parser.add_argument("model", type=Path, help="the model file, such as model.onnx")
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    parser.add_argument("--width", type=int, default=1200, help="of the page, in pixels")
    parser.add_argument("--height", type=int, default=1000, help="of the page, in pixels")
    arguments = parser.parse_args()
    path = find_chromium()
    if path is None:
        parser.error("no Chromium or Chrome was found")
    with (
        visualize(arguments.model, browser=False) as server,
        chromium(path, width=arguments.width, height=arguments.height) as browser,
    ):
        arguments.picture.write_bytes(browser.graph(server.url).picture)


if __name__ == "__main__":
    main()
