"""`diagnose`: errors as findings, nothing changed, the table, and rejected arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer
from finetunelib.errors import DataError, DiagnosisWarning, InvalidArgumentError, InvalidTypeError
from finetunelib.training import Diagnosis, Finding, StepOutput, Task, diagnose
from finetunelib.training._diagnosis.duplicates import compare
from support_untouched import changed_since, snapshot
from training._diagnosis.programs import INPUTS, MISTAKES, NEAR_MISSES, TARGETS, Program, mlp
from training.tiny import network, plain_network, points, quiet_trainer


def codes(diagnosis: Diagnosis) -> list[str]:
    """Return the codes of the findings."""
    return [finding.code for finding in diagnosis]


def detached(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss without a gradient."""
    return nn.functional.cross_entropy(outputs.detach(), targets)


class Detached(Task):
    """Computes a loss without a gradient."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        outputs = model(batch[0]).detach()
        loss = nn.functional.cross_entropy(outputs, batch[1])
        return StepOutput(loss, outputs, batch[1], len(batch[1]))


@pytest.mark.parametrize("options", [{"loss_fn": detached}, {"task": Detached()}], ids=["f", "t"])
def test_a_loss_without_gradient_is_an_error(options: dict[str, Any]) -> None:
    """It is found before the backward pass; `fit` raises as before."""
    trainer = quiet_trainer(plain_network(), **options)
    found = diagnose(trainer, points(12))
    assert codes(found) == ["loss-without-gradient"]
    assert not found.ok
    assert found.findings[0].level == "error"
    assert "No update" in found.examined[0]


def test_parameters_that_the_optimizer_lacks_are_an_error() -> None:
    """Those that the user left out, and those that were added since."""
    model: Any = plain_network()
    optimizer = torch.optim.SGD([model.head.weight], lr=0.1)
    found = diagnose(quiet_trainer(model, optimizer=optimizer), points(12))
    assert codes(found) == ["parameters-not-in-optimizer"]
    assert "head.bias" in found.findings[0].problem
    trainer = quiet_trainer(plain_network())
    trainer.fit(points(12), epochs=1)
    trainer.model.extra = nn.Linear(2, 2)
    assert "parameters-not-in-optimizer" in codes(diagnose(trainer, points(12)))


@pytest.mark.parametrize("fitted", [False, True], ids=["new", "fitted"])
def test_nothing_is_changed(fitted: bool) -> None:
    """Also with findings about the inputs, for which hooks are set, and after an error."""
    model = network()
    trainer = quiet_trainer(model, ignore=["inputs-far-from-unit-scale"])
    inputs, targets = points(24)
    data = (inputs * 1e4, targets)
    if fitted:
        trainer.fit(data, epochs=1)
    before, optimizer = snapshot(model), trainer.optimizer
    diagnose(trainer, data, (inputs[:8], targets[:8]))
    with pytest.raises(DataError):
        diagnose(trainer, (inputs[:, :4] * 1e4, targets))
    assert changed_since(before, model) == []
    assert trainer.optimizer is optimizer
    assert trainer.state.step == 6 * fitted


def test_a_batch_and_a_mapping_are_data() -> None:
    """A mapping is one batch with `labels`."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(nn.Softmax(1))

        def forward(self, values: Tensor) -> Any:
            return self.inner(values)

    batch = {"values": INPUTS, "labels": TARGETS}
    found = diagnose(Trainer(Named(), progress=False), batch)
    assert codes(found) == ["softmax-before-cross-entropy"]


def test_the_initial_loss_is_that_before_training() -> None:
    """A run that continues may have any loss."""
    program = MISTAKES["initial-loss-too-high"]()
    program.options["ignore"] = ["initial-loss-too-high"]
    trainer = program.trainer()
    trainer.fit(program.train, max_steps=1)
    assert diagnose(trainer, program.train).ok


def test_a_warning_as_an_error_stops_before_the_update() -> None:
    """A finding about the outputs is reported while the weights are those of the start."""
    program = MISTAKES["softmax-before-cross-entropy"]()
    before = snapshot(program.model)["state"]
    trainer = program.trainer()
    with pytest.raises(DiagnosisWarning, match="ignore="):
        trainer.fit(program.train, epochs=1)
    assert snapshot(program.model)["state"] == before
    assert trainer.state.step == 0


