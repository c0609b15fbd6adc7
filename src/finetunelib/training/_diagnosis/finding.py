"""A finding, and the codes of all findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from finetunelib._messages import nearest
from finetunelib._public import public
from finetunelib.errors import InvalidArgumentError, InvalidTypeError

Level: TypeAlias = Literal["error", "warning"]
Certainty: TypeAlias = Literal["certain", "likely"]

#: The level of each finding by its code.
LEVELS: dict[str, Level] = {
    "parameters-not-in-optimizer": "error",
    "loss-without-gradient": "error",
    "softmax-before-cross-entropy": "warning",
    "log-softmax-before-cross-entropy": "warning",
    "sigmoid-before-bce-with-logits": "warning",
    "logits-into-nll-loss": "warning",
    "initial-loss-too-high": "warning",
    "inputs-in-0-255": "warning",
    "inputs-far-from-unit-scale": "warning",
    "labels-of-one-class": "warning",
    "validation-in-training-data": "warning",
    "batchnorm-in-eval": "warning",
    "batchnorm-with-one-sample": "warning",
    "dropout-in-eval": "warning",
    "new-head-frozen": "warning",
    "parameter-without-gradient": "warning",
    "update-below-precision": "warning",
    "adapter-not-moving": "warning",
}


@public("finetunelib.training")
@dataclass(frozen=True, slots=True)
class Finding:
    """Something that keeps a model from learning, or will make its measurements wrong.

    Attributes:
        code: A short name, such as `"softmax-before-cross-entropy"`, to ignore the finding by.
        certainty: `"certain"`, or `"likely"` if it may be intended.
        problem: What is wrong.
        advice: What to do.

    Example:
        >>> from finetunelib.training import Finding
        >>> finding = Finding("labels-of-one-class", "certain", "All labels are 3.", "Shuffle.")
        >>> finding.level
        'warning'
        >>> print(finding)
        All labels are 3. Shuffle. [labels-of-one-class, certain]
    """

    code: str
    certainty: Certainty
    problem: str
    advice: str

    @property
    def level(self) -> Level:
        """`"error"` if `fit` raises or the model cannot learn, otherwise `"warning"`."""
        return LEVELS[self.code]

    def __str__(self) -> str:
        return f"{self.problem} {self.advice} [{self.code}, {self.certainty}]"


def check_ignored(codes: Iterable[str]) -> frozenset[str]:
    """Return the codes of findings that are ignored.

    Raises:
        InvalidTypeError: If `codes` is not a list of strings.
        InvalidArgumentError: If a code is unknown, or is that of an error.
    """
    if isinstance(codes, str) or not isinstance(codes, Iterable):
        raise InvalidTypeError(f"`ignore` must be a list of codes, got {codes!r}.")
    given = list(codes)
    for code in given:
        if not isinstance(code, str):
            raise InvalidTypeError(f"`ignore` must contain codes as strings, got {code!r}.")
        if code not in LEVELS:
            meant = nearest(code, LEVELS)
            warnings = [name for name, level in LEVELS.items() if level == "warning"]
            hint = f"Did you mean {meant!r}?" if meant else f"The codes are {', '.join(warnings)}."
            raise InvalidArgumentError(f"`ignore` has an unknown code {code!r}. {hint}")
        if LEVELS[code] == "error":
            raise InvalidArgumentError(
                f"`ignore` cannot contain {code!r}, which is an error: the model would not be "
                "trained. Only warnings can be ignored."
            )
    return frozenset(given)
