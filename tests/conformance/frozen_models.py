"""Freeze the backbone of detectors, segmenters, audio and text models, and replace their heads.

    python tests/conformance/frozen_models.py

Each model has random weights and small inputs. Its backbone is frozen by name and it is trained for
three AdamW steps in a hand-written loop, which calls `model.train()` before each. Then
`freeze_and_replace_head` is tried on a fresh model. Writes the JSON and the table of the
documentation. Takes about two minutes on one core; needs the `test` extra.
"""

from __future__ import annotations

import json
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torchvision.models import detection, segmentation

from finetunelib import freeze_and_replace_head
from finetunelib.errors import FinetuneLibError
from finetunelib.finetuning import fingerprint, freeze

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "frozen_models.json"
PAGE = ROOT / "docs" / "concepts" / "frozen-models.md"
CLASSES = 3
STEPS = 3

_RUN = "`python tests/conformance/frozen_models.py` of {date}, with {versions}."
_MEANING = """\
The weights are random. The table shows what `freeze(model, part)` does: the number of tensors that
it freezes, all of which were bit for bit the same after three AdamW steps in train mode, and what
the model returns in train mode. The last column shows what
`freeze_and_replace_head(model, num_classes=3)` does to a new model: the name of the new head, or
the error and its first sentence, and the result with `at=` if the head has to be named."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to try.

    Attributes:
        name: The usual name of the model.
        build: Returns the model with random weights.
        part: The backbone, as passed to `freeze`.
        batch: Returns a batch of positional or named arguments.
        example: The inputs for finding the head, or `None` to find it without inputs.
        at: The name of the head, if it has to be passed.
    """

    name: str
    build: Callable[[], nn.Module]
    part: str
    batch: Callable[[], Any]
    example: Callable[[], Any] | None = None
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one model; `problem` is empty if every check passed."""

    part: str
    frozen_tensors: int
    in_train_mode: str
    head: str
    problem: str


def _images(*, masks: bool = False) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 96, 96, generator=generator) for _ in range(2)]
    target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
    if masks:
        target["masks"] = torch.ones(1, 96, 96, dtype=torch.uint8)
    return images, [dict(target) for _ in images]


def _pixels() -> tuple[Tensor]:
    return (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)


def _wave() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"input_values": torch.randn(2, 4000, generator=generator)}


def _tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(3, 19).reshape(2, 8)}


def _detector(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = getattr(detection, name)(
            weights=None, weights_backbone=None, num_classes=5, **options
        )
        return model

    return build


def _segmenter(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=5
        )
        return model

    return build


_SPEECH: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "mask_time_prob": 0.5,
    "mask_time_length": 2,
}
_TEXT: Mapping[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def _from_config(model: str, config: str, options: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return built

    return build


def models() -> list[Model]:
    """Return four detectors, three segmenters, two audio models and three text models."""
    small = {"min_size": 96, "max_size": 96}
    speech, ctc = "Wav2Vec2ForSequenceClassification", "Wav2Vec2ForCTC"
    roberta, distilbert = "RobertaForSequenceClassification", "DistilBertForSequenceClassification"
    distil = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    return [
        Model("Faster R-CNN", _detector("fasterrcnn_resnet50_fpn", **small), "backbone", _images),
        Model("SSDLite", _detector("ssdlite320_mobilenet_v3_large"), "backbone", _images),
        Model("RetinaNet", _detector("retinanet_resnet50_fpn", **small), "backbone", _images),
        Model(
            "Mask R-CNN",
            _detector("maskrcnn_resnet50_fpn", **small),
            "backbone",
            lambda: _images(masks=True),
        ),
        Model(
            "DeepLabV3", _segmenter("deeplabv3_resnet50"), "backbone", _pixels, at="classifier.4"
        ),
        Model("LR-ASPP", _segmenter("lraspp_mobilenet_v3_large"), "backbone", _pixels, _pixels),
        Model("FCN", _segmenter("fcn_resnet50"), "backbone", _pixels, at="classifier.4"),
        Model(speech, _from_config(speech, "Wav2Vec2Config", _SPEECH), "wav2vec2", _wave, _wave),
        Model(
            ctc,
            _from_config(ctc, "Wav2Vec2Config", _SPEECH),
            "wav2vec2.feature_extractor",
            _wave,
            _wave,
        ),
        Model(
            "BertForSequenceClassification",
            _from_config("BertForSequenceClassification", "BertConfig", _TEXT),
            "bert",
            _tokens,
            _tokens,
        ),
        Model(
            roberta,
            _from_config(roberta, "RobertaConfig", {**_TEXT, "max_position_embeddings": 20}),
            "roberta",
            _tokens,
            _tokens,
        ),
        Model(
            distilbert,
            _from_config(distilbert, "DistilBertConfig", distil),
            "distilbert",
            _tokens,
            _tokens,
        ),
    ]


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch. A mapping is passed as keyword arguments."""
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def loss_of(output: Any) -> Tensor:
    """Return the sum of a detector's losses, or the mean square of the outputs of other models."""
    if isinstance(output, Mapping) and all(value.dim() == 0 for value in output.values()):
        return torch.stack(list(output.values())).sum()
    tensor = output["out"] if "out" in output else output["logits"]
    return tensor.float().square().mean()  # type: ignore[no-any-return]


