"""The order of the tutorials, for sphinx-gallery."""

from __future__ import annotations

ORDER = (
    "train_on_digits.py",
    "fine_tune_with_few_images.py",
    "custom_head.py",
    "export_and_serve.py",
    "see_a_model.py",
    "stop_and_resume.py",
)


class TutorialOrder:
    """Sorts the tutorials in reading order. `ORDER` must list all of them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, filename: str) -> int:
        """Return the position of a script."""
        return ORDER.index(filename)

    def __repr__(self) -> str:
        return type(self).__name__
