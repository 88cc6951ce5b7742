"""A machine of its own for one test: systemd booted by systemd-nspawn from this machine's /usr, with nothing else of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDED = ("systemd-nspawn", "nsenter", "systemctl")


def why_not() -> str | None:
    """Why no machine can be booted here; None where it can."""
    if os.geteuid() != 0:
        return "booting systemd needs root: the unit was NOT run"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not here (apt-get install systemd-container): the unit was NOT run"
    return None


@dataclass(frozen=True)
class Machine:
    """A booted systemd. `run` starts a program inside as root and returns what it printed."""

    leader: int
    outside: Path  # seen inside as /opt/outside

    def run(self, *command: str, check: bool = True) -> str:
        whole = ["nsenter", "-t", str(self.leader), "-a", "--", *command]
        done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.journal()}"
        return done.stdout.strip()

    def shell(self, script: str) -> str:
        return self.run("sh", "-euc", script)

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", "-p", name, unit)

    def journal(self) -> str:
        whole = ["nsenter", "-t", str(self.leader), "-a", "--", "journalctl", "-b", "--no-pager", "-n", "60"]
        return subprocess.run(whole, capture_output=True, text=True, check=False).stdout


def environment(outside: Path, repository: Path) -> list[str]:
    """/opt/perdure inside: this interpreter and these packages, with the checkout as the package. Returns bind options."""
    home = outside / "perdure"
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (home / "bin").mkdir()
    (packages / "perdure.pth").write_text("/opt/source/src\n/opt/packages\n")
    python = Path(sys.executable).resolve()
    binds = [f"--bind-ro={repository}:/opt/source", f"--bind-ro={sysconfig.get_path('purelib')}:/opt/packages"]
    if sys.base_prefix == "/usr":
        inside = python
    else:  # an interpreter in somebody's home, say, which the unit may not see
        inside = Path("/opt/python") / python.relative_to(Path(sys.base_prefix).resolve())
        binds.append(f"--bind-ro={sys.base_prefix}:/opt/python")
    (home / "bin" / "python").symlink_to(inside)
    (home / "pyvenv.cfg").write_text(f"home = {inside.parent}\ninclude-system-site-packages = false\n")
    program = home / "bin" / "perdure"
    program.write_text("#!/opt/perdure/bin/python\nimport sys\nfrom perdure.daemon.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    return [*binds, f"--bind-ro={home}:/opt/perdure"]


@contextmanager
def booted(outside: Path, repository: Path, eventually: Callable[..., Any]) -> Iterator[Machine]:
    """Boots in about a second, powers off at the end. `outside` may be written to from both sides."""
    outside.chmod(0o755)
    command = [
        "systemd-nspawn",
        *("-D", "/", "--volatile=yes", f"--machine=perdure-{os.getpid()}", "--boot", "--register=no", "--keep-unit"),
        *(
            "--console=pipe",
            "--bind-ro=/dev/null:/etc/systemd/system/systemd-firstboot.service",
            "--bind-ro=/etc/hosts",
        ),
        "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        *environment(outside, repository),
        f"--bind={outside}:/opt/outside",
    ]
    with (
        (outside / "console").open("wb") as console,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console) as process,
    ):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def running() -> Machine | None:
            assert process.poll() is None, (outside / "console").read_text(errors="replace")
            for leader in children.read_text().split():
                machine = Machine(int(leader), outside)
                if machine.run("systemctl", "is-system-running", check=False) in {"running", "degraded"}:
                    return machine
            threading.Event().wait(0.1)
            return None

        try:
            machine = eventually(running, seconds_max=120)
            if (
                sys.base_prefix != "/usr"
            ):  # its libpython no longer lies where it was linked to; a system's own would be found
                machine.shell("echo /opt/python/lib >/etc/ld.so.conf && ldconfig")
            try:
                yield machine
            finally:
                machine.run("systemctl", "poweroff", check=False)
                process.wait(timeout=120)
        finally:
            process.kill()  # a machine that did not boot or did not power off
