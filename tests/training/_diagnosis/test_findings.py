"""Each finding is found in a program with its mistake, and in none that looks similar."""

from __future__ import annotations

import warnings

import pytest
import torch

from finetunelib.errors import DiagnosisWarning
from finetunelib.training import diagnose
from finetunelib.training._diagnosis.finding import LEVELS
from training._diagnosis.programs import MISTAKES, NEAR_MISSES, VARIANTS

CASES = {code: (code, build) for code, build in MISTAKES.items()} | VARIANTS


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_found_by_diagnose_and_in_fit(name: str) -> None:
    """Only this one, and `fit` warns once."""
    code, build = CASES[name]
    program = build()
    found = diagnose(program.trainer(), program.train, program.val)
    assert [finding.code for finding in found] == [code], str(found)
    trainer = build().trainer()
    hooks = sum(len(part._forward_pre_hooks) for part in trainer.model.modules())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(program.train, program.val, epochs=2)
        trainer.fit(program.train, program.val, epochs=1)
    assert [w.category for w in caught] == [DiagnosisWarning]
    assert f"[{code}, {next(iter(found)).certainty}]" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert sum(len(part._forward_pre_hooks) for part in trainer.model.modules()) == hooks


@pytest.mark.parametrize("code", MISTAKES)
def test_a_finding_can_be_ignored(code: str) -> None:
    """In `fit`, in `diagnose`, and in both by the Trainer's own list."""
    program = MISTAKES[code]()
    program.options["ignore"] = [code]
    assert diagnose(program.trainer(), program.train, program.val).ok
    program.trainer().fit(program.train, program.val, max_steps=3)
    del program.options["ignore"]
    assert diagnose(program.trainer(), program.train, program.val, ignore=(code,)).ok


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_is_not_found(name: str) -> None:
    """Warnings are errors here."""
    program = NEAR_MISSES[name]()
    found = diagnose(program.trainer(), program.train, program.val, steps=4)
    assert found.ok, str(found)
    program.trainer().fit(program.train, program.val, epochs=2)


def test_each_warning_has_a_program() -> None:
    """The errors are tested on their own."""
    assert {code for code, level in LEVELS.items() if level == "warning"} == MISTAKES.keys()


def test_a_sorted_loader_is_found() -> None:
    """Its first batch has targets of one class; that of two classes may be rare."""
    program = NEAR_MISSES["logits"]()
    targets = program.targets.sort().values
    batches = [(program.inputs[n : n + 32], targets[n : n + 32] * 0 + 1) for n in (0, 32)]
    found = diagnose(program.trainer(), batches)
    assert [(f.code, f.certainty) for f in found] == [("labels-of-one-class", "likely")]
    assert diagnose(program.trainer(), [(b[0][:20], b[1][:20]) for b in batches]).ok
    two = torch.nn.Sequential(program.model, torch.nn.Linear(3, 2))
    program.model = two
    assert diagnose(program.trainer(), batches).ok