def check(case: Model) -> Outcome:
    """Freeze a model's backbone, train the rest, and replace the head of a fresh one."""
    torch.manual_seed(0)
    model = case.build()
    digests = freeze(model, case.part)
    problem = ""
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        weight_decay=0.5,
    )
    described = ""
    for _ in range(STEPS):
        model.train()
        optimizer.zero_grad()
        output = call(model, case.batch())
        described = "losses" if all(value.dim() == 0 for value in output.values()) else "outputs"
        loss_of(output).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = fingerprint(model)
    if any(after.get(name) != digest for name, digest in digests.items()):
        problem = "a frozen tensor changed"
    if not model.training:
        problem = problem or "the module around the frozen part is in eval mode"
    return Outcome(case.part, len(digests), described, _new_head(case), problem)


def _new_head(case: Model) -> str:
    """Return the outcome of `freeze_and_replace_head` for a fresh model, without and with `at=`."""
    found = _replaced(case, None)
    return (
        found if case.at is None else f"{found} With `at={case.at!r}`: {_replaced(case, case.at)}"
    )


def _replaced(case: Model, at: str | None) -> str:
    """Return the names of the new layers, or the error and its first sentence."""
    torch.manual_seed(0)
    model = case.build()
    names = dict(model.named_modules())
    example = None if case.example is None else case.example()
    try:
        freeze_and_replace_head(model, CLASSES, at=at, example_input=example)
    except FinetuneLibError as error:
        first = str(error).partition(". ")[0].replace("\n", " ").rstrip(".")
        return f"{type(error).__name__}: {first}."
    new = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and names.get(name) is not module
    ]
    return ", ".join(f"`{name}`" for name in new)


def page(content: Mapping[str, Any]) -> str:
    """Return the documentation page that shows the results."""
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    rows = [
        f"| {name} | `{one['part']}` | {one['frozen_tensors']} | {one['in_train_mode']} | "
        f"{one['head'].replace('|', '/')} |"
        for name, one in content["models"].items()
    ]
    return "\n".join(
        [
            "# Detectors, segmenters, speech and text",
            "",
            *textwrap.wrap(_RUN.format(date=content["date"], versions=versions), width=100),
            "",
            _MEANING,
            "",
            "| model | part | frozen tensors | in train mode | `freeze_and_replace_head` |",
            "| --- | --- | ---: | --- | --- |",
            *rows,
            "",
            "Next: {doc}`freezing`, or {doc}`heads`.",
            "",
        ]
    )


def main() -> int:
    """Check all models, write the results and the page, and return 1 if one failed."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    outcomes: dict[str, dict[str, Any]] = {}
    for case in models():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Removed auxiliary heads are reported.
            outcomes[case.name] = asdict(check(case))
        print(case.name, outcomes[case.name], flush=True)  # noqa: T201 - the output of a script
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            name: version(name) for name in ("finetunelib", "torch", "torchvision", "transformers")
        },
        "models": outcomes,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(content), encoding="utf-8")
    return int(any(outcome["problem"] for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
