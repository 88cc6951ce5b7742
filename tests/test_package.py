"""The built wheel is what people install: it must hold the whole house, and run without the checkout beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from perdure import __version__

ROOMS = ("daemon", "memory", "policies", "state", "systemd")


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nobody says which files belong to the package")
    return [name for name in listed.stdout.split("\0") if name and (repository / name).exists()]


@pytest.fixture(scope="module")
def wheel(repository: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tracked files alone, as a clone would: nothing that merely lies about gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository / name, source / name, follow_symlinks=False)
    built = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; its dependencies are those of the environment that runs the tests."""
    home = tmp_path_factory.mktemp("home") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    target = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    # A .pth file adds the directory but reads no .pth files in it: the editable checkout stays out of reach.
    (Path(target) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home


def test_the_wheel_holds_every_tracked_file_of_the_rooms(wheel: Path, tracked: list[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    of_rooms = {f"perdure/{name}" for name in tracked if name.split("/")[0] in ROOMS}
    of_package = {
        name.removeprefix("src/")
        for name in tracked
        if name.startswith("src/perdure/") and Path(name).name not in ROOMS
    }
    wanted = of_rooms | of_package
    assert {"perdure/py.typed", "perdure/errors.py", "perdure/state/__init__.py"} <= wanted
    assert wanted - held == set()
    assert {name for name in held if ".dist-info/" not in name} - wanted == set()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata_name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
        licences = [name for name in archive.namelist() if name.endswith("LICENSE") and ".dist-info/" in name]
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == (
        "perdure",
        __version__,
        "Apache-2.0",
    )
    assert licences


def test_the_installed_wheel_runs_away_from_the_checkout(installed: Path, tmp_path: Path, repository: Path) -> None:
    program = installed / "bin" / "perdure"
    shown = subprocess.run([program, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert __version__ in shown.stdout
    where = "import perdure.daemon, perdure.memory, perdure.policies, perdure.state, perdure.systemd; print(perdure.__file__)"
    found = subprocess.check_output([installed / "bin" / "python", "-c", where], cwd=tmp_path, text=True)
    assert found.startswith(str(installed))
    assert str(repository) not in found


def test_every_module_of_the_wheel_imports(installed: Path, wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("perdure/") and name.endswith(".py")]
    dotted = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    wanted = [name for name in dotted if not name.endswith("__main__") and ".examples." not in name]
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [installed / "bin" / "python", "-W", "ignore", "-c", script, *wanted],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
