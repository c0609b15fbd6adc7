"""Export every torchvision classification model and models of other kinds, and verify each file.

    python tests/conformance/export.py [--again] [--before DATE] [--only NAME]

Each model has weights whose outputs vary (see `export_models`) and is exported with a dynamic
batch. The file is verified by the export, and again with images that the export did not use. The
results, and the documentation page that shows them, are written after each model. An interrupted
run can be continued; `--again` starts from scratch. The largest models need some gigabytes of
memory and of temporary disk space.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from conformance.export_models import (
    IMAGES,
    ROWS,
    ExportModel,
    own_models,
    rows,
    torchvision_models,
    transformers_models,
)
from conformance.library_models import library_models
from finetunelib import export_onnx
from finetunelib.errors import FinetuneLibError
from finetunelib.export import ExportReport, load_onnx_metadata, verify_onnx
from finetunelib.export._metadata.describe import weights_sha256

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "export.json"
PAGE = ROOT / "docs" / "concepts" / "exported-models.md"
#: An explanation of the table on the page.
_MEANING = """\
The weights are random but chosen to make the outputs vary: each BatchNorm has the statistics of
images and small weights, which keeps rounding errors from growing, and the head is initialized
again. Each file has a dynamic batch size, and texts also have a dynamic length. `export_onnx`
compared the file with the model at batch sizes 1, 2 and 7 (1 and 3 for large models), and
`verify_onnx` compared it on samples that were not used for the export. The model was bitwise
unchanged afterwards. An error is the largest error of any value, as a fraction of the spread of the
outputs over the samples (allowed: 0.001). The norm ratio is the one furthest from 1. The column
"millions" counts parameters. The seconds are those of `export_onnx` including verification: elapsed
time, and CPU time in brackets, which other programs do not affect. Two files mean a model above
2 GB, whose weights are stored next to the graph."""

PACKAGES = ("finetunelib", "torch", "torchvision", "timm", "transformers", "onnx", "onnxscript")


def models() -> list[ExportModel]:
    """Return all models that are exported."""
    return [*torchvision_models(), *transformers_models(), *own_models(), *library_models()]


def key(case: ExportModel) -> str:
    """Return the name of a model in the results."""
    return f"{case.library}/{case.name}"


def check(case: ExportModel, folder: Path) -> dict[str, Any]:
    """Export one model into a folder, and return the result."""
    model, samples = case.build()
    found: dict[str, Any] = {
        "date": _today(),
        "family": case.family,
        "inputs": case.inputs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    before = weights_sha256(model)
    started, processors = time.perf_counter(), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # An inconclusive result is a warning.
            report = export_onnx(
                model,
                folder / "model.onnx",
                rows(samples, 0, ROWS),
                dynamic_shapes=case.dynamic_shapes,
            )
        found["seconds"] = round(time.perf_counter() - started, 1)
        found["processor_seconds"] = round(time.process_time() - processors, 1)
        unseen = verify_onnx(report.path, model, [rows(samples, ROWS, IMAGES)])
    except (FinetuneLibError, UserWarning) as error:
        found.setdefault("seconds", round(time.perf_counter() - started, 1))
        return {**found, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    assert report.verification is not None
    comparisons = report.verification.comparisons
    norms: list[float] = [comparison.norm_ratio for comparison in comparisons]
    norm = max(norms, key=lambda ratio: abs(ratio - 1))
    found |= {
        "megabytes": round(report.size / 1e6, 1),
        "files": 2 if report.data_path else 1,
        "largest_error": float(f"{max(c.error for c in comparisons):.2e}"),
        "largest_error_on_unseen": float(f"{max(c.error for c in unseen.comparisons):.2e}"),
        "norm_ratio": round(norm, 7),
        "status": report.verification.status,
    }
    wrong = _wrong(case, report, before, weights_sha256(model))
    if unseen.status != "verified":
        wrong.append(f"on images that the export did not use: {unseen}")
    return {**found, "status": "failed", "error": "; ".join(wrong)} if wrong else found


def _wrong(case: ExportModel, report: ExportReport, before: str, after: str) -> list[str]:
    """Return further errors of an export: fixed axes, a changed model, or a wrong hash."""
    wrong = [
        f"the axis 0 of `{info}` is not dynamic"
        for info in (*report.inputs, *report.outputs)
        if info.shape[0] != "batch"
    ]
    for info in report.inputs:
        wanted = (case.dynamic_shapes or {}).get(info.name, {})
        wrong += [
            f"the axis {axis} of `{info}` is not dynamic"
            for axis, name in wanted.items()
            if info.shape[axis] != name
        ]
    if after != before:
        wrong.append("the export changed the model")
    if load_onnx_metadata(report.path)["weights_sha256"] != before:
        wrong.append("the file contains the hash of other weights")
    return wrong


def write(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Write all results so far, and the page that shows them."""
    content = {
        "date": _today(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            "onnxruntime": version("onnxruntime"),
        },
        "tried": len(found),
        "not_tried": [name for name in map(key, models()) if name not in found],
        "verified": sum(result["status"] == "verified" for result in found.values()),
        "seconds": round(sum(float(result["seconds"]) for result in found.values())),
        "models": found,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    scratch = RESULTS.with_suffix(".partial")
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(RESULTS)
    PAGE.write_text(page(content), encoding="utf-8")


def page(content: Mapping[str, Any]) -> str:
    """Return the documentation page that shows the results."""
    found: Mapping[str, Mapping[str, Any]] = content["models"]
    failed = {name: result for name, result in found.items() if result["status"] != "verified"}
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    dates = sorted({result["date"] for result in found.values()})
    left = (
        [f"Not tried yet: {', '.join(content['not_tried'])}.", ""] if content["not_tried"] else []
    )
    return "\n".join(
        [
            "# Models that were exported and verified",
            "",
            *textwrap.wrap(
                f"`python tests/conformance/export.py` of {' and '.join(dates)}: "
                f"{content['verified']} of {content['tried']} models verified, "
                f"in {content['seconds'] / 60:.0f} minutes "
                f"on a shared machine of {content['cores']} cores, with {versions}.",
                width=100,
            ),
            "",
            _MEANING,
            "",
            *_table(found.items()),
            "",
            *(_failures(failed) if failed else []),
            *left,
            "Next: {doc}`verification`.",
            "",
        ]
    )


def _table(found: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    lines = [
        "| model | input | millions | files | seconds | error | on unseen | norm ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, result in found:
        numbers = (
            [
                str(result["files"]),
                f"{result['seconds']} ({result['processor_seconds']})",
                f"{result['largest_error']:.1e}",
                f"{result['largest_error_on_unseen']:.1e}",
                f"{result['norm_ratio']:.6f}",
            ]
            if "largest_error" in result
            else ["", str(result["seconds"]), "failed", "", ""]
        )
        size = f"{result['parameters'] / 1e6:.3g}"
        inputs = result["inputs"].replace(" x ", "\N{MULTIPLICATION SIGN}")
        # Short names keep the errors visible on narrow screens.
        short = re.sub(r"^torchvision/|For\w+Classification$", "", name)
        lines.append(f"| {' | '.join([short, inputs, size, *numbers])} |")
    return lines


def _failures(failed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## What failed", ""]
    for name, result in failed.items():
        error = " ".join(str(result["error"]).split())
        lines.append(f"- `{name}`: {error}")
    return [*lines, ""]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _chosen(
    cases: Iterable[str], results: Mapping[str, Mapping[str, Any]], options: argparse.Namespace
) -> list[str]:
    """Return the names of the models to export, those that took little time first."""

    def is_chosen(name: str) -> bool:
        if options.only:
            return options.only in name
        result = results.get(name, {})
        return result.get("status") != "verified" or result["date"] < options.before

    def seconds(name: str) -> float:
        return float(results.get(name, {}).get("seconds", 0.0))

    return sorted(filter(is_chosen, cases), key=seconds)


def main() -> int:
    """Export what is missing or failed, and return 1 if a model is not verified."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--again", action="store_true", help="export models that have results too")
    parser.add_argument("--before", default="", help="also those with a result before this date")
    parser.add_argument("--only", help="export again the models with this text in their names")
    options = parser.parse_args()
    cases = {key(case): case for case in models()}
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.exists() else {}
    results = {} if options.again else {name: stored[name] for name in cases if name in stored}
    with tempfile.TemporaryDirectory(prefix="finetunelib-") as folder:
        check(own_models()[-1], Path(folder))  # The first export also imports the exporter.
    for name in _chosen(cases, results, options):
        with tempfile.TemporaryDirectory(prefix="finetunelib-") as folder:
            results[name] = check(cases[name], Path(folder))
        results = {name: results[name] for name in cases if name in results}
        write(results)
        print(name, results[name], flush=True)  # noqa: T201 - a script's own output
        gc.collect()
    write(results)
    return int(any(result["status"] != "verified" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
