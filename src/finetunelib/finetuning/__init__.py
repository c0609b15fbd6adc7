"""Fine-tuning a pretrained model: heads, freezing and weights files.

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from finetunelib._public import lazily

if TYPE_CHECKING:
    from finetunelib.finetuning._features.cache import cache_features
    from finetunelib.finetuning._freezing.certificate import Certificate
    from finetunelib.finetuning._freezing.fingerprint import fingerprint
    from finetunelib.finetuning._freezing.freeze import freeze, is_frozen, unfreeze
    from finetunelib.finetuning._groups.groups import ParameterGroups, parameter_groups
    from finetunelib.finetuning._heads.find import find_head
    from finetunelib.finetuning._heads.head import Head
    from finetunelib.finetuning._heads.replace import replace_head
    from finetunelib.finetuning._weights.load import load_weights
    from finetunelib.finetuning._weights.report import LoadReport
    from finetunelib.finetuning._weights.save import save_weights

__all__ = [
    "Certificate",
    "Head",
    "LoadReport",
    "ParameterGroups",
    "cache_features",
    "find_head",
    "fingerprint",
    "freeze",
    "is_frozen",
    "load_weights",
    "parameter_groups",
    "replace_head",
    "save_weights",
    "unfreeze",
]

if not TYPE_CHECKING:  # Type checkers see only the names above.
    __getattr__, __dir__ = lazily(
        __name__,
        globals(),
        {
            "Certificate": "_freezing.certificate",
            "Head": "_heads.head",
            "LoadReport": "_weights.report",
            "ParameterGroups": "_groups.groups",
            "cache_features": "_features.cache",
            "find_head": "_heads.find",
            "fingerprint": "_freezing.fingerprint",
            "freeze": "_freezing.freeze",
            "is_frozen": "_freezing.freeze",
            "load_weights": "_weights.load",
            "parameter_groups": "_groups.groups",
            "replace_head": "_heads.replace",
            "save_weights": "_weights.save",
            "unfreeze": "_freezing.freeze",
        },
    )
