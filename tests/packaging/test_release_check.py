"""The outcomes of a release check."""

from __future__ import annotations

import pytest
import release_check
import release_pythons
from release_check import CheckError, Outcome, check_installs, print_table, tried
from release_pythons import CLASSIFIER

PROJECT = {
    "classifiers": [CLASSIFIER + "3.11", CLASSIFIER + "3.12"],
    "requires-python": ">=3.11",
    "dependencies": ["torch>=2.10"],
}


def fail(reason: str) -> None:
    """Fail as a check does."""
    raise CheckError(reason)


def test_check_that_fails_is_an_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    """The other checks still run, and the reason is printed immediately."""
    outcome = tried("contents", lambda: fail("a file is missing"))
    assert outcome.failed
    assert outcome.result == "FAILED: a file is missing"
    assert "a file is missing" in capsys.readouterr().out


def test_absent_pythons_are_not_run_and_none_at_all_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any Python to install into, the check fails."""
    monkeypatch.setattr(release_pythons, "find_python", lambda version: None)
    outcomes = check_installs(PROJECT)
    assert [(each.what, each.failed) for each in outcomes] == [
        ("Python 3.11", False),
        ("Python 3.12", False),
        ("any Python", True),
    ]
    assert outcomes[0].result == "not run: it is not on this machine"


def test_lowest_dependencies_are_tried_on_the_oldest_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old releases of a dependency have no files for new Pythons."""
    calls: list[str] = []
    monkeypatch.setattr(release_pythons, "find_python", lambda version: f"/bin/python{version}")
    monkeypatch.setattr(release_check, "try_both", calls.append)
    monkeypatch.setattr(release_check, "try_lowest", lambda python, project: calls.append(python))
    outcomes = check_installs(PROJECT)
    assert calls == ["/bin/python3.11", "/bin/python3.12", "/bin/python3.11"]
    assert outcomes[-1].what == "lowest dependencies, Python 3.11"
    assert not any(outcome.failed for outcome in outcomes)


def test_table_has_a_line_for_each_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    """Checks that were not run are listed together with those that passed."""
    print_table([Outcome("build", "passed", 4.4), Outcome("Python 3.14", "not run: absent", 0.0)])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split() for line in lines] == [
        ["build", "4", "s", "passed"],
        ["Python", "3.14", "0", "s", "not", "run:", "absent"],
    ]
