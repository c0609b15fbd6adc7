"""Collects the metadata of an exported file, and checks what the user adds to it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from finetunelib._wrappers import own_name
from finetunelib.errors import FreezeError, InvalidArgumentError, InvalidTypeError
from finetunelib.export._metadata.format import RESERVED, OnnxMetadata, SelfTest
from finetunelib.export._verification.outcome import Verification
from finetunelib.finetuning._digests import digest
from finetunelib.finetuning._freezing.certificate import Certificate

#: The packages whose versions determine the content of a file.
_PACKAGES = ("finetunelib", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime")

_BEFORE = "In the graph, which takes raw inputs: "


@dataclass(frozen=True, slots=True)
class Description:
    """Metadata that the user passed, checked.

    Attributes:
        labels: The names of the classes.
        metadata: Custom texts.
        certificate: The tensors that were frozen in a training run.
    """

    labels: tuple[str, ...] | None
    metadata: dict[str, str]
    certificate: Certificate | None

    @classmethod
    def of(cls, labels: object, metadata: object, certificate: object) -> Description:
        """Check the arguments of an export.

        Raises:
            InvalidTypeError: If labels or metadata are not text, or `certificate` is not one.
            InvalidArgumentError: If a key of the metadata is reserved, or a text contains a path
                of this machine.
        """
        checked = cls(_labels(labels), _texts(metadata), _certificate(certificate))
        for where, text in (
            *((f"metadata[{key!r}]", text) for key, text in checked.metadata.items()),
            *((f"labels[{i}]", text) for i, text in enumerate(checked.labels or ())),
        ):
            _check_private(where, text)
        return checked

    def complete(
        self,
        *,
        pipeline: nn.Module | None,
        softmax: bool,
        weights: str,
        verification: Verification | None,
        size_checks: Sequence[str],
        self_test: SelfTest | None,
    ) -> OnnxMetadata:
        """Return the complete metadata of a file.

        Args:
            pipeline: The preprocessing in the graph.
            softmax: Whether the graph ends with a softmax.
            weights: The sha256 of the weights.
            verification: The result of the comparison with the model.
            size_checks: Conditions on sizes that the graph checks.
            self_test: Samples and the model's outputs for them.
        """
        extra = dict(self.metadata)
        return OnnxMetadata(
            description=extra.pop("description", None),
            labels=None if self.labels is None else list(self.labels),
            preprocessing=None
            if pipeline is None
            else f"{_BEFORE}{' '.join(repr(pipeline).split())}",
            postprocessing="softmax" if softmax else None,
            versions=versions(),
            verification=None if verification is None else _numbers(verification),
            size_checks=list(size_checks) or None,
            certificate=None if self.certificate is None else _statement(self.certificate),
            weights_sha256=weights,
            self_test=self_test,
            extra=extra,
        )


def check_certificate(certificate: Certificate, model: nn.Module) -> None:
    """Check that the tensors of a certificate have not changed, by hashing them again.

    Raises:
        FreezeError: If a tensor is missing or has changed.
    """
    tensors = _tensors(model)
    for name, seen in certificate.digests.items():
        if name not in tensors:
            raise FreezeError(
                f"`certificate` lists the tensor `{name}`, which the model does not have. "
                "Pass the certificate of this model's training run."
            )
        if digest(tensors[name]) != seen:
            raise FreezeError(
                f"`certificate` lists the tensor `{name}` as frozen, but it has changed since the "
                "training run. Export the model as it was trained."
            )


def weights_sha256(model: nn.Module) -> str:
    """Return one sha256 of all tensors in a model's state, ordered by name."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            state.update(f"{own_name(name)} {digest(tensor)}\n".encode())
    return state.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that write a file."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # A package imported from a source tree has no metadata.
    return found


def self_test_of(
    names: Sequence[str], inputs: Sequence[Tensor], outputs: Mapping[str, Tensor], tolerance: float
) -> SelfTest:
    """Return samples and the model's outputs for them, as arrays."""
    results = {name: tensor.detach().cpu().numpy() for name, tensor in outputs.items()}
    largest = max(float(np.abs(array).max(initial=0.0)) for array in results.values())
    return SelfTest(
        inputs={
            name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)
        },
        outputs=results,
        tolerance=tolerance * (largest or 1.0),
    )


def _labels(labels: object) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise InvalidTypeError(
            f"`labels` must be a list of class names, got {type(labels).__name__}."
        )
    for number, label in enumerate(labels):
        if not isinstance(label, str):
            raise InvalidTypeError(
                f"`labels` must contain strings, got {label!r} at labels[{number}]. Use str()."
            )
    return tuple(labels)


def _texts(metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidTypeError(
            f"`metadata` must be a dict of strings, got {type(metadata).__name__}."
        )
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise InvalidTypeError(
                f"`metadata` must map strings to strings, got {key!r}: {text!r}. Use str()."
            )
        if key in RESERVED:
            raise InvalidArgumentError(
                f"The key {key!r} of `metadata` is reserved. Use another key."
            )
    return dict(metadata)


def _certificate(certificate: object) -> Certificate | None:
    if certificate is None or isinstance(certificate, Certificate):
        return certificate
    hint = " Pass its `.certificate`." if hasattr(certificate, "certificate") else ""
    raise InvalidTypeError(
        f"`certificate` must be the `certificate` of a History, got {type(certificate).__name__}."
        f"{hint}"
    )


def _check_private(where: str, text: str) -> None:
    for what, folder in (("home", Path.home()), ("working", Path.cwd())):
        # The root folder is in every text with a slash.
        if len(folder.parts) > 1 and str(folder) in text:
            raise InvalidArgumentError(
                f"`{where}` contains the path of your {what} folder ({folder}), which anyone with "
                "the file could read. Remove it."
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {own_name(name): tensor for name, tensor in named}


def _statement(certificate: Certificate) -> dict[str, Any]:
    return {
        "statement": " ".join(str(certificate).splitlines()),
        "digests": dict(certificate.digests),
        "loaded": list(certificate.loaded),
        "moved": list(certificate.moved),
    }


def _numbers(verification: Verification) -> dict[str, Any]:
    return {
        "status": verification.status,
        "tolerance": verification.tolerance,
        "batch_sizes": list(verification.batch_sizes),
        "samples": verification.samples,
        "sizes": {name: list(sizes) for name, sizes in verification.sizes.items()},
        "limits": {name: list(limits) for name, limits in verification.limits.items()},
        "reasons": list(verification.reasons),
        "comparisons": [
            {
                "output": c.output,
                "batch_size": c.batch_size,
                "largest_error": c.largest_error,
                "spread": c.spread,
                "norm_ratio": c.norm_ratio,
                "argmax_agreement": c.argmax_agreement,
            }
            for c in verification.comparisons
        ],
    }
