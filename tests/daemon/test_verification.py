"""Results are checked by something other than the planner's word, at once and weeks later."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.daemon.stage import CONFIG, POLICY, Stage, events

from perdure.daemon import operations
from perdure.daemon.workspace import load_workspace
from perdure.errors import Problems
from perdure.state import projections

REPORT = "\n  - {do: write_file, args: {path: 'reports/${slot.date}.md', text: all well}}\n"
DAY = 86_400


class WebServer(ThreadingHTTPServer):
    """Gives the answers of `script` (status, type, body) and keeps the paths that it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, str, bytes]] = []
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, kind, body = self.server.script.pop(0)
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "workspace")


def report(stage: Stage, postcondition: str, *, steps: str = REPORT, tools: str = "write_file") -> None:
    stage.playbook("report", steps, tools=tools, extra=f"postconditions:\n  - {postcondition}\n")


def orders(stage: Stage, *totals: int) -> None:
    with sqlite3.connect(stage.directory / "orders.db") as database:
        database.execute("create table orders (total integer)")
        database.executemany("insert into orders values (?)", [(total,) for total in totals])
    database.close()


SQL = "sql: {database: orders.db, query: 'select count(*) from orders where total < 0', returns: 0}"


@pytest.mark.parametrize(("totals", "status"), [((5, 7), "succeeded"), ((5, -7), "failed")])
async def test_a_database_is_asked(stage: Stage, totals: tuple[int, ...], status: str) -> None:
    orders(stage, *totals)
    report(stage, SQL)
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == status, ending.reason


@pytest.mark.parametrize(
    "query",
    [
        "delete from orders",
        "attach database 'other.db' as other",
        "insert into orders values (1)",
        "pragma user_version = 7",
        "select * from missing",
        "select 1 from orders where total = 99",
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
    ],
)
async def test_a_database_cannot_be_changed_or_held_up_by_a_check(stage: Stage, query: str, monkeypatch) -> None:
    from perdure.daemon import checks

    monkeypatch.setattr(checks, "SQL_ROUNDS_MAX", 50)
    orders(stage, 5)
    before = (stage.directory / "orders.db").read_bytes()
    report(stage, f'sql: {{database: orders.db, query: "{query}"}}')
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "failed"
    assert (stage.directory / "orders.db").read_bytes() == before
    assert not (stage.directory / "other.db").exists()


CHECK = """
from pathlib import Path

def check(known):
    text = Path(known["args"]["path"]).read_text()
    return True if "well" in text else f"{text!r} sounds bad on {known['slot.kind']}"

def writes(known):
    Path("reports/forged.md").write_text("forged")

def refuses(known):
    return False
"""


@pytest.mark.parametrize(
    ("function", "text", "status", "says"),
    [
        ("check", "all well", "succeeded", "postcondition holds"),
        ("check", "all bad", "failed", "'all bad' sounds bad on manual"),
        ("writes", "all well", "failed", "PermissionError"),
        ("refuses", "all well", "failed", "returned False"),
        ("missing", "all well", "failed", "AttributeError"),
    ],
)
async def test_the_operators_own_code_says_whether_it_holds_and_can_change_nothing(
    stage: Stage, function: str, text: str, status: str, says: str
) -> None:
    stage.write("checks/report.py", CHECK)
    python = f"{{file: checks/report.py, function: {function}, args: {{path: 'reports/${{slot.date}}.md'}}}}"
    report(stage, f"python: {python}", steps=REPORT.replace("all well", text))
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == status, ending.reason
        assert says in ending.reason
    assert not (stage.directory / "reports/forged.md").exists()


@pytest.mark.parametrize(
    ("schema", "content", "says"),
    [
        ("{$ref: '#/nowhere'}", "{}", "names '/nowhere', which is not in it"),
        ("{$ref: 'http://127.0.0.1:PORT/x.json'}", "{}", "which is not in it"),
        ("{type: object}", "[" * 100_000, "nested too deeply"),
        ("{type: object}", "{", "is not JSON"),
        ("{$ref: '#'}", "{}", "round in circles"),
    ],
)
async def test_a_schema_that_leads_nowhere_and_a_file_that_is_no_json_fail_the_condition_in_words(
    stage: Stage, web: WebServer, schema: str, content: str, says: str
) -> None:
    stage.write("reports/x.json", content)
    schema = schema.replace("PORT", str(web.server_address[1]))
    report(stage, f"json_schema: {{path: reports/x.json, schema: {schema}}}")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert ending.reason.startswith("postcondition 1 (json_schema): reports/x.json"), ending.reason
        assert says in ending.reason
    assert web.asked == []  # a schema fetches nothing


