"""The shipped unit on a real systemd, booted for the purpose: readiness, watchdog, confinement, credentials, journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, booted, why_not

SECRET = "sk-test-9b1d0c55e1f64f0e"
WORKSPACE = "/etc/perdure"
STATE = "/var/lib/perdure/state"
FILES = "/var/lib/perdure/files"
PERDURE = f"/opt/perdure/bin/perdure --workspace {WORKSPACE}"

CONFIGURATION = f"""
state = "{STATE}"
timezone = "UTC"

[files]
read = ["{FILES}"]
write = ["{FILES}"]

[tools.kernel]
command = ["/usr/bin/uname", "-r"]
effect = "read"

[model]
provider = "openai"
name = "gpt-5-mini"
key = "model_key"
"""
POLICY = f"""
version: 1
rules:
  - {{name: asking for the kernel's name, tools: [kernel], decide: auto}}
  - {{name: files, tools: [write_file], path: {{under: {FILES}}}, decide: auto}}
"""
TASK = f"""---
name: look
planner: playbook
postconditions:
  - file_contains: {{path: {FILES}/seen.txt, text: "it ran"}}
---
steps:
  - {{do: kernel, save: kernel}}
  - {{do: write_file, args: {{path: {FILES}/seen.txt, text: "it ran"}}}}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def machine(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, eventually: Callable[..., Any]
) -> Iterator[Machine]:
    """A booted machine with Perdure installed as docs/operating.md says, and started."""
    outside = tmp_path_factory.mktemp("outside")
    for name, text in (("perdure.toml", CONFIGURATION), ("policies/look.yaml", POLICY), ("tasks/look.md", TASK)):
        (outside / "workspace" / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / "workspace" / name).write_text(text)
    with booted(outside, repository, eventually) as machine:
        machine.shell(
            f"""
            umask 022
            cp -r /opt/outside/workspace {WORKSPACE}
            chown -R root:root {WORKSPACE}
            mkdir -m 700 /etc/credstore
            printf '{SECRET}\\n' >/etc/credstore/perdure.model_key
            chmod 600 /etc/credstore/perdure.model_key
            cp /opt/source/systemd/perdure.service /run/systemd/system/
            systemctl daemon-reload
            systemctl start perdure
            """
        )
        yield machine


def lives(machine: Machine) -> list[str]:
    """The daemon's starts and stops as the ledger has them."""
    text = machine.shell(f"{PERDURE} ledger export --format jsonl")
    return [event["type"] for event in map(json.loads, text.splitlines()) if event["type"].startswith("daemon.")]


def test_it_is_up_only_when_it_says_so_and_tells_what_it_does(machine: Machine) -> None:
    assert machine.show("perdure", "ActiveState") == "active"
    assert "1 task" in machine.show("perdure", "StatusText")
    assert lives(machine) == ["daemon.started"]


def test_the_journal_has_its_fields(machine: Machine) -> None:
    lines = machine.run("journalctl", "-u", "perdure", "--no-pager", "-o", "json", "PERDURE_LOGGER=perdure.events")
    [started] = [line for line in map(json.loads, lines.splitlines()) if line["MESSAGE"].startswith("daemon.started")]
    assert started["PRIORITY"] == "6"
    assert started["PERDURE_PID"] == machine.show("perdure", "MainPID")


def test_state_is_its_own_and_configuration_is_not(machine: Machine) -> None:
    user = machine.show("perdure", "MainPID")
    owner = machine.run("stat", "-c", "%U", f"/proc/{user}")
    assert owner != "root"
    assert machine.run("stat", "-L", "-c", "%a %u", "/var/lib/perdure").split() == [
        "700",
        machine.run("stat", "-c", "%u", f"/proc/{user}"),
    ]
    assert machine.run("stat", "-c", "%U", WORKSPACE) == "root"


def test_the_credential_reaches_the_daemon_and_nothing_else(machine: Machine) -> None:
    pid = machine.show("perdure", "MainPID")
    assert SECRET not in machine.shell(f"tr '\\0' '\\n' </proc/{pid}/environ; tr '\\0' ' ' </proc/{pid}/cmdline")
    assert machine.shell("cat /run/credentials/perdure.service/model_key") == SECRET
    assert SECRET not in machine.journal()


def test_a_tool_of_the_operator_runs_under_the_full_hardening(machine: Machine) -> None:
    ending = json.loads(machine.shell(f"{PERDURE} --json session run look"))
    assert ending["session"]
    account = machine.shell(f"{PERDURE} --json ledger show {ending['session']}")
    assert '"kernel"' in account
    assert ending["status"] == "succeeded", account


def test_a_reload_is_heard(machine: Machine, eventually: Callable[..., Any]) -> None:
    machine.shell(f"echo '  - nonsense' >>{WORKSPACE}/policies/look.yaml; systemctl reload perdure")
    eventually(lambda: "look.yaml" in machine.shell("journalctl -u perdure --no-pager -o cat"))
    assert machine.show("perdure", "ActiveState") == "active"
    machine.shell(f"sed -i '$d' {WORKSPACE}/policies/look.yaml; systemctl reload perdure")


def test_it_comes_back_from_a_kill(machine: Machine, eventually: Callable[..., Any]) -> None:
    before = machine.show("perdure", "MainPID")
    machine.run("kill", "-KILL", before)
    eventually(
        lambda: (
            machine.show("perdure", "ActiveState") == "active"
            and machine.show("perdure", "MainPID") not in {before, "0"}
        )
    )
    assert lives(machine)[-2:] == ["daemon.started", "daemon.started"]


def test_files_that_root_left_in_the_state_are_given_back(machine: Machine) -> None:
    machine.shell("systemctl stop perdure; touch /var/lib/perdure/state/left-by-root; systemctl start perdure")
    assert machine.run("stat", "-c", "%U", "/var/lib/perdure/state/left-by-root") != "root"


def test_the_watchdog_ends_a_loop_that_hangs(machine: Machine, eventually: Callable[..., Any]) -> None:
    machine.shell(
        """
        mkdir -p /run/systemd/system/perdure.service.d
        printf '[Service]\\nWatchdogSec=6\\n' >/run/systemd/system/perdure.service.d/quick.conf
        systemctl daemon-reload; systemctl restart perdure
        """
    )
    before = machine.show("perdure", "MainPID")
    machine.run("kill", "-STOP", before)
    eventually(
        lambda: (
            machine.show("perdure", "ActiveState") == "active"
            and machine.show("perdure", "MainPID") not in {before, "0"}
        )
    )
    assert "Watchdog timeout" in machine.shell("journalctl -u perdure --no-pager -o cat")


def test_a_mistake_in_a_file_is_not_tried_again(machine: Machine) -> None:
    machine.shell(
        f"systemctl stop perdure; cp {WORKSPACE}/perdure.toml /opt/outside/kept; echo 'nonsense = 1' >{WORKSPACE}/perdure.toml"
    )
    machine.run("systemctl", "start", "perdure", check=False)
    assert machine.show("perdure", "ExecMainStatus") == "2"
    assert machine.show("perdure", "ActiveState") == "failed"
    assert "nonsense" in machine.shell("journalctl -u perdure --no-pager -o cat")
    machine.shell(f"cp /opt/outside/kept {WORKSPACE}/perdure.toml; systemctl start perdure")


def test_a_clean_stop_is_recorded(machine: Machine) -> None:
    machine.run("systemctl", "stop", "perdure")
    assert machine.show("perdure", "Result") == "success"
    assert lives(machine)[-1] == "daemon.stopped"
    assert machine.shell(f"{PERDURE} verify")
