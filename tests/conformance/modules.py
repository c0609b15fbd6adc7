"""Freeze each of PyTorch's own modules under a new linear head, and train the head.

    python tests/conformance/modules.py [--only NAME]

The modules and their inputs are those of PyTorch's own test suite (`module_db`). For each module,
the head must be found, the frozen tensors must stay bitwise unchanged during three AdamW steps in
train mode, the outputs of the frozen module must be those of eval mode, and the weights must
survive a round trip through a file. Takes about five minutes on one core. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib import freeze_and_replace_head
from finetunelib.errors import FreezeError
from finetunelib.finetuning import find_head, fingerprint, load_weights, save_weights

RESULTS = Path(__file__).parent / "results" / "modules.json"
CLASSES = 3
STEPS = 3


class WithHead(nn.Module):
    """A PyTorch module with a linear head on its first output.

    Args:
        module: The module.
        args: The positional arguments of its forward. Tensors are inputs of the model; other values
            are constants.
        kwargs: The keyword arguments of its forward.
    """

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.args, self.kwargs = list(args), kwargs
        self.head: nn.Module = nn.Identity()

    def features(self, *tensors: Tensor) -> Tensor:
        """Run the module, and return its first output as rows."""
        values = iter(tensors)
        args = [next(values) if isinstance(value, Tensor) else value for value in self.args]
        kwargs = {
            name: next(values) if isinstance(value, Tensor) else value
            for name, value in self.kwargs.items()
        }
        output = self.module(*args, **kwargs)
        while not isinstance(output, Tensor):
            output = output[0]
        return output.flatten(1) if output.dim() > 1 else output

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the logits, of shape (rows, classes)."""
        logits: Tensor = self.head(self.features(*tensors))
        return logits

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the tensors among the arguments."""
        values = [*self.args, *self.kwargs.values()]
        return tuple(value.detach() for value in values if isinstance(value, Tensor))


@dataclass(frozen=True, slots=True)
class Case:
    """One module of `module_db` with one of its inputs."""

    name: str
    model: WithHead


def cases(only: str = "") -> Iterator[Case]:
    """Yield each module with each of its inputs. Skips losses, whose outputs have no rows."""
    from torch.testing._internal.common_modules import module_db

    for info in module_db:
        if only not in info.name:
            continue
        torch.manual_seed(0)
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
        )
        for number, example in enumerate(inputs):
            if example.forward_input is None:
                continue
            built, call = example.constructor_input, example.forward_input
            model = WithHead(info.module_cls(*built.args, **built.kwargs), call.args, call.kwargs)
            try:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows = model.features(*model.inputs())
            except RuntimeError:
                continue  # The input is not float32.
            if rows.dim() == 2 and rows.is_floating_point() and rows.numel():
                model.head = nn.Linear(rows.shape[1], 5)
                yield Case(f"{info.name}/{number}", model)


def check(model: WithHead) -> str:
    """Return what went wrong with one model, or an empty string."""
    inputs = model.inputs()
    found = find_head(model, example_input=inputs)
    if found.module is not model.head:
        return f"the head found is {found.name}"
    freeze_and_replace_head(model, CLASSES, example_input=inputs)
    with torch.no_grad():
        before = [model.eval().features(*inputs) for _ in range(2)]
        after = model.train().features(*inputs)
    if torch.equal(*before) and not torch.equal(before[0], after):
        return "the frozen module computes something else in train mode"
    frozen = fingerprint(model.module)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    targets = torch.arange(len(after)) % CLASSES
    for _ in range(STEPS):
        model.train()
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(*inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if fingerprint(model.module) != frozen:
        return "a frozen tensor changed"
    return _round_trip(model)


def _round_trip(model: WithHead) -> str:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(model, path)
        load_weights(other, path)
    same = fingerprint(model) == fingerprint(other)  # Bitwise, including NaN.
    return "" if same else "the weights changed in a file"


def main() -> int:
    """Check all modules, write the results, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description="Freeze PyTorch's own modules under a new head.")
    parser.add_argument(
        "--only", default="", help="check the modules with this text in their names"
    )
    options = parser.parse_args()
    tried: Counter[str] = Counter()
    failures: dict[str, str] = {}
    refused: dict[str, str] = {}
    for case in cases(options.only):
        tried[case.name.partition("/")[0]] += 1
        try:
            problem = check(case.model)
        except FreezeError as error:
            refused[case.name] = str(error)
            continue
        except Exception as error:  # noqa: BLE001 - a failure of one module is a result
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures[case.name] = problem
            print(case.name, problem, flush=True)  # noqa: T201 - the output of a script
    if not options.only:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "python": sys.version.split()[0],
            "torch": version("torch"),
            "modules": len(tried),
            "cases": sum(tried.values()),
            "refused": refused,
            "failed": failures,
            "inputs of each module": dict(sorted(tried.items())),
        }
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    summary = f"{sum(tried.values())} cases of {len(tried)} modules"
    print(f"{summary}: {len(refused)} refused, {len(failures)} failed")  # noqa: T201
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
