"""`examples/wheels.py` reads files out of packages, and only the files that it expects."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from support_examples import EXAMPLES

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the example."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module: ModuleType = pytest.importorskip("wheels")
    return module


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package, which is the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    about = "tiny_weights-1.0.dist-info"
    files = {
        "tiny_weights/model.pt": CONTENT,
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.slow
def test_a_file_is_read_out_of_a_package_once(
    wheels: ModuleType, package: Path, tmp_path: Path
) -> None:
    """The file is written to the folder, where it is found without the package the next time."""
    members = {"tiny_weights/model.pt": SHA256}
    (file,) = wheels.fetch("tiny-weights==1.0", members, tmp_path / "fetched")
    assert (file.name, file.read_bytes()) == ("model.pt", CONTENT)
    for wheel in package.iterdir():
        wheel.unlink()
    assert wheels.fetch("tiny-weights==1.0", members, tmp_path / "fetched") == [file]
    with pytest.raises(SystemExit, match=r"tiny-weights==2\.0"):
        wheels.fetch("tiny-weights==2.0", members, tmp_path / "other")


@pytest.mark.usefixtures("package")
def test_another_file_is_refused(
    wheels: ModuleType, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with another SHA-256 is not written, and one that is on disk is not used."""
    (wheel,) = package.iterdir()
    monkeypatch.setattr(wheels, "download", lambda requirement, folder: wheel)
    members = {"tiny_weights/model.pt": hashlib.sha256(b"others").hexdigest()}
    with pytest.raises(SystemExit, match=SHA256):
        wheels.fetch("tiny-weights==1.0", members, tmp_path)
    file = tmp_path / "tiny-weights" / "model.pt"
    assert not file.exists()
    file.write_bytes(CONTENT)
    with pytest.raises(SystemExit, match=SHA256):
        wheels.fetch("tiny-weights==1.0", members, tmp_path)
