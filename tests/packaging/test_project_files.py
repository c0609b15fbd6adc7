"""The workflows, the issue forms and the Makefile."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from release_pythons import supported_pythons
from release_version import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug_report.yml", "feature_request.yml")]

pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason="an sdist has no .github")


def load(file: Path) -> dict[Any, Any]:
    """Return the content of a YAML file."""
    content = yaml.safe_load(file.read_text())
    assert isinstance(content, dict)
    return content


def steps_of(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    """Return the steps of all jobs."""
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_pull_requests_are_checked_on_every_supported_python() -> None:
    """The versions are those that the package declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = load(GITHUB / "workflows" / "checks.yml")["jobs"]["checks"]["strategy"]["matrix"]
    assert matrix["python"] == supported_pythons(project)


def test_pull_requests_run_every_check() -> None:
    """Pull requests run the tests and the targets of `make check`."""
    text = (ROOT / "Makefile").read_text()
    steps = steps_of(load(GITHUB / "workflows" / "checks.yml"))
    commands = [step["run"].split() for step in steps if "run" in step]
    targets = {command[1] for command in commands if command[0] == "make"}
    checks = re.search(r"^check: (.*) ##", text, flags=re.MULTILINE)
    assert checks is not None
    assert targets == {*checks[1].split(), "test-all"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_have_no_more_permissions_than_they_need(file: Path) -> None:
    """By default, workflows can only read the code; a job that needs more declares it."""
    assert load(file)["permissions"] in ({}, {"contents": "read"})


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned(file: Path) -> None:
    """Actions are pinned to a major version or a release branch."""
    uses = [step["uses"] for step in steps_of(load(file)) if "uses" in step]
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action) for action in uses)


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_issue_forms_are_complete(file: Path) -> None:
    """Each field has an id of its own, a label and a description."""
    form = load(file)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all({"label", "description"} <= field["attributes"].keys() for field in fields)


def test_a_bug_report_asks_for_what_is_needed() -> None:
    """The script, the output and the versions are required."""
    fields = {field.get("id"): field for field in load(FORMS[0])["body"]}
    for name in ("what", "code", "traceback", "versions"):
        assert fields[name]["validations"]["required"]


@pytest.mark.slow
def test_the_command_of_the_bug_report_prints_the_versions() -> None:
    """It runs as it is written, and names Python, the system and each dependency."""
    text = FORMS[0].read_text()
    command = re.search(r'python -c "(.*)"', text)
    assert command is not None
    assert "'" in command[1]
    assert '"' not in command[1]
    done = subprocess.run(
        [sys.executable, "-c", command[1]], check=True, capture_output=True, text=True
    )
    first_words = [line.split()[0] for line in done.stdout.splitlines() if line]
    for name in ("python", "system", "cuda", "finetunelib", "torch", "onnx", "onnxruntime"):
        assert name in first_words


@pytest.mark.skipif(not shutil.which("make") or not shutil.which("awk"), reason="needs make")
def test_make_help_lists_every_target_under_a_purpose() -> None:
    """Targets with a description appear once, below a heading."""
    text = (ROOT / "Makefile").read_text()
    described = re.findall(r"^([a-z-]+):.* ## .+$", text, flags=re.MULTILINE)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    groups: dict[str, list[str]] = {}
    for line in filter(None, shown.splitlines()):
        if line.startswith("  "):
            groups[list(groups)[-1]].append(line.split()[0])
        else:
            groups[line] = []
    assert sorted(itertools.chain(*groups.values())) == sorted(described)
    assert {"Test", "Check", "Document", "Release"} <= groups.keys()
    assert all(groups.values())
