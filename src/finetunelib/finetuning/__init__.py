"""From a pretrained model to a new task: heads, freezing and weights files.

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from finetunelib._lazy import lazily

if TYPE_CHECKING:
    from finetunelib.finetuning._certificate import Certificate
    from finetunelib.finetuning._find_head import find_head
    from finetunelib.finetuning._fingerprint import fingerprint
    from finetunelib.finetuning._freeze import freeze, is_frozen, unfreeze
    from finetunelib.finetuning._head import Head
    from finetunelib.finetuning._load_report import LoadReport
    from finetunelib.finetuning._replace_head import replace_head
    from finetunelib.finetuning._weights import load_weights, save_weights

__all__ = [
    "Certificate",
    "Head",
    "LoadReport",
    "find_head",
    "fingerprint",
    "freeze",
    "is_frozen",
    "load_weights",
    "replace_head",
    "save_weights",
    "unfreeze",
]

if not TYPE_CHECKING:  # A checker is to see the names above, and no others.
    __getattr__, __dir__ = lazily(
        __name__,
        globals(),
        {
            "Certificate": "_certificate",
            "Head": "_head",
            "LoadReport": "_load_report",
            "find_head": "_find_head",
            "fingerprint": "_fingerprint",
            "freeze": "_freeze",
            "is_frozen": "_freeze",
            "load_weights": "_weights",
            "replace_head": "_replace_head",
            "save_weights": "_weights",
            "unfreeze": "_freeze",
        },
    )
