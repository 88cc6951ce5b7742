"""A hostile server: whatever it does, the daemon stays, the outcome is told truly, and nothing unaccepted runs."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest
from tests.daemon.mcp.outside import Outside, ended, until
from tests.daemon.stage import events

from perdure.daemon.mcp import connection, server
from perdure.daemon.mcp.program_transport import KeptStderr
from perdure.daemon.sandbox.strays import find_strays
from perdure.daemon.workspace import load_workspace
from perdure.errors import Problems
from perdure.state import projections


@pytest.fixture
async def outside(tmp_path: Path) -> Outside:
    stage = Outside(tmp_path / "w")
    await stage.accept()
    stage.note()
    return stage


async def test_an_accepted_tool_runs_as_policy_says(outside: Outside) -> None:
    async with outside.runtime() as runtime:
        assert (await outside.run(runtime, "work")).status == "unverified"
        (end,) = ended(runtime)
        assert end["status"] == "succeeded"
        assert end["result"] == {"text": "noted"}
    assert outside.effects == 1
    assert find_strays(outside.directory / "state") == []  # the server went with the daemon


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("crash-before", "exit 3"),
        ("crash-after", "exit 3"),
        ("huge", "message of more than 1000000 bytes"),
        ("endless", "message of more than 1000000 bytes"),
        ("flood", "messages in one call"),
        ("nonsense", "lines that are no message"),
        ("no-result", ""),
    ],
)
async def test_an_outcome_that_nobody_saw_is_unknown_and_never_repeated(outside: Outside, mode: str, says: str) -> None:
    outside.mode(mode)
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["status"] == "unknown"
        assert says in str(end["error"])
        (question,) = projections.escalations(runtime.ledger.reader)
        assert question.tool == "odd__note"  # `once`: a person says what became of it
        assert outside.effects == (0 if mode == "crash-before" else 1)
        outside.mode("normal")
        assert (await runtime.servers.discover())[0].error is None  # and the server stands again
    assert outside.effects == (0 if mode == "crash-before" else 1)


@pytest.mark.parametrize("mode", ["silent", "wrong-ids"])
async def test_a_call_that_is_never_answered_ends_with_its_time(tmp_path: Path, mode: str) -> None:
    outside = Outside(tmp_path / "w", timeout="1s")
    await outside.accept()
    outside.note()
    outside.mode(mode)
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["status"] == "unknown"
        assert "no answer within" in str(end["error"])
        assert "forged" not in json.dumps(end)


@pytest.mark.parametrize("mode", ["crash-after", "no-result", "huge"])
async def test_a_read_that_breaks_has_failed(tmp_path: Path, mode: str) -> None:
    outside = Outside(tmp_path / "w", tools='[mcp.odd.tools.note]\neffect = "read"\n')
    await outside.accept()
    outside.note()
    outside.mode(mode)
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        assert [end["status"] for end in ended(runtime)] == ["failed"]
        assert not projections.escalations(runtime.ledger.reader)


@pytest.mark.parametrize(
    "mode",
    [
        f"{what}-at {where}"
        for what, where in [
            ("crash", "server/discover"), ("crash", "initialize"), ("crash", "notifications/initialized"),
            ("crash", "tools/list"), ("nonsense", "initialize"), ("nonsense", "tools/list"),
        ]
    ] + ["many-tools", "endless-pages"],
)  # fmt: skip
async def test_what_breaks_before_the_call_has_failed_and_was_never_sent(
    outside: Outside, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LIST_SECONDS", 2.0)
    outside.setting('start_timeout = "60s"', 'start_timeout = "3s"')
    outside.mode(mode)
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert (end["status"], outside.effects) == ("failed", 0)
        assert "Nothing was sent" in str(end["error"])
        assert events(runtime, "mcp.server-ended")


async def test_a_hanging_start_is_bounded(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "w")
    await outside.accept()
    outside.setting('start_timeout = "60s"', 'start_timeout = "1s"')
    outside.note()
    outside.mode("hang-at initialize")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["status"] == "failed"
        assert "did not answer within 1 s" in str(end["error"])


async def test_restarts_wait_longer_each_time(outside: Outside) -> None:
    outside.note(times=4)
    outside.mode("crash-at initialize")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        failures = [event.body["failures"] for event in events(runtime, "mcp.server-ended")]
        assert failures == [1, 2, 3, 4]
        at = [event.at for event in events(runtime, "mcp.server-ended")]
        gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
        assert all(gap >= 250_000 * 2**i for i, gap in enumerate(gaps))


# -- the schema that a person accepted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["changed", "changed-words"])
async def test_a_changed_tool_is_for_a_person_until_accepted_again(outside: Outside, mode: str) -> None:
    outside.mode(mode)
    async with outside.runtime() as runtime:
        await runtime.servers.discover()
        (listed,) = [
            e for e in events(runtime, "mcp.tool-listed") if e.seq > events(runtime, "mcp.tool-accepted")[-1].seq
        ]
        assert listed.body["tool"] == "note"
        assert (await outside.run(runtime, "work")).status == "parked"
        (question,) = projections.escalations(runtime.ledger.reader)
        assert "has changed this tool" in str(runtime.ledger.reader.payload(question.seq))
        assert outside.effects == 0
        spec = runtime.tools["odd__note"].spec
        assert "IGNORE" not in spec.description  # the planner still sees the accepted words
        assert list(spec.args_schema["properties"]) == ["line"]


async def test_a_change_between_decision_and_call_stops_the_call(outside: Outside) -> None:
    outside.mode("changes-after-first-list")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["status"] == "failed"
        assert "changed its definition since this was decided" in str(end["error"])
        assert outside.effects == 0
        assert (await outside.run(runtime, "work")).status == "parked"  # and now a person is asked
        assert outside.effects == 0


async def test_a_server_that_changes_all_the_time_never_runs_and_does_not_fill_the_ledger(outside: Outside) -> None:
    outside.mode("changes-every-time")
    async with outside.runtime() as runtime:
        for _ in range(30):
            await runtime.servers.discover()
        assert len(events(runtime, "mcp.tool-listed")) < 4 + 25
        await outside.run(runtime, "work")
    assert outside.effects == 0


async def test_a_tool_that_comes_and_goes_comes_back_once_it_has_stood_for_a_while(outside: Outside) -> None:
    outside.note()
    async with outside.runtime() as runtime:
        for _ in range(25):
            for mode in ("without-note", "normal"):
                outside.mode(mode)
                await runtime.servers.discover()
        assert len(events(runtime, "mcp.tool-gone")) == 21
        assert not [
            row
            for row in projections.outside_tools(runtime.ledger.reader)
            if row.name == "odd__note" and row.listed_hash
        ]
        await outside.run(runtime, "work")
        assert outside.effects == 0
        outside.clock.forward(3_601)
        await runtime.servers.discover()
        await outside.run(runtime, "work")
        assert outside.effects == 1


async def test_a_server_with_ever_new_tools_does_not_fill_the_ledger(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STRANGERS_MAX", 500)
    monkeypatch.setattr(server, "REFUSED_MAX", 60)
    outside.mode("new-names")
    async with outside.runtime() as runtime:
        for _ in range(4):
            await runtime.servers.discover()
        assert len(events(runtime, "mcp.tool-listed")) == 4 + 500
        assert len(events(runtime, "mcp.tool-gone")) == 500  # each once
        assert len(events(runtime, "mcp.refused")) == 60
        note = projections.outside_tool(runtime.ledger.reader, "odd", "note")
        assert note is not None
        assert note.listed_hash == note.accepted_hash


async def test_an_unaccepted_tool_asks_and_shows_none_of_its_words(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "w")
    outside.mode("bad-tools")
    outside.note()
    with pytest.raises(Problems) as problems:  # nobody has ever asked the server: the task names an unknown tool
        load_workspace(outside.directory)
    assert "perdure tools accept odd" in str(problems.value.problems)
    outside.write(
        "tasks/work.md",
        "---\nname: work\nplanner: playbook\ntools: [write_file]\n---\nsteps:\n  - {do: write_file, args: {path: a, text: a}}\n",
    )
    async with outside.runtime() as runtime:
        (told,) = await runtime.servers.discover()
        assert set(told.refused) >= {"no name\n", "elsewhere", "bomb", "large"} - {"elsewhere", "bomb"}
    outside.note()
    async with outside.runtime() as runtime:
        spec = runtime.tools["odd__shadow"].spec
        assert "IGNORE" not in json.dumps([spec.description, dict(spec.args_schema)])
        assert not {"odd__elsewhere", "odd__bomb"} & set(runtime.tools)
        assert runtime.tools["odd__slow"].spec.args_schema["properties"]["a"] == {"type": "string"}
        assert (await outside.run(runtime, "work")).status == "parked"
        (question,) = projections.escalations(runtime.ledger.reader)
        assert "no person has accepted" in str(runtime.ledger.reader.payload(question.seq))
    assert outside.effects == 0


async def test_names_never_shadow_ours(outside: Outside) -> None:
    async with outside.runtime() as runtime:
        assert runtime.tools["read_file"].spec.source == "built-in"
        assert runtime.tools["odd__read_file"].spec.source == "mcp:odd"
    outside.write("perdure.toml", (outside.directory / "perdure.toml").read_text().replace("mcp.odd", "mcp.odd__x"))
    with pytest.raises(Problems):
        load_workspace(outside.directory)


async def test_a_name_listed_twice_is_nobody(outside: Outside) -> None:
    outside.mode("twice")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        assert outside.effects == 0


async def test_a_tool_that_is_gone_is_refused(outside: Outside) -> None:
    outside.mode("without-note")
    async with outside.runtime() as runtime:
        await runtime.servers.discover()
        await outside.run(runtime, "work")
        assert [event.body["reason"] for event in events(runtime, "step.rejected")] == ["bad-arguments"]
        assert outside.effects == 0


# -- results -------------------------------------------------------------------------------------------------------------


async def test_a_large_result_is_a_summary_for_the_planner_and_whole_in_the_ledger(outside: Outside) -> None:
    outside.mode("big")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert len(json.dumps(end["result"])) < 17_000
        assert "shortened by Perdure" in str(end["result"])
        assert str(end["result"]["text"]).startswith("begin ")
        assert str(end["result"]["text"]).endswith(" end")
        assert len(end["whole"]["text"]) > 300_000


async def test_a_result_is_not_checked_against_patterns_that_take_for_ever(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "w")
    outside.mode("slow-output")
    await outside.accept()
    outside.note()
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["status"] == "succeeded"  # the server has answered, though not as it promised
        assert end["result"]["structured"]["a"].endswith("!")


async def test_very_many_values_are_text(outside: Outside) -> None:
    outside.setting('message_bytes_max = "1MB"', 'message_bytes_max = "4MB"')
    outside.mode("many-values")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["status"] == "succeeded"
        assert "shortened by Perdure" in str(end["result"])
        assert len(json.dumps(end["result"])) < 17_000


async def test_other_content_is_described_and_kept(outside: Outside) -> None:
    outside.mode("image")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        image, audio, resource, link = end["result"]["content"]
        assert (image["bytes"], image["mime"]) == (5, "image/png")
        assert "damaged" in audio
        assert resource["text"] == "inside"
        assert link["uri"] == "file:///b"
        assert "aGVsbG8=" not in json.dumps(end["result"])
        assert "aGVsbG8=" in json.dumps(end["whole"])


@pytest.mark.parametrize(
    ("mode", "status"), [("says-failed", "failed"), ("error", "failed"), ("some-nonsense", "succeeded")]
)
async def test_what_the_server_says_plainly_is_the_outcome(outside: Outside, mode: str, status: str) -> None:
    outside.mode(mode)
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        assert [end["status"] for end in ended(runtime)] == [status]


async def test_numbers_that_json_has_not_do_not_reach_the_ledger(outside: Outside) -> None:
    outside.mode("not-numbers")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["status"] in ("succeeded", "unknown")


async def test_what_a_server_asks_for_is_refused_and_recorded(outside: Outside) -> None:
    outside.mode("asks")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["result"] == {"text": "[true, true, true]"}
        refused = {event.body["what"] for event in events(runtime, "mcp.refused")}
        assert refused == {"sampling/createMessage", "elicitation/create", "roots/list"}


async def test_a_secret_is_given_by_reference_and_never_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_SECRET", "hunter2-hunter2")
    outside = Outside(tmp_path / "w", more='credentials = {ODD_SECRET = "TOKEN"}')
    await outside.accept()
    outside.note()
    outside.mode("secret")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert end["result"] == {"text": "{secret: ODD_SECRET}"}
        stderr = outside.directory / "state/mcp/odd.stderr"
        await until(lambda: stderr.exists() and stderr.read_text().count("{secret: ODD_SECRET}") == 2)
        assert "hunter2" not in stderr.read_text()
    for path in (outside.directory / "state").rglob("*"):
        if path.is_file():
            assert b"hunter2-hunter2" not in path.read_bytes(), path


async def test_a_server_gets_the_environment_it_is_given_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_DAEMON", "1")
    outside = Outside(tmp_path / "w", more='env = {GIVEN = "yes"}')
    await outside.accept()
    outside.note()
    outside.mode("environment")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        seen = set(json.loads(ended(runtime)[0]["result"]["text"]))
    extra = {"LC_CTYPE"}  # Python itself sets it
    assert seen - extra == {"PATH", "LANG", "HOME", "TMPDIR", "GIVEN", "PERDURE_ACTION", "PERDURE_WORKSPACE"}


async def test_standard_error_is_kept_and_bounded(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "w", more='stderr_bytes_max = "10KB"')
    await outside.accept()
    outside.note()
    outside.mode("complains")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
    assert 0 < (outside.directory / "state/mcp/odd.stderr").stat().st_size <= 20_000


def test_standard_error_is_bounded_however_many_write_it(tmp_path: Path) -> None:
    path = tmp_path / "mcp" / "odd.stderr"
    writers = [KeptStderr(path, 1_000, {}), KeptStderr(path, 1_000, {})]
    for _ in range(10):
        for writer in writers:
            writer.add("x" * 700)
            assert path.stat().st_size <= 2_000


# -- keys, probes, cancellation ------------------------------------------------------------------------------------------


async def test_the_action_is_the_idempotency_key(tmp_path: Path) -> None:
    outside = Outside(
        tmp_path / "w", tools='[mcp.odd.tools.keyed]\neffect = "idempotent"\nidempotency_key = "request_id"\n'
    )
    await outside.accept()
    outside.playbook("work", "\n  - {do: odd__keyed, args: {line: a}}\n", tools="odd__keyed")
    async with outside.runtime() as runtime:
        assert "request_id" not in runtime.tools["odd__keyed"].spec.args_schema["properties"]
        await outside.run(runtime, "work")
        (end,) = ended(runtime)
        assert (outside.directory / "odd/effects.log").read_text().strip() == end["action"]
        assert json.loads(end["result"]["text"])["io.perdure/idempotency-key"] == end["action"]


PROBED = """
[mcp.odd.tools.count]
effect = "read"
[mcp.odd.tools.note]
effect = "probeable"
probe = {tool = "count", expect = "ok && text.contains(args.line)"}
"""


@pytest.mark.parametrize(("mode", "status"), [("crash-before", "failed"), ("crash-after", "succeeded")])
async def test_a_probeable_tool_is_asked_about_by_another_of_the_same_server(
    tmp_path: Path, mode: str, status: str
) -> None:
    outside = Outside(tmp_path / "w", tools=PROBED)
    await outside.accept()
    outside.note()
    outside.mode(mode)
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        (row,) = projections.actions(runtime.ledger.reader)
        if row.status == "unknown":
            outside.mode("normal")
    async with outside.runtime() as runtime:
        (row,) = projections.actions(runtime.ledger.reader)
        assert row.status == status
    assert outside.effects == (1 if mode == "crash-after" else 0)


async def test_success_is_verified_by_the_probe(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "w", tools=PROBED)
    await outside.accept()
    outside.note()
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        assert [event.body["passed"] for event in events(runtime, "action.verified")] == [True]


PROBED_BY_PATH = """
[mcp.odd.tools.read_file]
effect = "read"
paths = {path = "read"}
[mcp.odd.tools.note]
effect = "probeable"
probe = {tool = "read_file", args = {path = "${args.line}"}, expect = "ok"}
"""


@pytest.mark.parametrize(
    ("line", "verified"), [("inbox/one.log", [True]), ("/etc/shadow", []), ("state/ledger.db", [])]
)
async def test_no_probe_looks_where_its_own_tool_may_not(tmp_path: Path, line: str, verified: list[bool]) -> None:
    outside = Outside(tmp_path / "w", tools=PROBED_BY_PATH)
    await outside.accept()
    outside.playbook("work", f"\n  - {{do: odd__note, args: {{line: {line}}}}}\n", tools="odd__note")
    async with outside.runtime() as runtime:
        await outside.run(runtime, "work")
        assert [event.body["passed"] for event in events(runtime, "action.verified")] == verified
    assert outside.effects == 1


async def test_closing_in_the_middle_of_a_call_leaves_nothing_behind(outside: Outside) -> None:
    outside.mode("hang-after")
    async with outside.runtime() as runtime:
        running = asyncio.create_task(outside.run(runtime, "work"))
        await until((outside.directory / "odd/ready").exists)
        assert find_strays(outside.directory / "state")
        await runtime.servers.close()
        await running
        assert [end["status"] for end in ended(runtime)] == ["unknown"]
    assert find_strays(outside.directory / "state") == []
    assert outside.effects == 1
