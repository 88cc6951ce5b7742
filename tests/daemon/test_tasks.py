"""Task files: the design's examples load, and every mistake is named with its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.daemon.config import BUILT_IN_TOOLS
from perdure.daemon.proofs import CommandSucceeds, FileContains, FileExists, HttpAnswers, JsonSchema, Unchanged
from perdure.daemon.schedule import Cron, Every, Watch
from perdure.daemon.tasks import Task, load_tasks, read_task
from perdure.errors import Problem, Problems

TOOLS = (*BUILT_IN_TOOLS, "offenders", "block_ip")
MODEL = """---
name: log-triage
schedule: {cron: "*/15 * * * *", timezone: Europe/Berlin, if_missed: run-once}   # or every: 15m, or watch: "inbox/*.log"
only_if: {files_changed: "inbox/*.log"}                  # the gate: costs no tokens
planner: model
tools: [list_files, read_file, write_file, notify]
bounds: {steps: 10, context: 8000, tokens: 120000, minutes: 10, cost_usd: 0.50}
memory: task                                             # or workspace, to share
retries: 2
postconditions:
  - file_exists: "reports/${slot.date}.md"
---
Read each new log in inbox/ and write one report a day ...
"""
PLAYBOOK = """---
name: blocks
planner: playbook
---
steps:
  - {do: offenders, args: {since: "${last.offset}"}, save: found}
  - {do: block_ip, for_each: "${found.ips}", args: {ip: "${item}"}, on_escalate: continue}
  - {do: write_file, args: {path: "reports/${slot.date}.md", text: "${found.report}"}, on_error: stop}
"""


def read(text: str) -> tuple[Task | None, list[Problem]]:
    return read_task("tasks/x.md", text.encode(), known_tools=TOOLS, timezone="UTC", workspace=Path("/srv/ws"))


def task(text: str) -> Task:
    found, problems = read(text)
    assert not problems
    assert found is not None
    return found


def playbook(head: str = "", steps: str = "  - do: notify\n    args: {text: x}\n") -> str:
    return f"---\nname: x\nplanner: playbook\n{head}---\nsteps:\n{steps}"


def test_design_s_task_for_a_model() -> None:
    found = task(MODEL)
    assert found.schedule == Cron("*/15 * * * *", "Europe/Berlin")
    assert found.timezone == "Europe/Berlin"
    assert found.tools == ("list_files", "read_file", "write_file", "notify")
    assert (found.bounds.steps, found.bounds.cost_usd, found.retries, found.memory) == (10, 0.5, 2, "task")
    assert found.postconditions == (FileExists(path="reports/${slot.date}.md"),)
    assert found.only_if is not None
    assert found.only_if.files_changed == "inbox/*.log"
    assert found.instruction == "Read each new log in inbox/ and write one report a day ..."
    assert found.steps == ()
    assert found.text == MODEL
    assert found.path == Path("tasks/x.md")


def test_design_s_playbook() -> None:
    found = task(PLAYBOOK)
    assert [(step.do, step.line, step.on_escalate, step.on_error) for step in found.steps] == [
        ("offenders", 6, "park", "stop"),
        ("block_ip", 7, "continue", "stop"),
        ("write_file", 8, "park", "stop"),
    ]
    assert found.steps[1].for_each == "${found.ips}"
    assert found.tools == ("offenders", "block_ip", "write_file")
    assert (found.while_parked, found.if_missed.mode, found.schedule) == ("hold", "run-once", None)


@pytest.mark.parametrize("fence", ["```yaml", "```", "~~~ yml"])
def test_steps_may_be_fenced_and_the_rest_is_the_instruction(fence: str) -> None:
    head, steps = PLAYBOOK.split("steps:\n")
    mark = fence[:3]
    fenced = task(f"{head}\n{fence}\nsteps:\n{steps}{mark}\n\n# Why\n\nBecause.\n")
    assert fenced.instruction == "# Why\n\nBecause."
    assert [step.line for step in fenced.steps] == [8, 9, 10]
    plain = task(f"{PLAYBOOK}\n# Why\n\nBecause.\n")
    assert plain.instruction == fenced.instruction
    assert [step.do for step in plain.steps] == [step.do for step in fenced.steps]


def test_comments_and_gaps_between_steps_are_no_end() -> None:
    steps = ["# first", "  - {do: recall}", "", "  # second", "  - {do: notify, args: {text: x}}", "", "The end.", ""]
    found = task(playbook(steps="\n".join(steps)))
    assert [step.do for step in found.steps] == ["recall", "notify"]
    assert found.instruction == "The end."


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("{every: 15m}", Every(900_000_000)),
        ("{every: 90}", Every(90_000_000)),
        ('{watch: "inbox/*.log"}', Watch("inbox/*.log", Path("/srv/ws"))),
        ('{cron: "@daily"}', Cron("@daily", "UTC")),
    ],
)
def test_schedules(schedule: str, expected: object) -> None:
    assert task(playbook(f"schedule: {schedule}\n")).schedule == expected


@pytest.mark.parametrize(
    ("if_missed", "text"),
    [
        ("run-once", "run-once"),
        ("skip", "skip"),
        ("run-all", "run-all"),
        ("{run-all: {max: 3}}", "run-all (at most 3)"),
        ("{run-if-within: 2h}", "run-if-within 2h"),
    ],
)
def test_if_missed_beside_the_schedule_or_in_it(if_missed: str, text: str) -> None:
    assert task(playbook(f"schedule: {{every: 1h}}\nif_missed: {if_missed}\n")).if_missed.text == text
    assert task(playbook(f"schedule: {{every: 1h, if_missed: {if_missed}}}\n")).if_missed.text == text


def test_postconditions_of_every_kind() -> None:
    found = task(
        playbook("""postconditions:
  - file_exists: "reports/${slot.date}.md"
  - file_contains: {path: a, text: "on ${slot.date}"}
  - json_schema: {path: a.json, schema: {type: object, properties: {"${x": {}}}}
  - command_succeeds: [systemctl, is-active, nginx]
  - http: {url: "https://status.example.org/", status: 204, contains: ok}
  - unchanged: /etc/passwd
