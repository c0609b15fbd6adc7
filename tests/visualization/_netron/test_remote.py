"""The address of the viewer for a browser on another machine."""

from __future__ import annotations

import getpass

import pytest

from finetunelib.visualization._netron.remote import over_ssh, proxied_address, ssh_command


@pytest.fixture
def ssh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An ssh session on the default port."""
    monkeypatch.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    return monkeypatch


def test_ssh_command_forwards_the_port(ssh: pytest.MonkeyPatch) -> None:
    """The command can be run on the machine that the session came from."""
    assert ssh_command("127.0.0.1", 8080) == "ssh -N -L 8080:127.0.0.1:8080 alice@192.0.2.7"
    assert over_ssh()


def test_ssh_command_uses_the_port_of_the_session(ssh: pytest.MonkeyPatch) -> None:
    """If sshd does not listen on port 22, the command contains its port."""
    ssh.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 2222")
    assert ssh_command("127.0.0.1", 8080) == (
        "ssh -N -p 2222 -L 8080:127.0.0.1:8080 alice@192.0.2.7"
    )


def test_ssh_command_quotes_ipv6_addresses(ssh: pytest.MonkeyPatch) -> None:
    """Brackets have a special meaning in shells."""
    ssh.setenv("SSH_CONNECTION", "2001:db8::5 50000 2001:db8::7 22")
    assert ssh_command("[::1]", 8080) == "ssh -N -L '8080:[::1]:8080' alice@2001:db8::7"


def test_ssh_command_omits_an_unknown_user(ssh: pytest.MonkeyPatch) -> None:
    """In a container, the user may have no name."""

    def getuser() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    ssh.setattr(getpass, "getuser", getuser)
    assert ssh_command("127.0.0.1", 8080) == "ssh -N -L 8080:127.0.0.1:8080 192.0.2.7"


@pytest.mark.parametrize("value", [None, "", "malformed"])
def test_there_is_no_ssh_command_outside_of_ssh(ssh: pytest.MonkeyPatch, value: str | None) -> None:
    """There is no command without a valid `SSH_CONNECTION`."""
    if value is None:
        ssh.delenv("SSH_CONNECTION")
    else:
        ssh.setenv("SSH_CONNECTION", value)
    assert ssh_command("127.0.0.1", 8080) is None


@pytest.mark.parametrize("prefix", ["/user/alice/", "/user/alice"])
def test_jupyterhub_prefix_is_used(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """JupyterHub sets the prefix of its server in every kernel."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", prefix)
    assert proxied_address(None, 8080) == "/user/alice/proxy/8080/"


def test_there_is_no_default_proxy_outside_of_jupyterhub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other notebook servers do not tell their kernels an address."""
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    assert proxied_address(None, 8080) is None


@pytest.mark.parametrize("proxy", ["/proxy/{port}/", "/proxy/{port}"])
def test_users_proxy_has_precedence(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """The user's proxy replaces that of JupyterHub, and gets a trailing slash."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/alice/")
    assert proxied_address(proxy, 8080) == "/proxy/8080/"
