"""A sphinx-gallery scraper for figures that the library creates without pyplot."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from sphinx_gallery.scrapers import figure_rst

_seen: weakref.WeakSet[Any] = weakref.WeakSet()


def _get_sg_image_scraper() -> Callable[..., str]:
    """Return the function that sphinx-gallery calls after each block."""
    return scrape


def scrape(_block: object, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figures that a block assigned to a name, and return the text that shows them."""
    paths = []
    for value in list(block_vars["example_globals"].values()):
        drawn_by_us = type(value).__module__ == "finetunelib.visualization._plots.figure"
        if drawn_by_us and value not in _seen:
            _seen.add(value)
            paths.append(next(block_vars["image_path_iterator"]))
            value.savefig(paths[-1], dpi=100)
    text: str = figure_rst(paths, gallery_conf["src_dir"])
    return text
