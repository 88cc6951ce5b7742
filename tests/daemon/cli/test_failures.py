"""How failures are told: all at once, with the next step, with their exit code, and without a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import click
import pytest

from perdure.daemon.cli import app, failures
from perdure.daemon.cli.terminal import console_for
from perdure.errors import Problem, Problems


def test_outside_a_workspace_it_says_how_to_get_one(tmp_path, place_at):
    done = subprocess.run(
        [sys.executable, "-m", "perdure.daemon.cli", "status"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no perdure.toml there" in done.stderr
    assert "perdure init DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_workspace_is_found_from_below(parked):
    below = parked.root / "reports" / "deep"
    below.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "perdure.daemon.cli", "status"],
        cwd=below,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_workspace_option_may_stand_before_or_after_the_command(parked, tmp_path):
    for arguments in (["-w", str(parked.root), "status"], ["status", "-w", str(parked.root)]):
        done = subprocess.run(
            [sys.executable, "-m", "perdure.daemon.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # The commands that it prints work from where it was called.
        assert f"perdure -w {parked.root.relative_to(tmp_path)} ledger show 1F1RST" in done.stdout


def test_all_problems_are_listed_with_place_and_caret():
    problems = Problems(
        "load",
        [
            Problem("policies/a.yaml", 3, 11, "atuo", "auto, escalate or deny", "  decide: \x1batuo"),
            Problem("tasks/b.md", 1, 1, "nothing", "front matter", "---"),
        ],
    )
    out = io.StringIO()
    failures.tell(problems, console_for(out, colour=False))
    text = out.getvalue()
    for expected in (
        "policies/a.yaml:3:11",
        "tasks/b.md:1:1",
        "found     atuo",
        "expected  auto, escalate or deny",
        "perdure check",
    ):
        assert expected in text, expected
    source, caret = text.splitlines()[3:5]
    assert source[caret.index("^") :].startswith("\\x1b")


def test_json_was_asked_for_so_errors_are_json(parked):
    result = parked.call("ledger", "show", "nosuch", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stderr)
    assert error["format"] == "perdure/error/1"
    assert error["exit_code"] == 1
    assert {"operation", "object", "cause", "hint"} <= set(error)
    assert result.stdout == ""


def test_an_unknown_command_names_the_nearest(parked):
    result = parked.call("statsu")
    assert result.exit_code == 2
    assert "perdure status" in result.stderr


def test_a_defect_shows_no_traceback_unless_asked_for(parked, monkeypatch):
    @click.command()
    def broken() -> None:
        raise KeyError("\x1b[31mboom")

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda *_: broken)
    result = parked.call("status")
    assert result.exit_code == failures.DEFECT
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    assert "PERDURE_DEBUG=1" in result.stderr
    monkeypatch.setenv("PERDURE_DEBUG", "1")
    with pytest.raises(KeyError):
        parked.call("status", catch_exceptions=False)


@pytest.mark.parametrize("name", [name for commands in app.COMMANDS.values() for name in commands])
def test_every_command_has_its_help(empty, name):
    result = empty.call(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.stdout


def test_a_reader_that_has_seen_enough_ends_it_quietly(parked):
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m perdure.daemon.cli ledger export | head -n 1"],
        cwd=parked.root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["seq"] == 1
    assert done.stderr == ""


TELLING = "version: 1\nrules:\n  - {name: telling, tools: [notify], decide: auto}\n"


@pytest.mark.parametrize(
    ("file", "text", "task", "code"),
    [
        ("policies/broken.yaml", "version: 1\nrules: [{name: x, decide: atuo}]\n", "work", 2),
        ("tasks/work.md", "---\nname: work\nplanner: playbook\n---\nsteps: []\n", "work", 2),
        ("tasks/work.md", "---\nname: work\nplanner: playbook\n---\nsteps: [{do: list_files}]\n", "wrok", 1),
    ],
)
def test_a_session_that_cannot_begin_leaves_nothing_behind(empty, file, text, task, code):
    for name in ("policies", "tasks"):
        (empty.root / name).mkdir()
    (empty.root / "policies/policy.yaml").write_text(TELLING)
    (empty.root / file).write_text(text)
    before = sorted(empty.root.rglob("*"))
    assert empty.call("session", "run", task).exit_code == code
    assert sorted(empty.root.rglob("*")) == before


def test_no_log_line_stands_between_those_of_the_view(empty):
    for name in ("policies", "tasks"):
        (empty.root / name).mkdir()
    (empty.root / "policies/policy.yaml").write_text(TELLING)
    (empty.root / "tasks/work.md").write_text(
        "---\nname: work\nplanner: playbook\npostconditions:\n  - file_exists: none\n---\nsteps:\n"
        "  - {do: notify, args: {text: hello}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "perdure.daemon.cli", "session", "run", "work"],
        cwd=empty.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no file none" in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith("{")], done.stdout


@pytest.mark.parametrize(
    ("arguments", "damaged", "code"),
    [
        (["verify"], True, 1),
        (["verify", "--json"], True, 1),
        (["verify"], False, 0),
        (["doctor"], True, 1),
        (["ledger", "export"], False, app.READER_GONE),
        (["ledger", "tail", "--json"], False, app.READER_GONE),
        (["ledger", "event", "9999"], False, 1),  # told on standard error
    ],
)
def test_a_verdict_stands_where_nobody_reads_it(parked, arguments, damaged, code):
    """`perdure verify | head`: the reader of standard output, and of standard error, has gone before anything is written."""
    if damaged:
        anchor = parked.state / "anchor"
        anchor.write_text(anchor.read_text().replace("sha256:", "sha256:0", 1))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "perdure.daemon.cli", *arguments],
        cwd=parked.root,
        stdout=writer,
        stderr=writer,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert done.returncode == code