def test_what_was_compared_is_said() -> None:
    """How many samples, also without duplicates; data that is not in memory is not compared."""
    program = NEAR_MISSES["validation on other data"]()
    found = diagnose(program.trainer(), program.train, program.val)
    assert found.examined == (
        "Examined a batch of 48 samples and 3 updates, which were undone.",
        "40 of all 40 validation samples were compared with 96 of all 96 training samples.",
    )
    found = diagnose(program.trainer(), program.train, [program.val])
    assert "not compared" in found.examined[1]


def test_large_data_is_compared_in_part() -> None:
    """Evenly spaced samples, and the first ones by their middle only if these are distinct."""
    train = torch.randn(5000, 40, generator=torch.Generator().manual_seed(0))
    compared = compare(train, train[:1000].clone(), 200)
    assert compared is not None
    assert (compared.val, compared.train) == (200, 200)
    assert 1 <= compared.found < 200
    middle = train.clone()
    middle[:, :10] += 1  # Only the middle is the same.
    compared = compare(train, middle, 5000)
    assert compared is not None
    assert compared.found == 0
    assert compare(train, train[:, :20], 100) is None
    assert compare(train.round(decimals=0)[:, :1], train[:50, :1].round(decimals=0), 100) is None


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int64, torch.float64, torch.bfloat16, torch.bool]
)
def test_samples_of_any_type_are_compared(dtype: torch.dtype) -> None:
    """By their bits."""
    values = torch.randint(0, 2, (64, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    compared = compare(values, values[:10].clone(), 100)
    assert compared is not None
    assert compared.found == 10


def test_the_text_of_a_diagnosis() -> None:
    """The table is at most 100 columns wide, errors first."""
    program = Program(mlp(nn.Softmax(1)), INPUTS * 1e4)
    found = diagnose(program.trainer(), program.train)
    assert codes(found) == ["softmax-before-cross-entropy", "inputs-far-from-unit-scale"]
    assert len(found) == 2
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["level", "code", "sure", "finding"]
    assert sum(line.startswith("warning") for line in lines) == 2
    assert repr(found) == f"Diagnosis(2 findings: {', '.join(codes(found))})"
    assert found._repr_html_().count("<tr") == 3
    nothing = Diagnosis((), ("Examined nothing.",))
    assert nothing.ok
    assert repr(nothing) == "Diagnosis(ok)"
    assert str(nothing) == "No findings.\nExamined nothing."
    assert "No findings." in nothing._repr_html_()


@pytest.mark.parametrize(
    ("ignore", "error", "word"),
    [
        (["softmax"], InvalidArgumentError, "softmax-before-cross-entropy"),
        (["zzz"], InvalidArgumentError, "adapter-not-moving"),
        (["loss-without-gradient"], InvalidArgumentError, "error"),
        ("dropout-in-eval", InvalidTypeError, "list"),
        ([3], InvalidTypeError, "3"),
    ],
    ids=["similar", "unknown", "error", "string", "number"],
)
def test_codes_that_cannot_be_ignored_are_refused(
    ignore: Any, error: type[Exception], word: str
) -> None:
    """By the Trainer and by `diagnose`."""
    with pytest.raises(error, match=word):
        quiet_trainer(plain_network(), ignore=ignore)
    with pytest.raises(error, match=word):
        diagnose(quiet_trainer(plain_network()), points(12), ignore=ignore)


def test_other_arguments_are_refused() -> None:
    """A model in place of a Trainer, no steps, an iterator, and unusable data as in `fit`."""
    wrong: Any = plain_network()
    with pytest.raises(InvalidTypeError, match="Trainer"):
        diagnose(wrong, points(12))
    with pytest.raises(InvalidArgumentError, match="steps"):
        diagnose(quiet_trainer(plain_network()), points(12), steps=0)
    with pytest.raises(InvalidArgumentError, match="diagnose"):
        diagnose(quiet_trainer(plain_network()), iter([points(12)]))
    trainer = quiet_trainer(plain_network(), loss_fn=lambda o, t: (o - t[:, None]).square())
    with pytest.raises(InvalidArgumentError, match="mean"):
        diagnose(trainer, points(12))


def test_a_finding_has_a_level() -> None:
    """And a text with the code."""
    finding = Finding("dropout-in-eval", "likely", "A problem.", "Some advice.")
    assert finding.level == "warning"
    assert str(finding) == "A problem. Some advice. [dropout-in-eval, likely]"
