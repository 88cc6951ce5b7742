"""The unit files, as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = ("perdure.service", "perdure@.service")
EXPOSURE = {
    None: 1.1,
    "node": 1.1,
    "bubblewrap": 2.1,
    "static-user": 1.1,
    "logs": 1.2,
}  # as the files themselves promise

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not here (apt-get install systemd): units NOT verified",
)


@pytest.fixture(scope="module")
def files(repository: Path) -> Path:
    return repository / "systemd"


def installed(files: Path, unit: str, drop_in: str | None, where: Path) -> Path:
    """The unit as an administrator would lay it down, with a program that exists here."""
    target = where / unit.replace("@.", "@web.")
    target.write_text((files / unit).read_text().replace("/opt/perdure/bin/perdure", "/bin/true"))
    if drop_in:
        folder = where / f"{target.name}.d"
        folder.mkdir()
        shutil.copy(files / "drop-ins" / f"{drop_in}.conf", folder)
    return target


def test_every_drop_in_is_tried(files: Path) -> None:
    assert {path.stem for path in (files / "drop-ins").iterdir()} == set(EXPOSURE) - {None}


@needs_analyze
@pytest.mark.parametrize("drop_in", EXPOSURE)
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_every_line(files: Path, unit: str, drop_in: str | None, tmp_path: Path) -> None:
    target = installed(files, unit, drop_in, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", target], capture_output=True, text=True, check=False
    )
    # It exits 0 on directives that it does not know: only silence is consent. What it says of other units is not ours.
    assert [line for line in done.stderr.splitlines() if "perdure" in line] == []
    assert done.returncode == 0, done.stderr


@needs_analyze
@pytest.mark.parametrize("drop_in", EXPOSURE)
@pytest.mark.parametrize("unit", UNITS)
def test_the_exposure_is_what_the_file_promises(files: Path, unit: str, drop_in: str | None, tmp_path: Path) -> None:
    # Offline `security` reads no drop-ins: append it, which is what systemd does with it.
    target = installed(files, unit, None, tmp_path)
    if drop_in:
        target.write_text(target.read_text() + (files / "drop-ins" / f"{drop_in}.conf").read_text())
    threshold = round(EXPOSURE[drop_in] * 10)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={threshold}", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if line.startswith(("✗", "→")))


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"[A-Za-z]+=", line)]


def test_the_template_is_the_service_with_the_instance_in_its_paths(files: Path) -> None:
    service, template = ((files / name).read_text() for name in UNITS)
    for plain, instance in (
        ("%E/perdure", "%E/perdure/%i"),
        ("%S/perdure", "%S/perdure/%i"),
        ("%C/perdure", "%C/perdure/%i"),
        ("Directory=perdure", "Directory=perdure/%i"),
        (":perdure.", ":perdure.%i."),
        ("Description=Perdure,", "Description=Perdure (%i),"),
    ):
        service = service.replace(plain, instance)
    assert directives(template) == directives(service)


def test_every_directive_is_explained(files: Path) -> None:
    for path in (files / "perdure.service", *(files / "drop-ins").iterdir()):
        explained = False
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                explained = not line.startswith("# --")
            elif not line:
                explained = False
            elif line.startswith("["):
                explained = path.parent.name == "drop-ins" or line == "[Install]"
            elif line.startswith("Description="):
                continue
            else:
                assert explained, f"{path.name}: nothing says what {line} is for"
