"""The tests that the security policy names exist."""

from __future__ import annotations

import re

from release_version import ROOT


def test_every_test_in_the_security_policy_exists() -> None:
    """A guarantee that names a test is shown by one."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    written = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 15
    assert named - written == set()
