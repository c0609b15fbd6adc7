"""The Host headers that a server accepts."""

from __future__ import annotations

import socket

import pytest

from finetunelib.visualization._netron.hosts import accepted_by

LOOPBACK = ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:8080", "127.0.0.2", "[::1]:80"]

#: Names that a site could point to this machine, and values that are not names.
FOREIGN = [
    "evil.example",
    "evil.example:80",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example@",
    "2130706433",
    "0x7f.1",
    "[",
    "@",
    "",
    None,
]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a known host name."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Workstation.lab.example")


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "0.0.0.0", "192.0.2.7"])
@pytest.mark.parametrize("header", LOOPBACK)
def test_loopback_names_are_accepted(bound: str, header: str) -> None:
    """Loopback names are accepted whatever address the server listens on."""
    assert accepted_by(bound, bound)(header)


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "0.0.0.0", "192.0.2.7"])
@pytest.mark.parametrize("header", FOREIGN)
def test_foreign_name_is_rejected(bound: str, header: str | None) -> None:
    """Servers on loopback and on the network reject foreign names."""
    assert not accepted_by(bound, bound)(header)


@pytest.mark.parametrize("header", ["192.0.2.7:80", "[2001:db8::7]:80"])
def test_numeric_address_is_accepted_only_on_the_network(header: str) -> None:
    """A server on loopback accepts only loopback addresses."""
    assert accepted_by("0.0.0.0", "0.0.0.0")(header)
    assert not accepted_by("127.0.0.1", "127.0.0.1")(header)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "header", ["workstation", "WORKSTATION:80", "workstation.lab.example", "workstation.local"]
)
def test_host_name_is_accepted_only_on_the_network(header: str) -> None:
    """The names of the machine are accepted by servers that listen on the network."""
    assert accepted_by("0.0.0.0", "0.0.0.0")(header)
    assert not accepted_by("127.0.0.1", "127.0.0.1")(header)


@pytest.mark.usefixtures("machine")
def test_host_name_in_foreign_domain_is_rejected() -> None:
    """A site could give its own host the name of this machine."""
    assert not accepted_by("0.0.0.0", "0.0.0.0")("workstation.evil.example")


@pytest.mark.parametrize("bound", ["127.0.0.1", "192.0.2.7"])
def test_host_argument_is_accepted(bound: str) -> None:
    """The name that the user listens on is accepted."""
    assert accepted_by("Viewer.example", bound)("viewer.example:80")
