"""Explanations of the differences between a file's tensors and a model's, and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from finetunelib._messages import listed, quoted
from finetunelib.finetuning._weights.renaming import (
    NameComparison,
    Renaming,
    Shape,
    best_renaming,
    differ_in_rows,
)

#: The number of entries up to which a renaming is written into the text.
_SHORT = 8

#: Parts of names that peft adds to the layers that it adapts.
_ADAPTED = ("base_layer", "modules_to_save", "original_module")


@dataclass(frozen=True, slots=True)
class Suggestions:
    """Sentences that explain the differences, and a renaming to try."""

    sentences: tuple[str, ...]
    rename: Mapping[str, str] = field(default_factory=dict)


def suggest(comparison: NameComparison) -> Suggestions:
    """Return explanations of the differences, one or two sentences each."""
    if not comparison.file_shapes:
        return Suggestions(
            ("The file contains no tensors: it was saved from a model without weights.",)
        )
    found = [*_unwrapped(comparison)]
    if _needs_no_adapters(comparison):
        found.append(
            "The model has peft adapters and the file has none: load the file into the base model, "
            "before `get_peft_model`."
        )
        return Suggestions(tuple(found))
    if _needs_adapters(comparison):
        found.append(
            "The file has peft adapters and the model has none: call `get_peft_model` with the "
            "configuration of the adapters first."
        )
        return Suggestions(tuple(found))
    renaming = best_renaming(comparison)
    if renaming is not None:
        found.append(_text(renaming))
    found += _tied(comparison)
    found += [*_embeddings(comparison), *_head(comparison, renamed=renaming is not None)]
    found += _shapes(comparison)
    if not found and not comparison.match.sources:
        found.append("No name or shape matches: the file seems to belong to another model.")
    return Suggestions(tuple(found), {} if renaming is None else renaming.rename)


def _unwrapped(comparison: NameComparison) -> Iterator[str]:
    for part in comparison.match.unwrapped:
        yield f"`{part}`, which a wrapper adds to names, was ignored."


def _needs_no_adapters(comparison: NameComparison) -> bool:
    """Return whether the model has peft adapters and the file is of its base model."""
    return any(map(_is_adapted, comparison.missing)) and not any(
        map(_is_adapted, comparison.file_shapes)
    )


def _needs_adapters(comparison: NameComparison) -> bool:
    """Return whether the file has peft adapters and the model has none."""
    return any(map(_is_adapted, comparison.match.unexpected)) and not any(
        map(_is_adapted, comparison.model_shapes)
    )


def _is_adapted(name: str) -> bool:
    parts = name.split(".")
    return any(part in _ADAPTED or part.startswith("lora_") for part in parts)


def _text(renaming: Renaming) -> str:
    entries = dict(renaming.rename)
    tensors = "1 tensor" if renaming.gain == 1 else f"{renaming.gain} tensors"
    if len(entries) <= _SHORT:
        return f"{renaming.reason}: `rename={json.dumps(entries)}` finds {tensors} more."
    some = dict(list(entries.items())[:3])
    return (
        f"{renaming.reason}: a `rename` with {len(entries)} entries finds {tensors} more, such as "
        f"{json.dumps(some)}. It is the attribute `rename` of this error or report."
    )


def _tied(comparison: NameComparison) -> Iterator[str]:
    """Explain a missing tensor that the file's model tied to an embedding."""
    embeddings = [name for name in comparison.embeddings if name in comparison.match.sources]
    for name, shape in comparison.missing.items():
        same = [other for other in embeddings if comparison.model_shapes[other] == shape]
        if len(shape) == 2 and same:
            yield (
                f"The file has no `{name}`, but `{same[0]}` of the same shape: it was saved from a "
                f"model that ties the two. Tie them before loading (`model.{name} = "
                f"model.{same[0]}`, or `tie_word_embeddings=True` in a transformers config)."
            )


def _embeddings(comparison: NameComparison) -> Iterator[str]:
    """Explain embeddings with another number of rows, with the tensors of the same sizes."""
    rows: dict[tuple[int, int], list[str]] = {}
    for name, (file, model) in comparison.wrong_shape.items():
        if name in comparison.embeddings and differ_in_rows(file, model):
            rows.setdefault((file[0], model[0]), []).append(name)
    for (file_rows, model_rows), names in rows.items():
        others = [
            name
            for name in _with_rows(comparison, file_rows, model_rows)
            if name not in comparison.embeddings
        ]
        also = f" (and so has {quoted(others)})" if others else ""
        yield (
            f"The embedding {quoted(names)} has {file_rows} rows in the file and {model_rows} in "
            f"the model{also}: another vocabulary or maximum length. Build the model with the "
            "file's, and resize it after loading (`model.resize_token_embeddings` in transformers)."
        )


