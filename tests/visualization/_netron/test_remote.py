"""How a browser on another machine finds the viewer."""

from __future__ import annotations

import getpass

import pytest

from finetunelib.visualization._netron.remote import over_ssh, proxied_address, ssh_command


@pytest.fixture
def ssh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A session of ssh, on the usual port."""
    monkeypatch.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    return monkeypatch


def test_the_command_brings_the_port_to_the_client(ssh: pytest.MonkeyPatch) -> None:
    """It can be pasted as it is on the machine that the session came from."""
    assert ssh_command("127.0.0.1", 8080) == "ssh -N -L 8080:127.0.0.1:8080 alice@192.0.2.7"
    assert over_ssh()


def test_the_command_goes_to_the_port_of_the_session(ssh: pytest.MonkeyPatch) -> None:
    """A server of ssh on another port is found there."""
    ssh.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 2222")
    assert ssh_command("127.0.0.1", 8080) == (
        "ssh -N -p 2222 -L 8080:127.0.0.1:8080 alice@192.0.2.7"
    )


def test_the_command_quotes_an_address_of_ipv6(ssh: pytest.MonkeyPatch) -> None:
    """Its brackets would mean something else to a shell."""
    ssh.setenv("SSH_CONNECTION", "2001:db8::5 50000 2001:db8::7 22")
    assert ssh_command("[::1]", 8080) == "ssh -N -L '8080:[::1]:8080' alice@2001:db8::7"


def test_the_command_leaves_an_unknown_user_out(ssh: pytest.MonkeyPatch) -> None:
    """In a container that runs as a number the user has no name."""

    def getuser() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    ssh.setattr(getpass, "getuser", getuser)
    assert ssh_command("127.0.0.1", 8080) == "ssh -N -L 8080:127.0.0.1:8080 192.0.2.7"


@pytest.mark.parametrize("value", [None, "", "something else"])
def test_there_is_no_command_outside_of_ssh(ssh: pytest.MonkeyPatch, value: str | None) -> None:
    """Without what sshd sets nothing is known of a client."""
    if value is None:
        ssh.delenv("SSH_CONNECTION")
    else:
        ssh.setenv("SSH_CONNECTION", value)
    assert ssh_command("127.0.0.1", 8080) is None


@pytest.mark.parametrize("prefix", ["/user/alice/", "/user/alice"])
def test_jupyterhub_names_its_prefix(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """Under JupyterHub every kernel knows where the browser finds its server."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", prefix)
    assert proxied_address(None, 8080) == "/user/alice/proxy/8080/"


def test_no_proxy_is_known_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain notebook server tells its kernels nothing."""
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    assert proxied_address(None, 8080) is None


@pytest.mark.parametrize("proxy", ["/proxy/{port}/", "/proxy/{port}"])
def test_a_proxy_that_was_named_is_taken(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """The user knows better, with or without the slash that relative addresses need."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/alice/")
    assert proxied_address(proxy, 8080) == "/proxy/8080/"
