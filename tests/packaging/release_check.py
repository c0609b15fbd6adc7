"""Build the sdist and the wheel, and test both in clean environments: python release_check.py.

Each supported Python of this machine gets a clean environment, one after the other, and the oldest
a second one with the lowest supported dependencies. Called by `make release-check`; an environment
takes some minutes, a few GB of downloads unless pip has them, and up to 8 GB of disk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import check_sdist
import check_wheel
import release_floors
import release_pythons
import release_version

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
#: Environments and constraints; git ignores it, and `make clean` removes it.
WORK = ROOT / "build" / "release-check"
#: Bytes that an environment with PyTorch and its CUDA libraries takes, and some more.
NEEDED = 8 * 10**9


@dataclass(frozen=True, slots=True)
class Outcome:
    """The name, result and duration of a check."""

    what: str
    result: str
    seconds: float

    @property
    def failed(self) -> bool:
        """Return whether the check was run and did not pass."""
        return self.result.startswith("FAILED")


class CheckError(Exception):
    """A check that did not pass."""


def main() -> int:
    """Run all checks, print a table, and return 0 if none failed and a Python was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tag", help="also check that the tree is this tag's finished release")
    parser.add_argument("--no-install", action="store_true", help="build and check files only")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    outcomes = [
        tried("version and changelog", partial(check_version, options.tag)),
        tried("build", build),
    ]
    if not outcomes[-1].failed:
        outcomes.append(tried("metadata and contents", check_files))
        if not options.no_install:
            outcomes.extend(check_installs(project))
    print_table(outcomes)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def tried(what: str, check: Callable[[], None]) -> Outcome:
    """Run a check and return its outcome, also if it fails."""
    print(f"=== {what}", flush=True)
    started = time.perf_counter()
    try:
        check()
    except (CheckError, subprocess.CalledProcessError) as error:
        result = f"FAILED: {error}"
        print(result, flush=True)
    else:
        result = "passed"
    return Outcome(what, result, time.perf_counter() - started)


def run(*command: str | Path) -> None:
    """Run a program from the root of the tree; raise if it fails."""
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)


def check_version(tag: str | None) -> None:
    """Compare the version with the changelog."""
    found = release_version.problems_of_tree(ROOT, tag)
    if found:
        raise CheckError(" ".join(found))


def build() -> None:
    """Build the sdist, and the wheel from it."""
    shutil.rmtree(DIST, ignore_errors=True)
    # Without --sdist or --wheel, the wheel is built from the unpacked sdist.
    run(sys.executable, "-m", "build", "--outdir", DIST)
    version = release_version.read_version(ROOT)
    names = sorted(path.name for path in DIST.iterdir())
    wanted = [f"finetunelib-{version}-py3-none-any.whl", f"finetunelib-{version}.tar.gz"]
    if names != wanted:
        raise CheckError(f"dist/ must contain {wanted}, got {names}.")


def built() -> tuple[Path, Path]:
    """Return the paths of the wheel and the sdist."""
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    return wheel, sdist


def check_files() -> None:
    """Check the metadata and the contents of the two files."""
    wheel, sdist = built()
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    if check_wheel.main(str(wheel)) or check_sdist.main(str(sdist), str(wheel)):
        raise CheckError("The contents are wrong; see above.")


def check_installs(project: dict[str, Any]) -> list[Outcome]:
    """Test both files on every supported Python here, and with the lowest dependencies."""
    outcomes = []
    oldest = None
    for version in release_pythons.supported_pythons(project):
        python = release_pythons.find_python(version)
        what = f"Python {version}"
        if python is None:
            outcomes.append(Outcome(what, "not run: it is not on this machine", 0.0))
            continue
        oldest = oldest or (version, python)
        outcomes.append(tried(what, partial(try_both, python)))
    if oldest is None:
        return [*outcomes, Outcome("any Python", "FAILED: there is none to install into", 0.0)]
    version, python = oldest
    what = f"lowest dependencies, Python {version}"
    return [*outcomes, tried(what, partial(try_lowest, python, project))]


def try_both(python: str) -> None:
    """Install the wheel, then the sdist, into a clean environment, and run the public tests."""
    wheel, sdist = built()
    try:
        inside = make_environment(python)
        install(inside, wheel)
        test(inside)
        # It has the same metadata as the wheel, so its dependencies are already installed.
        install(inside, "--force-reinstall", "--no-deps", sdist)
        test(inside)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


def try_lowest(python: str, project: dict[str, Any]) -> None:
    """Install the wheel with the lowest dependencies, and run the public tests."""
    wheel, _ = built()
    try:
        inside = make_environment(python)
        lowest = release_floors.lowest_versions(project)
        constraints = WORK / "lowest.txt"
        constraints.write_text("".join(f"{name}=={lowest[name]}\n" for name in lowest), "utf-8")
        extras = ",".join(release_floors.runtime_extras(project))
        install(inside, "--constraint", constraints, f"{wheel}[{extras}]")
        test(inside, "--constraint", constraints)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


def make_environment(python: str) -> Path:
    """Create an empty environment and return the path of its Python."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    free = shutil.disk_usage(WORK).free
    if free < NEEDED:
        raise CheckError(f"An environment needs {NEEDED:,} bytes of disk, but {free:,} are free.")
    run(python, "-m", "venv", WORK / "venv")
    return WORK / "venv" / "bin" / "python"


def install(inside: Path, *arguments: str | Path) -> None:
    """Install into an environment, and check that no requirement is missing."""
    run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)
    run(inside, "-m", "pip", "check", "--disable-pip-version-check")


def test(inside: Path, *arguments: str | Path) -> None:
    """Import the package before anything else is installed, then run the public tests."""
    run(inside, "-c", "import finetunelib; print('finetunelib', finetunelib.__version__)")
    install(inside, *arguments, "pytest")
    run("sh", ROOT / "tests" / "packaging" / "run_public_tests.sh", inside)


def print_table(outcomes: list[Outcome]) -> None:
    """Print one line for each check."""
    print("\n=== release-check")
    for outcome in outcomes:
        print(f"{outcome.what:<34} {outcome.seconds:6.0f} s  {outcome.result}")


if __name__ == "__main__":
    sys.exit(main())
