"""Errors of PyTorch's exporter in three lines: where in the model, the cause, a workaround."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from finetunelib.export._request.pipeline import user_name

#: Known workarounds, by text in the type or message of an error.
_WORKAROUNDS = {
    "GuardOnDataDependent": (
        "the path through forward depends on values: compute both and choose with torch.where, or "
        "use torch.cond; `int(...)` and `.item()` turn a tensor into a constant."
    ),
    "No ONNX function found": (
        "this operator cannot be converted to ONNX: use other operators, or try another "
        "`opset_version=`."
    ),
    "No module named": "the exporter needs this package: `pip install onnxscript onnx`.",
}

_ATTENTION = 'this attention cannot be traced: call `model.set_attn_implementation("eager")` first.'

#: The exporter's statement that an axis is not right for all of its declared sizes.
_NARROWER = re.compile(
    r"Not all values of (\w+) = \S+ in the specified range (.*?) satisfy the generated guard "
    r"(.*?)(?:\s+Suggested|\s+-|$)",
    re.DOTALL,
)

#: How many frames from the place of an error are searched for attention.
_INNERMOST = 12

_TORCH = Path(torch.__file__).parent


def explain(error: BaseException, model: nn.Module, inner_name: str) -> str:
    """Return at most three lines about a failed export.

    Args:
        error: The exception of the exporter.
        model: The module that was exported.
        inner_name: The name of the user's model in `model`, `""` if they are the same.
    """
    causes = list(_chain(error))
    place = _place(causes, model, inner_name)
    lines = [f"torch.onnx.export cannot export this model{place}.", f"Cause: {_cause(causes)}"]
    workaround = _workaround(causes, model)
    if workaround:
        lines.append(f"Workaround: {workaround}")
    return "\n".join(lines)


def says_static(error: BaseException) -> bool:
    """Return whether the exporter failed because the model fixes an axis that must be dynamic."""
    texts = [str(cause) for cause in _chain(error)]
    return any("static shape" in text or "Constraints violated" in text for text in texts)


def narrower_range(error: BaseException) -> str | None:
    """Return a message if the model covers only a part of the declared bounds of an axis."""
    text = " ".join(str(cause) for cause in _chain(error))
    found = _NARROWER.search(text)
    if found is None:
        return None
    guard = " ".join(re.sub(r"L\['\w+'\]\S*\.size\(\)\[\d+\]", found[1], found[3]).split())
    return (
        f"The axis `{found[1]}` is declared with the range {found[2].strip()}, but the exported "
        f"graph would be right only for {guard}: the forward branches on the size. Remove the "
        f"branch, or declare `torch.export.Dim({found[1]!r}, min=..., max=...)` within that range."
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)


def _place(causes: list[BaseException], model: nn.Module, inner_name: str) -> str:
    """Return the innermost module that ran, and the user's line in its forward."""
    names = {id(module): name for name, module in model.named_modules()}
    for cause in reversed(causes):
        module = line = ""
        for frame, number in traceback.walk_tb(cause.__traceback__):
            owner = names.get(id(_first_argument(frame)))
            if owner is None:
                continue
            if owner or not module:
                name = user_name(owner, inner_name)
                kind = type(_first_argument(frame)).__name__
                module = f" at `{name}` ({kind})" if name else f" at {kind}"
            file = frame.f_code.co_filename
            if _TORCH not in Path(file).parents:
                source = linecache.getline(file, number).strip()
                line = f", {file}:{number}" + (f": {source}" if source else "")
        if module:
            return module + line
    return ""


def _first_argument(frame: FrameType) -> object:
    names = frame.f_code.co_varnames
    return frame.f_locals.get(names[0]) if names and frame.f_code.co_argcount else None


def _cause(causes: list[BaseException]) -> str:
    """Return the first statement of the innermost error."""
    error = causes[0]
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A line that ends in a colon introduces the reason.
    reason = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {reason or 'no reason given'}"


def _workaround(causes: list[BaseException], model: nn.Module) -> str:
    texts = [f"{type(cause).__name__}: {cause}" for cause in causes]
    for sign, advice in _WORKAROUNDS.items():
        if any(sign in text for text in texts):
            return advice
    if any(hasattr(module, "set_attn_implementation") for module in model.modules()) and any(
        map(_is_in_attention, causes)
    ):
        return _ATTENTION
    return ""


def _is_in_attention(error: BaseException) -> bool:
    """Return whether an error was raised inside an implementation of attention, or is typical."""
    if "view" in str(error) and "strides" in str(error):
        return True
    names = [
        f"{frame.f_code.co_filename} {frame.f_code.co_name}".lower()
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    # The innermost frames only: the forward of a whole model contains attention, too.
    return any("attention" in name or "sdpa" in name for name in names[-_INNERMOST:])
