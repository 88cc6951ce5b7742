"""Four servers that others wrote, in both eras of the protocol, over their pipes and over HTTP: tasks of several steps, killed in
the middle of a call, and recovered by effect class."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.daemon.mcp.outside import HOSTILE, POLICY, accept_all, ended, node, node_server, until
from tests.daemon.stage import Stage, events

from perdure.daemon import operations
from perdure.daemon.sandbox.strays import find_strays
from perdure.state import projections
from perdure.state.reading import LedgerReader

PROXY = HOSTILE.parent / "stalling_proxy.py"


def python_server(name: str) -> Path:
    """The program of a server from the Python index, or a skip."""
    program = Path(sys.executable).parent / name
    if not program.exists():
        pytest.skip(f"{name} is not installed: it is among the dev requirements")
    return program


def words(*command: object) -> str:
    """A command for TOML."""
    return ", ".join(f'"{part}"' for part in command)


class Real(Stage):
    """A stage with one real server behind the stalling proxy."""

    def __init__(self, directory: Path, server: str, command: str, settings: str, steps: str, tools: str) -> None:
        super().__init__(directory)
        self.server = server
        (directory / "proxy").mkdir()
        (directory / "data").mkdir()
        proxied = words(sys.executable, PROXY, directory / "proxy")
        self.write(
            "perdure.toml",
            f"""
timezone = "UTC"
[memory]
embedding = "none"
[mcp.{server}]
command = [{proxied}, {command}]
start_timeout = "60s"
read = ["{PROXY.parent}", "{Path(__file__).parents[3] / ".cache"}", "data", "proxy"]
write = ["data", "proxy"]
{settings}
""",
        )
        self.write("policies/outside.yaml", POLICY)
        self.steps, self.tools = steps, tools

    async def accepted(self) -> Real:
        await accept_all(self, self.server)
        self.playbook("work", self.steps, tools=self.tools)
        return self

    async def killed_in(self, when: str, tool: str) -> None:
        """Run the task in a process of its own, and kill it while the server is held in the call."""
        self.write("proxy/stall", f"{when} {tool}")
        command = [sys.executable, "-m", "perdure.daemon.cli", "-w", str(self.directory), "session", "run", "work"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: ASYNC220 — it is killed with a signal
            await until(lambda: (self.directory / "proxy/ready").exists() or process.poll() is not None)
            assert process.poll() is None, "the session ended before the call"
            process.send_signal(signal.SIGKILL)
        await until(lambda: not find_strays(self.directory / "state"))  # the launcher ends what the daemon left
        (self.directory / "proxy/stall").unlink()
        with LedgerReader.open(self.directory / "state/ledger.db") as reader:
            (open_one,) = projections.open_intents(reader)
            assert open_one.tool == f"{self.server}__{tool}"


def _git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=_GIT).stdout


_GIT = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


# -- once: a person says what became of it -------------------------------------------------------------------------------


async def test_everything_killed_in_a_call_of_class_once_asks_and_goes_on(tmp_path: Path) -> None:
    steps = """
  - {do: every__get-sum, args: {a: 2, b: 3}, save: total}
  - {do: every__get-structured-content, args: {location: Chicago}, save: weather}
  - {do: every__echo, args: {message: "the sum"}, on_error: continue}
  - {do: every__get-tiny-image}
  - {do: write_file, args: {path: data/sum.txt, text: "${total.text}"}}
