"""From a pretrained model to a new task: heads, freezing and weights files."""

from finetunelib.finetuning._certificate import Certificate
from finetunelib.finetuning._find_head import find_head
from finetunelib.finetuning._fingerprint import fingerprint
from finetunelib.finetuning._freeze import freeze, is_frozen, unfreeze
from finetunelib.finetuning._head import Head
from finetunelib.finetuning._load_report import LoadReport
from finetunelib.finetuning._replace_head import freeze_and_replace_head, replace_head
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

for _public in (
    Certificate,
    Head,
    LoadReport,
    find_head,
    fingerprint,
    freeze,
    is_frozen,
    unfreeze,
    load_weights,
    replace_head,
    save_weights,
):
    _public.__module__ = __name__
freeze_and_replace_head.__module__ = "finetunelib"