@pytest.mark.parametrize(
    ("answer", "http", "says"),
    [
        ((200, "text/plain", b"all green"), "status: 200, contains: green", None),
        ((200, "text/plain", b"all red"), "contains: green", "does not contain 'green'"),
        ((200, "application/json", b'{"state":"up"}'), """contains: '"state":"up"'""", None),
        ((200, "application/json", b'{"state":"up"}'), """contains: '"state": "up"'""", None),
        ((200, "application/octet-stream", b"\0all green"), "contains: green", None),
        ((503, "text/plain", b"down"), "status: 200", "503"),
        ((404, "text/plain", b"gone"), "status: 404, contains: gone", None),
        ((204, "text/plain", b""), "contains: '${slot.date}'", "answered 204, expected 200"),
    ],
)
async def test_a_servers_status_and_body_are_looked_at(
    stage: Stage, web: WebServer, answer: tuple[int, str, bytes], http: str, says: str | None
) -> None:
    web.script.append(answer)
    stage.write("perdure.toml", CONFIG + '[http]\nprivate_hosts = ["127.0.0.1"]\n')
    stage.write("policies/policy.yaml", POLICY + "  - {name: asking ours, tools: [http_request], decide: auto}\n")
    report(stage, f"http: {{url: 'http://127.0.0.1:{web.server_address[1]}/state', {http}}}")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == ("succeeded" if says is None else "failed"), ending.reason
        assert says is None or says in ending.reason
    assert web.asked == ["/state"]