"""
    command = words(node(), node_server("server-everything"))
    stage = await Real(
        tmp_path / "w", "every", command, "", steps,
        "every__get-sum, every__get-structured-content, every__echo, every__get-tiny-image, write_file",
    ).accepted()  # fmt: skip
    await stage.killed_in("after", "echo")
    async with stage.runtime() as runtime:
        (question,) = projections.escalations(runtime.ledger.reader)
        assert question.tool == "every__echo"
        assert await stage.run_open_slots(runtime) == []  # it waits for the answer
        operations.answer(
            runtime.ledger, runtime.identifiers, runtime.now(), 0, escalation=question.escalation, answer="approve"
        )
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"
        statuses = [(end["tool"], end["attempt"], end["status"]) for end in ended(runtime)]
        assert ("every__echo", 1, "unknown") in statuses
        assert ("every__echo", 2, "succeeded") in statuses
        assert [tool for tool, *_ in statuses].count("every__get-sum") == 1
        (image,) = ended(runtime, "every__get-tiny-image")
        assert "image/png" in str(image["result"])
        (weather,) = ended(runtime, "every__get-structured-content")
        assert weather["result"]["structured"]["temperature"]
        assert events(runtime, "mcp.server-started")[-1].body["protocol"] < "2026"
    assert "5" in (stage.directory / "data/sum.txt").read_text()


# -- idempotent: runs again under its own key ----------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
async def test_files_killed_in_an_idempotent_call_runs_it_again(tmp_path: Path, when: str) -> None:
    steps = """
  - {do: files__create_directory, args: {path: data/reports}}
  - {do: files__write_file, args: {path: data/reports/a.md, content: hello}}
  - {do: files__read_text_file, args: {path: data/reports/a.md}, save: back}
  - {do: write_file, args: {path: done.md, text: "${back.text}"}}
"""
    settings = """
[mcp.files.tools.create_directory]
effect = "idempotent"
paths = {path = "write"}
[mcp.files.tools.write_file]
effect = "idempotent"
paths = {path = "write"}
[mcp.files.tools.read_text_file]
effect = "read"
paths = {path = "read"}
"""
    command = words(node(), node_server("server-filesystem"), "data")
    stage = await Real(
        tmp_path / "w", "files", command, settings, steps,
        "files__create_directory, files__write_file, files__read_text_file, write_file",
    ).accepted()  # fmt: skip
    await stage.killed_in(when, "write_file")
    assert (stage.directory / "data/reports/a.md").exists() == (when == "after")
    async with stage.runtime() as runtime:
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"
        attempts = [end["attempt"] for end in ended(runtime, "files__write_file") if end["status"] == "succeeded"]
        assert attempts == [2]
        assert not projections.escalations(runtime.ledger.reader)
    assert "hello" in (stage.directory / "done.md").read_text()


# -- probeable: asked, never repeated ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("when", "attempts"), [("before", 2), ("after", 1)])
async def test_git_killed_in_a_commit_is_probed_and_done_exactly_once(tmp_path: Path, when: str, attempts: int) -> None:
    repository = tmp_path / "w/data"
    steps = f"""
  - {{do: git__git_status, args: {{repo_path: "{repository}"}}}}
  - {{do: git__git_add, args: {{repo_path: "{repository}", files: [new.txt]}}}}
  - {{do: git__git_commit, args: {{repo_path: "{repository}", message: the second}}, on_error: continue}}
  - {{do: git__git_log, args: {{repo_path: "{repository}", max_count: 5}}, save: log}}
  - {{do: write_file, args: {{path: done.md, text: "${{log.text}}"}}}}
"""
    settings = """
env = {GIT_AUTHOR_NAME = "t", GIT_AUTHOR_EMAIL = "t@example.org", GIT_COMMITTER_NAME = "t", GIT_COMMITTER_EMAIL = "t@example.org", GIT_CONFIG_NOSYSTEM = "1"}
[mcp.git.tools.git_status]
effect = "read"
[mcp.git.tools.git_log]
effect = "read"
[mcp.git.tools.git_add]
effect = "idempotent"
[mcp.git.tools.git_commit]
effect = "probeable"
probe = {tool = "git_log", args = {repo_path = "${args.repo_path}", max_count = 1}, expect = "text.contains(args.message)"}
"""
    command = words(python_server("mcp-server-git"))
    stage = Real(
        tmp_path / "w", "git", command, settings, steps,
        "git__git_status, git__git_add, git__git_commit, git__git_log, write_file",
    )  # fmt: skip
    _git(repository, "init", "-q", ".")
    (repository / "old.txt").write_text("old")
    (repository / "new.txt").write_text("new")
    _git(repository, "add", "old.txt")
    _git(repository, "commit", "-q", "-m", "the first")
    await stage.accepted()
    await stage.killed_in(when, "git_commit")
    async with stage.runtime() as runtime:
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"
        (row,) = [row for row in projections.actions(runtime.ledger.reader) if row.tool == "git__git_commit"]
        assert (row.status, row.attempt) == ("succeeded", attempts)
        assert events(runtime, "mcp.server-started")[-1].body["protocol"] >= "2026"
    assert len(_git(repository, "log", "--oneline").splitlines()) == 2
    assert "the second" in (stage.directory / "done.md").read_text()


# -- read: simply again --------------------------------------------------------------------------------------------------


async def test_time_killed_in_a_read_reads_again(tmp_path: Path) -> None:
    steps = """
  - {do: time__convert_time, args: {source_timezone: UTC, time: "12:00", target_timezone: Europe/Berlin}, save: there}
  - {do: time__get_current_time, args: {timezone: UTC}, save: now}
  - {do: write_file, args: {path: done.md, text: "${there.structured.target.timezone} ${now.structured.timezone}"}}
