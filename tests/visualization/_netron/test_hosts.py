"""Under which names a server answers."""

from __future__ import annotations

import socket

import pytest

from finetunelib.visualization._netron.hosts import accepted_by

LOOPBACK = ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:8080", "127.0.0.2", "[::1]:80"]

#: Names that any site can make lead here, and what is no name.
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
    """A machine with a name of its own."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Workstation.lab.example")


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "0.0.0.0", "192.0.2.7"])
@pytest.mark.parametrize("header", LOOPBACK)
def test_the_names_of_loopback_are_accepted(bound: str, header: str) -> None:
    """A user of this machine, or of a tunnel to it, names it so on whatever address."""
    assert accepted_by(bound, bound)(header)


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "0.0.0.0", "192.0.2.7"])
@pytest.mark.parametrize("header", FOREIGN)
def test_a_foreign_name_is_refused(bound: str, header: str | None) -> None:
    """Also a server for the network does not answer to names that are not its own."""
    assert not accepted_by(bound, bound)(header)


@pytest.mark.parametrize("header", ["192.0.2.7:80", "[2001:db8::7]:80"])
def test_an_address_in_numbers_is_accepted_on_the_network_alone(header: str) -> None:
    """It cannot be lent to another machine; a server on loopback has none but loopback's."""
    assert accepted_by("0.0.0.0", "0.0.0.0")(header)
    assert not accepted_by("127.0.0.1", "127.0.0.1")(header)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "header", ["workstation", "WORKSTATION:80", "workstation.lab.example", "workstation.local"]
)
def test_the_machines_own_name_is_accepted_on_the_network_alone(header: str) -> None:
    """The name that the machine goes by on its network leads to servers for the network."""
    assert accepted_by("0.0.0.0", "0.0.0.0")(header)
    assert not accepted_by("127.0.0.1", "127.0.0.1")(header)


@pytest.mark.usefixtures("machine")
def test_a_foreign_ending_of_the_machines_name_is_refused() -> None:
    """A site can name its own host like this machine."""
    assert not accepted_by("0.0.0.0", "0.0.0.0")("workstation.evil.example")


@pytest.mark.parametrize("bound", ["127.0.0.1", "192.0.2.7"])
def test_the_host_that_the_user_named_is_accepted(bound: str) -> None:
    """Who says which name to listen on means that name."""
    assert accepted_by("Viewer.example", bound)("viewer.example:80")
