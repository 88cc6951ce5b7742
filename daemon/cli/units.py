"""Whether systemd runs Perdure by the units of this version: what `perdure doctor` says of drift."""

from __future__ import annotations

import difflib
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from perdure.daemon.cli.diagnosis import Diagnosis
from perdure.daemon.cli.words import count

DIRECTORIES = tuple(
    Path(name)
    for name in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    )
)  # the first one that holds a unit is the one that counts
SYSTEMD_RUNS = Path("/run/systemd/system")
NAMES = ("perdure.service", "perdure@.service")
SYSTEMCTL_SECONDS_MAX = 5.0


def unit_drift() -> Iterator[Diagnosis]:
    """Installed units and drop-ins beside those of this version; nothing where none is installed."""
    import perdure.systemd

    shipped = Path(perdure.systemd.__file__).parent
    for name in NAMES:
        installed = next((path for directory in DIRECTORIES if (path := directory / name).exists()), None)
        if installed is None:
            continue
        yield from _compared(installed, shipped / name)
        yield from _program(installed, name)
        for drop_in in _drop_ins(name):
            if (shipped / "drop-ins" / drop_in.name).exists():
                yield from _compared(drop_in, shipped / "drop-ins" / drop_in.name)
    yield from _not_reloaded()


def _compared(installed: Path, shipped: Path) -> Iterator[Diagnosis]:
    try:
        mine, theirs = (path.read_text("utf-8", errors="replace").splitlines() for path in (installed, shipped))
    except OSError as error:
        yield Diagnosis("unit", "warn", f"{installed} cannot be read: {error.strerror}", "Run `perdure doctor` as root")
        return
    if mine == theirs:
        yield Diagnosis("unit", "good", f"{installed} is this version's")
        return
    differ = [line for line in difflib.ndiff(theirs, mine) if line[:2] in ("- ", "+ ")]
    telling = next((line for line in differ if line[2:].strip() and not line[2:].startswith("#")), differ[0])
    found = (
        f"{installed} is not this version's: {count(len(differ), 'line differs', 'lines differ')}, such as {telling!r}"
    )
    mend = (
        f"diff {shlex.quote(str(installed))} {shlex.quote(str(shipped))}; then install this version's, keep changes of your own "
        "in `systemctl edit`, and `systemctl daemon-reload`"
    )
    yield Diagnosis("unit", "warn", found, mend)


def _program(installed: Path, name: str) -> Iterator[Diagnosis]:
    """The program that is started in the end: a drop-in may name another than the unit."""
    starts: list[tuple[Path, str]] = []
    for path in (installed, *_drop_ins(name)):
        try:
            text = path.read_text("utf-8", errors="replace")
        except OSError:
            continue  # told of above, where it is one of ours
        for line in text.splitlines():
            if line.startswith("ExecStart="):
                command = line.removeprefix("ExecStart=").strip().lstrip("-@:+!")
                starts = (
                    [*starts, (path, command.split(" ")[0])] if command else []
                )  # an empty one forgets those before
    for path, program in starts:
        if shutil.which(program) is None:
            found = f"{path} starts {program}, which is not there or cannot be run"
            yield Diagnosis("unit", "bad", found, "Install Perdure there, or name the right path in `systemctl edit`")


def _drop_ins(name: str) -> list[Path]:
    """As systemd reads them: by name, and of several of one name that of the first directory."""
    by_name: dict[str, Path] = {}
    for directory in DIRECTORIES:
        for path in (directory / f"{name}.d").glob("*.conf"):
            by_name.setdefault(path.name, path)
    return [by_name[key] for key in sorted(by_name)]


def _not_reloaded() -> Iterator[Diagnosis]:
    systemctl = shutil.which("systemctl")
    if systemctl is None or not SYSTEMD_RUNS.is_dir():
        return
    command = [systemctl, "show", "--property=NeedDaemonReload", "--value", "perdure.service"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    if done.stdout.strip() == "yes":
        found = "systemd still goes by an older perdure.service than the one on the disk"
        yield Diagnosis("unit", "warn", found, "systemctl daemon-reload && systemctl restart perdure")