"""
    settings = '[mcp.time.tools.get_current_time]\neffect = "read"\n[mcp.time.tools.convert_time]\neffect = "read"\n'
    stage = await Real(
        tmp_path / "w", "time", words(python_server("mcp-server-time")), settings, steps,
        "time__convert_time, time__get_current_time, write_file",
    ).accepted()  # fmt: skip
    await stage.killed_in("after", "get_current_time")
    async with stage.runtime() as runtime:
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"
        assert [end["attempt"] for end in ended(runtime, "time__get_current_time") if end["status"] == "succeeded"] == [
            2
        ]
    assert "Europe/Berlin" in (stage.directory / "done.md").read_text()


# -- over HTTP -----------------------------------------------------------------------------------------------------------


def _free_port() -> int:
    """A port on which nobody listens, of those that the kernel gives to nobody who asks for any."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, first) if first > 11_000 else 0
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))
            return int(listener.getsockname()[1])


@contextlib.asynccontextmanager
async def _web_server(port: int) -> AsyncIterator[Callable[[], None]]:
    """server-everything over streamable HTTP; yields what kills it."""
    environment = {"PATH": os.environ["PATH"], "PORT": str(port)}
    command = [str(node()), str(node_server("server-everything")), "streamableHttp"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 — as above
    try:
        await until(lambda: _listens(port))
        yield process.kill
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


async def test_a_server_over_http_killed_in_a_call_and_recovered(tmp_path: Path) -> None:
    port = _free_port()
    stage = Stage(tmp_path / "w")
    stage.write(
        "perdure.toml",
        f'timezone = "UTC"\n[memory]\nembedding = "none"\n[mcp.web]\nurl = "http://127.0.0.1:{port}/mcp"\ntimeout = "60s"\n',
    )
    stage.write("policies/outside.yaml", POLICY)
    steps = """
  - {do: web__get-sum, args: {a: 20, b: 22}, save: total}
  - {do: web__trigger-long-running-operation, args: {duration: 2, steps: 2}, on_error: continue}
  - {do: write_file, args: {path: done.md, text: "${total.text}"}}
"""
    async with _web_server(port) as kill:
        await accept_all(stage, "web")
        stage.playbook("work", steps, tools="web__get-sum, web__trigger-long-running-operation, write_file")
        async with stage.runtime() as runtime:
            running = asyncio.create_task(stage.run(runtime, "work"))
            await until(lambda: len(events(runtime, "action.intended")) == 2)
            kill()
            assert (await running).status in ("unverified", "parked", "failed")
            questions = projections.escalations(runtime.ledger.reader)
            first = ended(runtime, "web__trigger-long-running-operation")[0]
            # Killed before it was sent, it has plainly failed; afterwards, nobody knows.
            assert (first["status"], len(questions)) in (("unknown", 1), ("failed", 0))
    async with _web_server(port), stage.runtime() as runtime:
        for question in questions:
            operations.answer(
                runtime.ledger,
                runtime.identifiers,
                runtime.now(),
                0,
                escalation=question.escalation,
                answer="approve",
            )
        await stage.run_open_slots(runtime)
        last = ended(runtime, "web__trigger-long-running-operation")[-1]
        assert last["status"] == ("succeeded" if questions else "failed")
        assert (await stage.run(runtime, "work")).status == "unverified"
    assert "42" in (stage.directory / "done.md").read_text()
