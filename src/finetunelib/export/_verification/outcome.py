"""The result of a comparison: its status, and what was and was not compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetunelib._public import public
from finetunelib._tables import wrapped
from finetunelib.export._verification.comparison import Comparison


@public("finetunelib.export")
@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """The result of comparing a file with a model.

    Attributes:
        status: `"verified"` if the file computes what the model does, every input and output
            varied, and every dynamic axis was compared at two sizes or more. `"inconclusive"` if
            nothing differed, but one of these is not so; see `reasons`.
        batch_sizes: The batch sizes that were compared, in order.
        tolerance: The largest error allowed, as a fraction of the spread.
        comparisons: The numbers for each output and batch.
        samples: The number of rows that were compared.
        sizes: The sizes of each dynamic axis that were compared, by the name of the axis.
        limits: The smallest and largest size of an axis for which the file is right (`None`: no
            limit), by the name of the axis. An axis that is not listed has no limit.
        reasons: Why nothing was proven, if the status is `"inconclusive"`.
        constant_inputs: The inputs that never varied.
        constant_outputs: The outputs that are the same for all inputs, and equal in both.

    Example:
        >>> import os, tempfile, torch
        >>> from finetunelib import build_mlp, export_onnx
        >>> from finetunelib.export import verify_onnx
        >>> model, inputs = build_mlp(4, [8], 3, seed=0), torch.randn(5, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_onnx(model, os.path.join(folder, "mlp.onnx"), inputs, verify=False)
        ...     verify_onnx(report.path, model, [inputs])
        Verification('verified', 7 samples, batch_sizes=(5, 2))
    """

    status: Literal["verified", "inconclusive"]
    batch_sizes: tuple[int, ...]
    tolerance: float
    comparisons: tuple[Comparison, ...]
    samples: int = 0
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    limits: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    constant_inputs: tuple[str, ...] = ()
    constant_outputs: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Verification({self.status!r}, {self.samples} samples, "
            f"batch_sizes={tuple(dict.fromkeys(self.batch_sizes))})"
        )

    def __str__(self) -> str:
        parts = [self._headline(), self._limits()]
        if self.constant_outputs:
            parts.append(f"Constant, and equal: {_listed(self.constant_outputs)}.")
        return "\n".join(wrapped(" ".join(filter(None, parts))))

    def _headline(self) -> str:
        compared = self._compared()
        if self.status == "inconclusive":
            reasons = self.reasons or ("the model's outputs do not vary over the samples",)
            return (
                f"Inconclusive: nothing differs {compared}, but {'; '.join(reasons)}. "
                "Pass real samples that vary: `sample_inputs=`."
            )
        worst = max(comparison.error for comparison in self.comparisons if comparison.spread)
        norm = max(abs(comparison.norm_ratio - 1) for comparison in self.comparisons)
        return (
            f"Verified with ONNX Runtime {compared}: the largest error is {worst:.1e} of the "
            f"outputs' spread (allowed: {self.tolerance:.0e}), the norms agree to {norm:.0e}"
            + (", and all predicted classes agree." if self._has_classes else ".")
        )

    def _compared(self) -> str:
        sizes = ", ".join(map(str, dict.fromkeys(self.batch_sizes)))
        text = f"on {self.samples} samples at batch sizes {sizes}"
        for name, found in self.sizes.items():
            if name != "batch":
                text += f"; `{name}` {', '.join(map(str, found))}"
        return text

    def _limits(self) -> str:
        return " ".join(
            f"The file is for `{name}` from {low} " + ("on." if high is None else f"to {high}.")
            for name, (low, high) in self.limits.items()
        )

    @property
    def _has_classes(self) -> bool:
        return any(comparison.argmax_agreement is not None for comparison in self.comparisons)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
