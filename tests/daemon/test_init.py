"""`perdure init`: what it writes loads cleanly, and what is there already is never touched."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from perdure.daemon.config import Config, load_config
from perdure.daemon.init import TEMPLATES, Initialised, init_workspace, readable_machine_logs
from perdure.daemon.layout import CONFIG_NAME
from perdure.daemon.schedule import Every
from perdure.daemon.workspace import load_workspace
from perdure.errors import PerdureError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that begins as a GGUF model does: nothing more is read before it is used."""
    path = tmp_path / 'a "model" of mine.gguf'
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    return path


@pytest.mark.parametrize("example", [None, "log-triage"])
def test_what_init_writes_loads_cleanly(tmp_path: Path, example: str | None) -> None:
    """Also its policies' own tests pass."""
    done = init_workspace(tmp_path / "ws", example=example)
    loaded = load_workspace(tmp_path / "ws")
    assert set(done.created) >= {CONFIG_NAME, ".gitignore"}
    assert done.kept == []
    assert loaded.tasks.keys() == ({"inbox-report"} if example is None else {"log-triage"})
    assert all(task.schedule == Every(900_000_000) for task in loaded.tasks.values())


@pytest.mark.parametrize("example", [None, "log-triage"])
def test_with_a_local_model_there_is_a_task_for_it(tmp_path: Path, model: Path, example: str | None) -> None:
    init_workspace(tmp_path / "ws", example=example, planner="local", model=model)
    config = load_config(tmp_path / "ws")
    assert config.model is not None
    assert (config.model.provider, config.model.file, config.model.name) == ("local", model.resolve(), model.stem)
    names = {path.name for path in (tmp_path / "ws" / "tasks").iterdir()}
    assert names == (
        {"inbox-report.md", "inbox-summary.md"} if example is None else {"log-triage.md", "log-triage-model.md"}
    )


def test_files_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    mine = {CONFIG_NAME: "# mine\n", "policies/log-triage.yaml": "version: 1\nrules: []\n", ".gitignore": "*\n"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "log-triage.md").symlink_to(tmp_path / "nowhere")
    done = init_workspace(tmp_path, example="log-triage")
    assert {name: (tmp_path / name).read_text() for name in mine} == mine
    assert sorted(done.kept) == sorted([*mine, "tasks/log-triage.md"])
    assert not (tmp_path / "nowhere").exists()
    again = init_workspace(tmp_path, example="log-triage")
    assert again.created == []
    assert sorted(again.kept) == sorted([*done.created, *done.kept])


@pytest.mark.parametrize(
    ("logs", "sources"),
    [([], ["logs/*.log"]), ([Path("/var/log/auth.log"), Path("/var/log/nginx/access.log")], ["logs/*.log", "/var/log/auth.log", "/var/log/nginx/access.log"])],
)  # fmt: skip
def test_logs_of_the_machine_are_read_where_they_can_be(tmp_path: Path, logs: list[Path], sources: list[str]) -> None:
    init_workspace(tmp_path, example="log-triage", machine_logs=logs)
    loaded = load_workspace(tmp_path)
    triage = next(step for step in loaded.tasks["log-triage"].steps if step.do == "triage")
    assert triage.args["sources"] == sources
    assert {str(path) for path in loaded.config.tools["triage"].read} == {str(path.parent.resolve()) for path in logs}


def test_only_logs_that_this_user_can_read_are_named() -> None:
    for path in readable_machine_logs():
        assert path.is_file()
        assert os.access(path, os.R_OK)


def test_every_setting_of_the_configuration_is_named_in_a_template() -> None:
    """The templates are the sample file: each section stands there, in use or as a comment."""
    text = "".join((TEMPLATES / name).read_text() for name in ("blank/perdure.toml", "model-none.toml"))
    for name, field in Config.model_fields.items():
        key = field.alias or name
        if key not in {"workspace", "digest"}:
            assert f"[{key}]" in text or f"[{key}." in text or f"{key} = " in text, key


def test_commented_parts_of_the_templates_are_right(tmp_path: Path) -> None:
    """Uncommenting what is offered gives a valid configuration."""
    init_workspace(tmp_path)
    lines = []
    for line in (tmp_path / CONFIG_NAME).read_text().splitlines():
        offered = line.removeprefix("# ")
        is_setting = line.startswith("# ") and (offered.startswith("[") or offered.split(" ")[1:2] == ["="])
        lines.append(offered if is_setting else line)
    text = "\n".join(lines)
    assert len(tomllib.loads(text)) > 8
    (tmp_path / CONFIG_NAME).write_text(text)
    config = load_config(tmp_path)
    assert config.model is not None
    assert config.budgets.usd_per_day == 5.0
    assert config.tools["disk_usage"].paths == {"path": "read"}


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"example": "nothing"}, "log-triage"),
        ({"timezone": "Mars"}, "the time zone Mars"),
        ({"planner": "local"}, "no model file is named"),
        ({"planner": "local", "model": Path("/nowhere.gguf")}, "No such file"),
        ({"planner": "local", "model": Path(__file__)}, "not a GGUF model"),
    ],
)
def test_what_cannot_be_set_up_is_said(tmp_path: Path, options: dict[str, object], cause: str) -> None:
    with pytest.raises(PerdureError, match=cause):
        init_workspace(tmp_path / "ws", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "ws").exists()


def test_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PerdureError, match="may write"):
        init_workspace(tmp_path / "file" / "ws")


# -- block_ip -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Initialised:
    return init_workspace(tmp_path, example="log-triage", machine_logs=[])


def block(workspace: Path, address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "tools/block_ip.py", address, "blocked.txt"]
    return subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)


def test_blocking_twice_writes_the_address_once(workspace: Initialised) -> None:
    """And the probe of perdure.toml tells whether it happened."""
    directory = workspace.workspace
    probe = load_config(directory).tools["block_ip"].probe
    assert probe is not None
    asked = [part.replace("${args.ip}", "203.0.113.4") for part in probe.command]
    assert subprocess.run(asked, cwd=directory, check=False).returncode == 1
    assert block(directory, "203.0.113.47").returncode == 0
    assert subprocess.run(asked, cwd=directory, check=False).returncode == 1  # 203.0.113.4 is not 203.0.113.47
    assert block(directory, "203.0.113.4").returncode == 0
    assert "already" in block(directory, "203.0.113.4").stdout
    assert subprocess.run(asked, cwd=directory, check=False).returncode == 0
    assert (directory / "blocked.txt").read_text() == "203.0.113.47\n203.0.113.4\n"


@pytest.mark.parametrize("address", ["", "10.0.0", "203.0.113.4\n10.0.0.1", "::1", "-n", "203.0.113.4 # x"])
def test_what_is_no_address_is_not_written(workspace: Initialised, address: str) -> None:
    assert block(workspace.workspace, address).returncode != 0
    assert (workspace.workspace / "blocked.txt").read_text() == ""


def test_files_are_made_with_the_user_s_own_mask(workspace: Initialised) -> None:
    mask = os.umask(0o077)
    os.umask(mask)
    mode = stat.S_IMODE((workspace.workspace / CONFIG_NAME).stat().st_mode)
    assert mode == 0o666 & ~mask
