"""Decides how a running viewer is shown: in a browser, by its address, and whether to block."""

from __future__ import annotations

from dataclasses import dataclass

from finetunelib._progress import in_notebook
from finetunelib.visualization._netron.browser import runs_as_script
from finetunelib.visualization._netron.remote import over_ssh


@dataclass(frozen=True, slots=True)
class Presentation:
    """What to do once a viewer is running.

    Attributes:
        prints_address: Whether to print the address to stderr.
        blocks: Whether to wait until the viewer is closed.
    """

    prints_address: bool
    blocks: bool


def choose_presentation(*, opened: bool, browser: bool | None, block: bool | None) -> Presentation:
    """Return the presentation of a viewer.

    Args:
        opened: Whether a browser was opened.
        browser: The user's choice of a browser. `None` leaves it to the library.
        block: The user's choice of blocking. `None` leaves it to the library.
    """
    blocks = (opened and runs_as_script()) if block is None else block
    # If no browser was opened, print the address: before blocking, and in ssh sessions. A notebook
    # shows the server itself.
    is_hidden = not opened and not in_notebook()
    return Presentation(
        prints_address=is_hidden and (blocks or (browser is None and over_ssh())),
        blocks=blocks,
    )
