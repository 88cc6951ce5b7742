"""A playbook's mistakes are found before it runs, each with its place."""

from __future__ import annotations

import pytest

from perdure.daemon.planners import check_planner
from perdure.daemon.planners.playbook_check import check_playbook
from perdure.daemon.tools.model import ToolSpec
from perdure.daemon.tools.notify import NOTIFY
from perdure.daemon.tools.writing import WRITE_FILE

HEAD = "---\nname: t\nplanner: playbook\n---\n"


def _problems(task_from, steps):
    return [(one.line, one.column, one.found, one.expected) for one in check_playbook(task_from(HEAD + steps))]


def marked(steps):
    """A task with these steps without their §, and the line and column where it stood."""
    text = f"{HEAD}steps:\n{steps}\n"
    before = text[: text.index("§")]
    return text.replace("§", ""), (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def test_designs_own_example_has_no_problem(task_from):
    assert not _problems(
        task_from,
        """steps:
  - {do: offenders, args: {since: "${last.offset}"}, save: found}
  - {do: block_ip, for_each: "${found.ips}", args: {ip: "${item}"}, on_escalate: continue}
  - {do: write_file, args: {path: "reports/${slot.date}.md", text: "${found.report}"}, on_error: stop}
""",
    )


@pytest.mark.parametrize(
    ("steps", "found", "expected"),
    [  # § marks the place
        (
            '  - {do: count, save: found}\n  - {do: notify, args: {text: "${§fuond.x}"}}',
            "the unknown name `fuond.x`",
            "`found`, or another",
        ),
        ('  - {do: notify, args: {text: "a ${last.x + §slot.dat}"}}', "the unknown name `slot.dat`", "`slot.date`"),
        ('  - {do: notify, args: {text: "${§slot}"}}', "the unknown name `slot`", "slot.date"),
        (
            '  - {do: notify, args: {text: "${§item.x}"}}',
            "the unknown name `item.x`",
            "only inside a step with for_each",
        ),
        (
            '  - {do: notify, args: {text: "${§later}"}}\n  - {do: count, save: later}',
            "the unknown name `later`",
            "step 2 saves it",
        ),
        ('  - {do: notify, args: {text: "${1 +§}"}}', "Syntax error", "a CEL expression"),
        ("  - {do: notify, args: {text: \"${'a' §+ 1}\"}}", "no matching overload", "a CEL expression"),
        ('  - {do: notify, when: "last.n >§", args: {}}', "Syntax error", "a CEL expression"),
        ('  - {do: notify, when: "§1 + 1", args: {}}', "`when` of type INT", "true or false"),
        ('  - {do: notify, for_each: "${§1 + 1}", args: {}}', "for_each of type INT", "gives a list"),
        ('  - {do: notify, for_each: "${§index}", args: {}}', "the unknown name `index`", "only inside"),
        ("  - {do: notify, save: §last}", "save: last", "a name that expressions do not use"),
        (
            "  - do: notify\n    args:\n      text: |\n        first\n        then ${§nope}\n",
            "the unknown name `nope`",
            "one of last",
        ),
        (
            "  - do: notify\n    args:\n      text: |\n        ${last.a +\n          §nope}\n",
            "the unknown name `nope`",
            "one of last",
        ),
    ],
)
def test_each_mistake_has_its_place(task_from, steps, found, expected):
    text, place = marked(steps)
    [problem] = check_planner(task_from(text), None)
    assert (problem.line, problem.column) == place
    assert found in problem.found
    assert expected in problem.expected
    assert problem.source_line in text.split("\n")


def test_all_mistakes_are_listed_at_once(task_from):
    found = _problems(
        task_from,
        """steps:
  - {do: notify, args: {a: "${one}", b: ["${two}", {c: "${three + four}"}]}, when: "five"}
""",
    )
    assert [one[2].split("`")[1] for one in found] == ["five", "one", "two", "three", "four"]


def test_names_inside_macros_are_not_free(task_from):
    steps = """steps:
  - {do: count, save: c}
  - {do: notify, args: {a: "${c.list.map(x, x.y).filter(item, item != '')}", b: "${cel.bind(z, c.n, z + 1)}"}}
"""
    assert not _problems(task_from, steps)


@pytest.mark.parametrize(
    ("steps", "found", "expected"),
    [  # § marks the place
        (
            "  - {do: write_file, args: {path: a, §txt: b, text: c}}",
            "the unknown argument `txt` of write_file",
            "`text`, or another one of path, text",
        ),
        ('  - {do: §write_file, args: {path: "${last.p}"}}', "write_file without `text`", "needs: path, text"),
        ("  - {do: write_file, args: {path: a, §text: 7}}", "text must be string, not 7", "that write_file takes"),
        ("  - do: notify\n    args:\n      text: hello\n      §titel: b\n", "`titel` of notify", "`title`"),
        ("  - {do: §write_file}", "write_file without `path`, `text`", "needs: path, text"),
    ],
)
def test_arguments_that_the_tool_would_refuse_are_found_before_it_runs(task_from, steps, found, expected):
    text, place = marked(steps)
    [problem] = check_planner(task_from(text), None, {"write_file": WRITE_FILE, "notify": NOTIFY})
    assert found in problem.found
    assert expected in problem.expected
    assert (problem.line, problem.column) == place


def test_an_argument_that_only_the_run_shows_is_left_to_the_run(task_from):
    steps = 'steps:\n  - {do: write_file, args: {path: "${last.path}", text: "$${x} is ${last.n}"}}\n'
    assert not check_playbook(task_from(HEAD + steps), {"write_file": WRITE_FILE})


def test_what_a_server_says_of_its_tools_keeps_no_daemon_from_starting(task_from):
    theirs = ToolSpec(name="count", description="", args_schema={"type": "object", "properties": {}, "required": ["n"]},
                      effect="once", source="mcp:theirs")  # fmt: skip
    assert not check_playbook(task_from(f"{HEAD}steps:\n  - {{do: count, args: {{m: 1}}}}\n"), {"count": theirs})