@pytest.mark.parametrize("condition", ["unchanged: reports/log.md", "effects: [append_file]"])
async def test_what_was_done_before_a_question_counts_at_the_end(stage: Stage, condition: str) -> None:
    stage.write("reports/log.md", "as it was\n")
    steps = """
  - {do: append_file, args: {path: reports/log.md, text: one}}
  - {do: move_file, args: {from: a.txt, to: b.txt}}
"""
    stage.write("a.txt", "a")
    report(stage, condition, steps=steps, tools="append_file, move_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "parked"
    if "effects" in condition:
        stage.write("reports/log.md", "gone")
    async with stage.runtime() as runtime:
        (question,) = projections.escalations(runtime.ledger.reader)
        operations.answer(
            runtime.ledger, runtime.identifiers, runtime.now(), 1000, escalation=question.escalation, answer="approve"
        )
        (ending,) = await stage.run_open_slots(runtime)
        assert (stage.directory / "b.txt").exists()
        assert ending.status == "failed", ending.reason


async def test_an_effect_that_is_gone_at_the_end_fails_the_session(stage: Stage) -> None:
    steps = """
  - {do: append_file, args: {path: reports/log.md, text: one}}
  - {do: write_file, args: {path: reports/log.md, text: two}}
"""
    report(stage, "effects: [append_file]", steps=steps, tools="append_file, write_file")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert "the effect of append_file" in ending.reason


TOOLS = """
[tools.make]
command = ["/bin/sh", "-c", "echo made > out/$0", "${args.real}"]
args = {real = {type = "string"}, said = {type = "string"}}
write = ["out"]
verify = [{file_exists = "out/${args.said}"}]
verifier = 0.9
"""


@pytest.mark.parametrize(("said", "passed"), [("a", True), ("b", False)])
async def test_a_call_of_a_tool_is_looked_at_as_its_configuration_says(stage: Stage, said: str, passed: bool) -> None:
    (stage.directory / "out").mkdir()
    stage.write("perdure.toml", CONFIG + TOOLS)
    stage.write("policies/policy.yaml", POLICY + "  - {name: making, tools: [make], decide: auto}\n")
    stage.playbook("report", f"\n  - {{do: make, args: {{real: a, said: {said}}}}}\n", tools="make")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
        (verified,) = events(runtime, "action.verified")
        assert verified.body["verifier"] == "file_exists"
        assert (verified.body["passed"], verified.body["reliability"]) == (passed, 0.9)
        (row,) = projections.actions(runtime.ledger.reader)
        assert row.verified is passed


@pytest.mark.parametrize(
    "verify", ['{file_exists = "out/${args.other}"}', '{unchanged = "a"}', '{file_exists = "a", keep = "1d"}']
)
def test_a_verification_that_cannot_work_is_refused_at_load(stage: Stage, verify: str) -> None:
    stage.write("perdure.toml", CONFIG + TOOLS.replace('{file_exists = "out/${args.said}"}', verify))
    with pytest.raises(Problems):
        load_workspace(stage.directory)


# -- standing postconditions ------------------------------------------------------------------------------------------

KEPT = "{file_contains: {path: 'reports/${slot.date}.md', text: well}, keep: 90d}"


def broken(runtime) -> list[str]:
    return [
        runtime.ledger.reader.payload(event.seq)["text"]
        for event in events(runtime, "alarm.raised")
        if event.body["code"] == "standing-broken"
    ]


async def test_an_output_that_rots_weeks_later_is_found_and_named_and_its_proven_version_is_there(stage: Stage) -> None:
    report(stage, KEPT)
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "succeeded"
    (first,) = (stage.directory / "reports").iterdir()
    stage.clock.forward(30 * DAY)
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "succeeded"
        assert broken(runtime) == []
    first.write_text("all is well, says who broke it")  # the condition still holds, but nobody of ours wrote that
    stage.clock.forward(5 * DAY)
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "succeeded"  # today's report is proven all the same
        (text,) = broken(runtime)
        assert first.name in text
        kept = Path(text.split("cp ")[1].split(" ")[0])
        assert kept.read_text() == "all well"
        stage.clock.forward(DAY)
        await stage.run(runtime, "report")
        assert len(broken(runtime)) == 1  # told once


async def test_what_broke_stays_restorable_and_is_looked_at_again_once_it_is_back(stage: Stage) -> None:
    report(stage, KEPT, steps=REPORT.replace("text: all well", "text: '${slot.date}: all well'"))
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
    (first,) = (stage.directory / "reports").iterdir()
    proven = first.read_text()
    kept = []
    for again in range(2):
        first.write_text("rotten")
        for _ in range(2):  # the second session keeps a copy of its own report, and throws away what nobody needs
            stage.clock.forward(2 * DAY)
            async with stage.runtime() as runtime:
                await stage.run(runtime, "report")
                assert len(broken(runtime)) == again + 1  # told once each time
                kept.append(Path(broken(runtime)[-1].split("cp ")[1].split(" ")[0]))
        assert kept[-1].read_text() == proven
        first.write_bytes(kept[-1].read_bytes())
        stage.clock.forward(2 * DAY)
        async with stage.runtime() as runtime:
            await stage.run(runtime, "report")
    stage.clock.forward(91 * DAY)
    for _ in range(2):
        async with stage.runtime() as runtime:
            await stage.run(runtime, "report")
            assert len(broken(runtime)) == 2
        stage.clock.forward(DAY)
    assert not kept[-1].exists()  # past its time


async def test_the_action_of_another_task_that_broke_it_is_named_with_the_way_back(stage: Stage) -> None:
    report(stage, KEPT)
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
    (first,) = (stage.directory / "reports").iterdir()
    stage.playbook(
        "spoil", f"\n  - {{do: write_file, args: {{path: reports/{first.name}, text: gone}}}}\n", tools="write_file"
    )
    stage.clock.forward(3 * DAY)
    async with stage.runtime() as runtime:
        await stage.run(runtime, "spoil")
        await stage.run(runtime, "report")
        (text,) = broken(runtime)
        spoiled = next(row for row in projections.actions(runtime.ledger.reader) if row.task == "spoil")
        assert f"perdure undo {spoiled.action}" in text


@pytest.mark.parametrize("writer", ["nobody", "write_file", "jot"])
async def test_a_file_that_every_session_proves_is_not_proven_anew_where_somebody_else_changed_it(
    stage: Stage, writer: str
) -> None:
    jot = '[tools.jot]\ncommand = ["/bin/sh", "-c", "echo all well, jotted > reports/all.md"]\nwrite = ["reports"]\n'
    stage.write("perdure.toml", CONFIG + jot)
    stage.write("policies/policy.yaml", POLICY + "  - {name: jotting, tools: [jot], decide: auto}\n")
    stage.write("reports/all.md", "all well\n")
    reading = "\n  - {do: read_file, args: {path: reports/all.md}}\n"
    own = {
        "nobody": "",
        "jot": "  - {do: jot}\n",
        "write_file": "  - {do: write_file, args: {path: reports/all.md, text: well}}\n",
    }
    kept = "{file_contains: {path: reports/all.md, text: well}, keep: 90d}"
    tools = "read_file, write_file, jot"
    report(stage, kept, steps=reading, tools=tools)
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "succeeded"
    if writer == "nobody":
        stage.write("reports/all.md", "all well, says who broke it\n")
    report(stage, kept, steps=reading + own[writer], tools=tools)
    for _ in range(2):
        stage.clock.forward(20 * DAY)
        async with stage.runtime() as runtime:
            assert (await stage.run(runtime, "report")).status == "succeeded"
            assert len(broken(runtime)) == (1 if writer == "nobody" else 0)
    if writer == "nobody":
        async with stage.runtime() as runtime:
            words = broken(runtime)[0].split("cp ")[1].split(" ")
            assert Path(words[0]).read_text() == "all well\n"
            Path(words[1]).write_bytes(Path(words[0]).read_bytes())
            await stage.run(runtime, "report")
            assert events(runtime, "postcondition.checked")[-1].body["condition"]  # proven anew


async def test_a_newer_version_by_the_same_task_is_no_alarm_and_what_is_past_its_time_is_left_alone(
    stage: Stage,
) -> None:
    report(
        stage,
        "{file_contains: {path: reports/all.md, text: well}, keep: 10d}",
        steps=REPORT.replace("${slot.date}", "all"),
    )
    async with stage.runtime() as runtime:
        for _ in range(2):
            assert (await stage.run(runtime, "report")).status == "succeeded"
            stage.clock.forward(DAY)
        assert broken(runtime) == []
    (stage.directory / "reports/all.md").unlink()
    report(stage, "{file_exists: 'reports/${slot.date}.md'}")
    stage.clock.forward(20 * DAY)
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
        assert broken(runtime) == []
