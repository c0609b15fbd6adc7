"""From a pretrained model to a new task: heads, freezing and weights files."""

from finetunelib.finetuning._find_head import Head, find_head
from finetunelib.finetuning._replace_head import freeze_and_replace_head
from finetunelib.finetuning._weights import LoadReport, load_weights, save_weights

__all__ = ["Head", "LoadReport", "find_head", "load_weights", "save_weights"]

for _public in (Head, LoadReport, find_head, load_weights, save_weights):
    _public.__module__ = __name__
freeze_and_replace_head.__module__ = "finetunelib"