""")
    )
    assert found.postconditions == (
        FileExists(path="reports/${slot.date}.md"),
        FileContains(path="a", text="on ${slot.date}"),
        JsonSchema.model_validate({"path": "a.json", "schema": {"type": "object", "properties": {"${x": {}}}}),
        CommandSucceeds(command=("systemctl", "is-active", "nginx")),
        HttpAnswers(url="https://status.example.org/", status=204, contains="ok"),
        Unchanged(path="/etc/passwd"),
    )


@pytest.mark.parametrize(
    ("text", "place", "found", "expected"),
    [
        ("", (1, 1), "an empty line", "`---`"),
        ("# A task\n", (1, 1), "no head", "`---`"),
        ("---\nname: x\n", (3, 1), "the end of the file", "`---`"),
        ("---\n\n---\n", (1, 1), "nothing", "settings"),
        ("---\n- name\n---\n", (2, 1), "no mapping", "settings"),
        (playbook("planer: x\n"), (4, 1), "`planer`", "`planner`"),
        (playbook("name: y\n"), (4, 1), "second time", "once"),
        (playbook("retries: many\n"), (4, 10), '"many"', "whole number"),
        (playbook("retries: yes\n"), (4, 10), '"yes"', "whole number"),
        (playbook("bounds: {steps: 0}\n"), (4, 17), "0", "at least 1"),
        (playbook("bounds: {tokens: 300}\n"), (4, 9), "300", "`context` (8000)"),
        (playbook("schedule: {cron: '61 * * * *'}\n"), (4, 18), "61", "minute"),
        (playbook("schedule: {every: 1h, watch: a}\n"), (4, 11), "1h", "exactly one"),
        (playbook("schedule: {every: 10ms}\n"), (4, 19), "10ms", "one second"),
        (playbook("schedule: {every: 1h, timezone: UTC}\n"), (4, 11), "UTC", "with `cron`"),
        (playbook("schedule: {watch: /var/log/x}\n"), (4, 19), "/var/log/x", "inside the workspace"),
        (playbook("if_missed: skip\n"), (2, 1), "", "`schedule`"),
        (playbook("schedule: {every: 1h}\nif_missed: {run-all: {max: 0}}\n"), (5, 12), '{"run-all"', "run-once, skip"),
        (playbook("tools: [write_fil]\n", "  - {do: recall}\n").replace("- {do: recall}", "- {do: write_fil}"), (4, 9), "`write_fil`", "`write_file`"),
        (playbook("tools: [recall]\n"), (7, 9), "`notify`", "lists under `tools`"),
        (playbook(steps="  - {do: notfy}\n"), (5, 0), "`notfy`", "`notify`"),
        (playbook(steps="  - {do: recall, on_escalate: never}\n"), (6, 31), "", "'park'"),
        (playbook(steps="  - {do: recall, when: true}\n"), (6, 24), "true", "a text"),
        (playbook(steps="  - {args: {}}\n"), (6, 5), "no `do` here", "key `do`"),
        (playbook(steps="  - {do: recall}\n\nWords.\n\n  - {do: notify}\n"), (10, 1), "outside", "first block"),
        ("---\nname: x\nplanner: playbook\n---\nJust words.\n", (5, 1), "no mapping", "steps"),
        ("---\nname: x\nplanner: playbook\n---\n", (5, 1), "the end of the file", "steps"),
        ("---\nname: x\nplanner: playbook\n---\n```\nsteps: []\n", (5, 1), "fence without end", "```"),
        ("---\nname: x\nplanner: model\ntools: [recall]\n---\n\n", (6, 1), "no instruction", "in words"),
        ("---\nname: x\nplanner: model\n---\nDo it.\n", (2, 1), "", "`tools`"),
        ("---\nname: Log Triage\nplanner: model\ntools: [recall]\n---\nDo it.\n", (2, 7), '"Log Triage"', "small letters"),
        (playbook("postconditions:\n  - file_exist: a\n"), (5, 5), "`file_exist`", "`file_exists`"),
        (playbook("postconditions:\n  - {file_exists: a, unchanged: b}\n"), (5, 5), "", "exactly one"),
        (playbook('postconditions:\n  - file_exists: "${slot.dat}"\n'), (5, 5), "`slot.dat`", "`slot.date`"),
        (playbook('postconditions:\n  - file_exists: "${1 +"\n'), (5, 5), "", "${expression}"),
        (playbook("postconditions:\n  - json_schema: {path: a, schema: {type: 5}}\n"), (5, 36), "5", "JSON Schema"),
        (playbook("memory: !!str task\n"), (4, 9), "tag", "tag"),
        (playbook("memory: *task\n"), (4, 9), "alias", "alias"),
    ],
)  # fmt: skip
def test_mistake_and_its_place(text: str, place: tuple[int, int], found: str, expected: str) -> None:
    parsed, problems = read(text)
    assert parsed is None
    near = [each for each in problems if (each.line, each.column) == place or place[1] == 0]
    assert near, problems
    assert found in near[0].found
    assert expected in near[0].expected
    assert near[0].file == "tasks/x.md"


def test_mistake_inside_a_list_is_one_problem() -> None:
    _, problems = read(playbook(steps="  - {do: recall, when: true}\n"))
    assert [(each.line, each.column, each.expected) for each in problems] == [(6, 24, "a text")]


def test_mistakes_of_all_files_come_together(tmp_path: Path) -> None:
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "a.md").write_text(playbook("planer: x\nretries: 99\n", "  - {do: nothing}\n"))
    (directory / "b.md").write_bytes(b"---\nname: \xff\n---\n")
    (directory / "c.md").write_text("words")
    (directory / "ignored.txt").write_text("words")
    with pytest.raises(Problems) as raised:
        load_tasks(directory, known_tools=TOOLS, timezone="UTC")
    assert [(each.file, each.line) for each in raised.value.problems] == [
        ("tasks/a.md", 4), ("tasks/a.md", 5), ("tasks/a.md", 8), ("tasks/b.md", 2), ("tasks/c.md", 1),
    ]  # fmt: skip


def test_two_files_cannot_have_one_name(tmp_path: Path) -> None:
    directory = tmp_path / "tasks"
    directory.mkdir()
    for name in ("a.md", "b.md"):
        (directory / name).write_text(playbook())
    with pytest.raises(Problems, match=r"tasks/b\.md: found the name x; expected a name of its own"):
        load_tasks(directory, known_tools=TOOLS, timezone="UTC")
    assert load_tasks(tmp_path / "none", known_tools=TOOLS, timezone="UTC") == {}


@dataclass
class _Slot:
    slot: str
    kind: str
    due: int


def test_slot_facts_are_in_the_task_s_zone() -> None:
    found = task(playbook('schedule: {cron: "0 0 * * *", timezone: Asia/Kathmandu}\n'))
    facts = found.slot_facts(_Slot("x/scheduled/2026-11-21T18:15:00Z", "scheduled", 1_795_284_900_000_000))
    assert facts == {
        "date": "2026-11-22",
        "time": "00:00",
        "due": "2026-11-22T00:00:00+05:45",
        "kind": "scheduled",
        "id": "x/scheduled/2026-11-21T18:15:00Z",
    }


def test_anchored_counts_from_the_first_load() -> None:
    found = task(playbook("schedule: {every: 1h}\n")).anchored(7_000_000)
    assert found.schedule == Every(3_600_000_000, 7_000_000)
    assert task(PLAYBOOK).anchored(7).schedule is None


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: f"---\n{text}\n---\n{text}".encode()))
def test_whatever_the_file_holds_there_are_problems_and_no_crash(content: bytes) -> None:
    found, problems = read_task("tasks/x.md", content, known_tools=TOOLS, timezone="UTC", workspace=Path("/srv/ws"))
    assert (found is None) == bool(problems)
    assert all(each.line >= 0 and str(each) for each in problems)