def _with_rows(comparison: NameComparison, file_rows: int, model_rows: int) -> list[str]:
    return [
        name
        for name, (file, model) in comparison.wrong_shape.items()
        if differ_in_rows(file, model) and (file[0], model[0]) == (file_rows, model_rows)
    ]


def _explained_by_embeddings(comparison: NameComparison) -> set[str]:
    return {
        name
        for embedding in comparison.embeddings
        if embedding in comparison.wrong_shape
        and differ_in_rows(*comparison.wrong_shape[embedding])
        for name in _with_rows(comparison, *(s[0] for s in comparison.wrong_shape[embedding]))
    }


def _head(comparison: NameComparison, *, renamed: bool) -> Iterator[str]:
    """Explain a head with another number of classes, and parts that only one side has."""
    if comparison.wrong_shape:
        counts, names = _class_counts(comparison)
        if counts is not None:
            owners = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
            yield (
                f"`{listed(list(owners))}` has {counts[0]} classes in the file and {counts[1]} in "
                "the model: expected after replacing the head."
            )
        return
    in_file, in_model = _owner_of(comparison.unexpected), _owner_of(comparison.missing)
    if renamed or not comparison.match.sources or not (in_file or in_model):
        return
    if in_file and not comparison.missing:
        yield (
            f"The model has no `{in_file}`, and everything in the model is in the file: expected "
            "if the head, or a part that only training needs, was removed; otherwise the model has "
            "fewer layers than the saved one."
        )
    elif in_model and not comparison.unexpected:
        is_last = list(comparison.model_shapes)[-1] in comparison.missing
        why = (
            "expected if a backbone was saved without its head"
            if is_last
            else "the model has more layers than the saved one; build it with as many"
        )
        yield f"The file has no `{in_model}`: {why}."
    elif in_file and in_model:
        same = in_file == in_model
        what = f"`{in_file}`" if same else f"`{in_file}` and the model has `{in_model}`,"
        yield (
            f"The file has {what} with another structure: expected after replacing the head by "
            "several layers."
        )


def _class_counts(comparison: NameComparison) -> tuple[tuple[int, int] | None, list[str]]:
    """Return the class counts of file and model if these explain the wrong shapes, and the names.

    Shapes that another vocabulary explains are left out.
    """
    explained = _explained_by_embeddings(comparison)
    wrong = {name: pair for name, pair in comparison.wrong_shape.items() if name not in explained}
    counts = {(file[0], model[0]) for file, model in wrong.values() if file and model}
    fits = all(differ_in_rows(*shapes) for shapes in wrong.values()) and len(counts) == 1
    return (counts.pop() if fits else None), list(wrong)


def _owner_of(names: Mapping[str, Shape]) -> str:
    """Return the dotted name of the module that contains all of these tensors, or ""."""
    parts = [name.split(".") for name in names]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _shapes(comparison: NameComparison) -> Iterator[str]:
    """Explain shapes with the same values in another arrangement, and other sizes."""
    explained = _explained_by_embeddings(comparison)
    transposed, reshaped, others = [], [], []
    for name, (file, model) in comparison.wrong_shape.items():
        if name in explained:
            continue
        if file == model[::-1] or (len(model) == 4 and file == (*model[2:], model[1], model[0])):
            transposed.append(name)
        elif math.prod(file) == math.prod(model):
            reshaped.append(name)
        else:
            others.append(name)
    if transposed:
        yield (
            f"Transposed in the file, as TensorFlow and GPT-2 store weights: {listed(transposed)}. "
            "Transpose them in the state dict (`state[name] = state[name].T`, or "
            "`.permute(3, 2, 0, 1)` for a convolution) and save it again."
        )
    if reshaped:
        yield (
            f"The same number of values in another shape: {listed(reshaped)}. If they mean the "
            "same, reshape them in the state dict (`state[name].reshape(...)`) and save it again."
        )
    if others and _class_counts(comparison)[0] is None:
        yield (
            f"Different sizes: {listed(others)}. Build the model with the sizes of the file "
            "(widths, input channels, image size), or leave these tensors as the model has them."
        )
