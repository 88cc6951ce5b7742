"""What `perdure init` writes: a commented workspace, or the log-triage example. Nothing that is there is ever overwritten."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from perdure.daemon.layout import CONFIG_NAME
from perdure.daemon.setting_types import machine_zone, zone_name
from perdure.daemon.tools.executables import DEFAULT_PATH
from perdure.errors import PerdureError

TEMPLATES: Final = Path(__file__).parent / "examples"
EXAMPLES: Final = ("log-triage",)
TEMPLATE_SUFFIXES: Final = frozenset({".toml", ".yaml", ".md", ".py", ".log"})

# Log files of Debian and its relatives that the example knows how to read.
MACHINE_LOGS: Final = tuple(
    Path("/var/log", name)
    for name in (
        "auth.log",
        "secure",
        "syslog",
        "messages",
        "kern.log",
        "dpkg.log",
        "apt/history.log",
        "nginx/access.log",
        "nginx/error.log",
        "apache2/access.log",
        "httpd/access_log",
    )
)
JOURNAL_DIRECTORIES: Final = (Path("/var/log/journal"), Path("/run/log/journal"))
JOURNAL_SECONDS_MAX: Final = 5.0

LOCAL_CONTEXT_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was written and what was left alone because it was there, as paths relative to the workspace."""

    workspace: Path
    created: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def init_workspace(
    directory: Path,
    *,
    example: str | None = None,
    planner: Literal["local"] | None = None,
    model: Path | None = None,
    every: str = "15m",
    timezone: str | None = None,
    machine_logs: Sequence[Path] | None = None,
) -> Initialised:
    """Write a workspace into `directory` (made if missing): the blank one, or `example`.

    `planner="local"` sets up the GGUF file `model` and a task for it. `every` is the period of the scheduled task.
    `machine_logs` (default: those of this machine that can be read, and its journal) are read by the example besides its own.
    Raises PerdureError where the directory cannot be written, or the model file or the time zone is none.
    """
    if example is not None and example not in EXAMPLES:
        raise PerdureError(
            "find", f"the example {example}", "there is none of that name", f"There is {', '.join(EXAMPLES)}"
        )
    workspace = directory.resolve()
    settings = _settings(planner, model, every, machine_zone() if timezone is None else _zone(timezone))
    files = dict(_files(TEMPLATES / (example or "blank"), with_model=planner is not None))
    files[".gitignore"] = TEMPLATES / "gitignore"
    if example == "log-triage":
        logs = readable_machine_logs() if machine_logs is None else list(machine_logs)
        settings |= _log_settings(logs, journal=machine_logs is None and has_journal())
        files |= {f"logs/{path.name}": path for path in sorted((TEMPLATES / example / "feed" / "1").iterdir())}
    directories = ("logs", "reports", "incidents") if example == "log-triage" else ("inbox", "reports")
    done = Initialised(workspace)
    try:
        for name in ("", *directories):
            (workspace / name).mkdir(parents=True, exist_ok=True)
        for name, template in sorted(files.items()):
            _write(workspace / name, _filled(template, settings), name, done)
        if example == "log-triage":
            _write(workspace / "blocked.txt", "", "blocked.txt", done)
    except OSError as error:
        raise PerdureError(
            "write", str(error.filename or workspace), str(error.strerror), "Name a directory that you may write"
        ) from None
    return done


def _files(template: Path, *, with_model: bool) -> Iterator[tuple[str, Path]]:
    for path in sorted(template.rglob("*")):
        name = str(path.relative_to(template))
        is_model_task = path.parent.name == "tasks" and ("model" in path.stem or "summary" in path.stem)
        if path.suffix not in TEMPLATE_SUFFIXES or name.startswith("feed/1/"):
            continue
        if with_model or not is_model_task:
            yield name, path


def _write(path: Path, text: str, name: str, done: Initialised) -> None:
    """Write a new file; one that is there, whatever it is, stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        done.kept.append(name)
    else:
        done.created.append(name)


def _filled(template: Path, settings: Mapping[str, str]) -> str:
    text = template.read_text(encoding="utf-8")
    if template.parent.name != "feed" and template.suffix in {".toml", ".yaml", ".md"}:
        for name, value in settings.items():
            text = text.replace(f"@{name}@", value)
    return text


def _settings(planner: str | None, model: Path | None, every: str, timezone: str) -> dict[str, str]:
    settings = {"TIMEZONE": timezone, "EVERY": every, "CONTEXT": "3000", "TOKENS": "33000"}
    part = TEMPLATES / ("model-none.toml" if planner is None else "model-local.toml")
    text = part.read_text(encoding="utf-8").rstrip("\n")
    if planner is not None:
        file = _model_file(model)
        for name, value in (
            ("MODEL_NAME", json.dumps(file.stem)[1:-1]),
            ("MODEL_FILE", json.dumps(str(file))[1:-1]),
            ("MODEL_CONTEXT", str(LOCAL_CONTEXT_TOKENS)),
        ):
            text = text.replace(f"@{name}@", value)
    return {"MODEL": text, **settings}


def _zone(name: str) -> str:
    try:
        return zone_name(name)
    except ValueError as error:
        raise PerdureError("use", f"the time zone {name}", "there is none of that name", f"Name {error}") from None


def _model_file(model: Path | None) -> Path:
    hint = "Name a GGUF file with --model; `make local-model` gets a small one"
    if model is None:
        raise PerdureError("set up", "the local model", "no model file is named", hint)
    file = model.expanduser().resolve()
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise PerdureError("read", str(file), str(error.strerror), hint) from None
    if magic != b"GGUF":
        raise PerdureError("use", str(file), "it is not a GGUF model", hint)
    return file


def readable_machine_logs() -> list[Path]:
    """Those of the logs that the example knows which this user can read and in which something stands."""
    found = []
    for path in MACHINE_LOGS:
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size and os.access(path, os.R_OK):
                found.append(path)
    return found


def has_journal() -> bool:
    """Whether this user's journalctl shows anything at all."""
    if not any(path.is_dir() for path in JOURNAL_DIRECTORIES):
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["journalctl", "--quiet", "--lines=1", "--output=json", "--no-pager"]
        done = subprocess.run(command, capture_output=True, timeout=JOURNAL_SECONDS_MAX, check=False)
        return done.returncode == 0 and done.stdout.startswith(b"{")
    return False


def _log_settings(logs: Sequence[Path], *, journal: bool) -> dict[str, str]:
    sources = ["logs/*.log", *map(str, logs), *(["journal"] if journal else [])]
    # a rotated log stands beside the new one, so the script may read the directory
    directories = sorted({str(path.parent) for path in logs} | {str(path) for path in JOURNAL_DIRECTORIES if journal})
    return {
        "READ_ROOTS": _listed([".", *map(str, logs)]),
        "LOG_DIRECTORIES": _listed(directories),
        "SOURCES": _listed(sources),
        "SOURCES_JSON": json.dumps(sources),
        "READABLE": _listed(["logs", "reports", "incidents", *map(str, logs)]),
        "PYTHON": _python(),
    }


def _listed(texts: Sequence[str]) -> str:
    """The inside of a list, in a form that JSON, TOML and YAML share."""
    return ", ".join(json.dumps(text) for text in texts)


def _python() -> str:
    """The Python that tools start: the system's by name where there is one, else the one that runs this."""
    return "python3" if shutil.which("python3", path=DEFAULT_PATH) else sys.executable


def is_workspace(directory: Path) -> bool:
    """Whether there is a configuration in `directory`."""
    return (directory / CONFIG_NAME).is_file()
