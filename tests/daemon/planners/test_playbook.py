"""The playbook planner does what the steps say, says where each argument came from, and goes on where it was."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.daemon.planners.moves import Finish, Malformed, Proposal
from perdure.daemon.planners.playbook import PlaybookPlanner
from perdure.daemon.planners.saved import SAVED_BYTES_MAX, bounded_saved

DESIGN = """steps:
  - {do: offenders, args: {since: "${last.offset}"}, save: found}
  - {do: block_ip, for_each: "${found.ips}", args: {ip: "${item}"}, on_escalate: continue}
  - {do: write_file, args: {path: "reports/${slot.date}.md", text: "${found.report}"}, on_error: stop}
"""
FOUND = {"ips": ["203.0.113.9", "198.51.100.4"], "report": "# Report", "offset": 4711}


def test_designs_own_example_runs_to_its_end(task_from, play):
    task = task_from(DESIGN)
    asked = {"offenders": FOUND, "block_ip": lambda _: ("escalate", None, None), "write_file": {"bytes": 8}}
    proposals, end = play(task, asked)
    assert [(one.key, one.tool, dict(one.args)) for one in proposals] == [
        ("1", "offenders", {}),
        ("2[0]", "block_ip", {"ip": "203.0.113.9"}),
        ("2[1]", "block_ip", {"ip": "198.51.100.4"}),
        ("3", "write_file", {"path": "reports/2026-11-22.md", "text": "# Report"}),
    ]
    assert isinstance(end, Finish)
    assert end.saved == {"found": FOUND}
    assert "2 waiting for a person" in end.says
    later, _ = play(task, asked, last=end.saved)
    assert later[0].args == {"since": 4711}


def test_provenance_names_every_source(task_from, play):
    task = task_from("""steps:
  - {do: offenders, args: {since: 5, how: "literal"}, save: found}
  - {do: recall, args: {query: "seen ${found.ips[0]} on ${slot.date}"}, save: memory}
  - {do: block_ip, for_each: "${found.ips}", args: {ip: "${item}", n: "${index}"}}
  - {do: notify, args: {title: "${has(last.q) ? last.q : 'none'}", text: "${memory.text}", both: ["a", "${found.report} ${slot.time}"], sum: "${1 + 1}"}}
""")
    proposals, _ = play(task, {"offenders": FOUND, "recall": {"text": "m"}, "block_ip": {}, "notify": {}})
    found = [{name: tuple(sources) for name, sources in one.provenance.items()} for one in proposals]
    assert found[0] == {"since": ("instruction",), "how": ("instruction",)}
    assert found[1] == {"query": ("instruction", "config", "tool:offenders")}
    assert found[2] == {"ip": ("tool:offenders",), "n": ("tool:offenders",)}
    assert found[-1] == {
        "title": ("memory", "tool:offenders"),
        "text": ("memory", "unknown"),  # RECALL returns no such thing
        "both": ("instruction", "config", "tool:offenders"),
        "sum": ("instruction",),
    }


def test_a_name_saved_twice_has_the_source_of_the_value_that_it_holds(task_from, play):
    task = task_from("""steps:
  - {do: read_file, args: {path: a}, save: found}
  - {do: notify, args: {title: "${found.text}"}}
  - {do: count, save: found}
  - {do: notify, args: {title: "${found.n}"}}
""")
    proposals, _ = play(task, {"read_file": {"text": "x"}, "count": {"n": 3}, "notify": {}})
    assert [one.provenance["title"] for one in proposals if one.tool == "notify"] == [
        ("tool:read_file",),
        ("tool:count",),
    ]


def test_what_the_last_session_saved_comes_from_the_tool_that_returned_it(task_from, play):
    task = task_from("""steps:
  - {do: notify, args: {title: "${last.found.text}", text: "${last.c.n}", both: "${last.text}"}}
  - {do: read_file, args: {path: a}, save: found}
  - {do: count, save: c}
""")
    last = {"found": {"text": "x"}, "c": {"n": 3}}
    proposals, _ = play(task, {"read_file": {"text": "x"}, "count": {"n": 3}, "notify": {}}, last=last)
    assert proposals[0].provenance == {
        "title": ("memory", "tool:read_file"),
        "text": ("memory", "tool:count"),
        "both": ("memory", "tool:count", "tool:read_file"),  # which object the field is of is not looked up
    }


def test_whole_expression_keeps_its_type_and_embedded_ones_interpolate(task_from, play):
    task = task_from("""steps:
  - {do: count, save: c}
  - do: notify
    args:
      number: "${c.n}"
      list: "${c.list}"
      flag: "${c.n > 2}"
      text: "n=${c.n} f=${c.f} l=${c.list} b=${true} literal $${x}"
      nested: {deep: ["${c.list[1]}", "x${slot.time}"]}
""")
    proposals, _ = play(task, {"count": {"n": 3, "f": 1.5, "list": [1, "a"]}, "notify": {}})
    assert dict(proposals[1].args) == {
        "number": 3,
        "list": [1, "a"],
        "flag": True,
        "text": 'n=3 f=1.5 l=[1,"a"] b=true literal ${x}',
        "nested": {"deep": ["a", "x10:15"]},
    }


def test_when_passes_steps_over_and_their_names_are_null(task_from, play):
    task = task_from("""steps:
  - {do: count, save: c}
  - {do: read_file, args: {path: a}, when: "c.n > 5", save: body}
  - {do: notify, args: {text: "${body == null ? 'none' : body.text}"}, when: "${c.n == 3}"}
""")
    proposals, end = play(task, {"count": {"n": 3}, "notify": {}})
    assert [one.tool for one in proposals] == ["count", "notify"]
    assert proposals[1].args == {"text": "none"}
    assert end.says == "2 steps done, 1 passed over"


def test_for_each_saves_the_results_of_the_items_that_ran(task_from, play):
    task = task_from("""steps:
  - {do: count, save: c}
  - {do: read_file, for_each: "${c.paths}", when: "item != 'skip'", args: {path: "${item}"}, save: bodies, on_error: continue}
  - {do: notify, args: {text: "${bodies.map(b, b.text)}"}}
""")

    def read(proposal):
        path = proposal.args["path"]
        return ("auto", "failed", None) if path == "bad" else ("auto", "succeeded", {"text": path})

    proposals, end = play(task, {"count": {"paths": ["a", "skip", "bad", "b"]}, "read_file": read, "notify": {}})
    assert [one.key for one in proposals] == ["1", "2[0]", "2[2]", "2[3]", "3"]
    assert proposals[-1].args == {"text": ["a", "b"]}
    assert end.saved["bodies"] == [{"text": "a"}, {"text": "b"}]
    assert end.says == "4 steps done, 1 passed over, 1 failed"


@pytest.mark.parametrize("items", [0, 1, 40])
def test_for_each_over_a_written_list_and_over_none(task_from, play, items):
    paths = [f"p{number}" for number in range(items)]
    task = task_from(f"steps:\n  - {{do: read_file, for_each: {paths}, args: {{path: '${{item}}'}}, save: all}}\n")
    proposals, end = play(task, {"read_file": lambda p: ("auto", "succeeded", p.args["path"])})
    assert [one.args["path"] for one in proposals] == paths
    assert end.saved == {"all": paths}


@pytest.mark.parametrize(
    ("on_error", "on_escalate", "answer", "ends"),
    [
        ("stop", "park", ("auto", "failed", None), "failed: boom"),
        ("continue", "park", ("auto", "failed", None), None),
        ("stop", "continue", ("auto", "failed", None), "failed: boom"),
        ("stop", "park", ("auto", "unknown", None), "outcome unknown"),
        ("stop", "park", ("deny", None, None), "was refused"),
        ("continue", "park", ("deny", None, None), None),
        ("stop", "continue", ("deny", None, None), None),
        ("stop", "continue", ("escalate", None, None), None),
        ("stop", "park", ("escalate", None, None), "waits for a person"),
        ("continue", "park", ("escalate", None, None), "waits for a person"),
    ],
)
def test_what_ends_a_playbook_and_what_does_not(task_from, play, on_error, on_escalate, answer, ends):
    task = task_from(
        f"steps:\n  - {{do: block_ip, args: {{ip: x}}, on_error: {on_error}, on_escalate: {on_escalate}}}\n  - {{do: notify, args: {{text: done}}}}\n"
    )
    proposals, end = play(task, {"block_ip": lambda _: answer, "notify": {}})
    if ends is None:
        assert isinstance(end, Finish)
        assert len(proposals) == 2
    else:
        assert isinstance(end, Malformed)
        assert end.reason == "plan-error"
        assert ends in end.detail
        assert end.detail.startswith("tasks/t.md:6: ")


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("${c.nope}", 'tasks/t.md:7: `c.nope`: Key not found in map : "nope"'),
        ("${c.list[9]}", "Index error"),
        ("${c.n / 0}", "divide by zero"),
        ("${c.n + 1.5}", "No matching overload"),
        ("${last.gone + 1}", "has(last.NAME)"),
        ("x ${c.none} y", "null"),
        ("${b'abc'}", "JSON cannot hold"),
        ("${c.?n}", "orValue"),
        ("${c.big.map(x, x).size()}", "10,000 elements"),
        ("${unset.x}", "`unset` is null: the step that saves it gave no result"),
    ],
)
def test_expression_without_a_value_names_place_and_reason(task_from, play, expression, words):
    task = task_from(f"""steps:
  - {{do: count, save: c}}
  - {{do: notify, args: {{text: "{expression}"}}}}
  - {{do: count, when: "false", save: unset}}
""")
    _, end = play(task, {"count": {"n": 1, "list": [], "none": None, "big": list(range(12_000))}})
    assert isinstance(end, Malformed)
    assert end.reason == "plan-error"
    assert words in end.detail


def test_data_reaches_expressions_unchanged(task_from, play):
    hostile = "a\x00b ${evil} \u202e 😀 $${ }"
    task = task_from('steps:\n  - {do: count, save: c}\n  - {do: notify, args: {text: "${c.t}", n: "${c.t.size()}"}}\n')
    proposals, _ = play(task, {"count": {"t": hostile}, "notify": {}})
    assert proposals[1].args == {"text": hostile, "n": len(hostile)}


# -- going on ---------------------------------------------------------------------------------------------------------

PARKING = """steps:
  - {do: offenders, save: found}
  - {do: block_ip, for_each: "${found.ips}", args: {ip: "${item}"}, on_escalate: continue}
  - {do: http_request, args: {url: "${found.report}"}}
  - {do: notify, args: {text: "done ${size(found.ips)}"}}
"""


def _recorded(task, play, taken, stop_at="http_request"):
    asked = {
        "offenders": FOUND,
        "block_ip": lambda _: ("escalate", None, None),
        stop_at: lambda _: ("escalate", None, None),
    }
    proposals, _ = play(task, asked)
    results = {"offenders": ("auto", "succeeded", FOUND)}
    return {
        one.key: taken(
            one,
            results.get(one.tool, (None, None, None))[2],
            decision=results.get(one.tool, ("escalate",))[0],
            status=results.get(one.tool, (None, None))[1],
        )
        for one in proposals
    }


def test_resumed_session_repeats_nothing_and_proposes_the_parked_step_again(task_from, play, taken):
    task = task_from(PARKING)
    recorded = _recorded(task, play, taken)
    proposals, end = play(task, {"http_request": {}, "notify": {}}, recorded=recorded)
    assert [one.key for one in proposals] == ["3", "4"]
    assert proposals[0] == recorded["3"].proposal
    assert isinstance(end, Finish)
    assert end.saved == {"found": FOUND}


def test_resumed_session_goes_on_after_the_approved_step(task_from, play, taken):
    task = task_from(PARKING)
    recorded = _recorded(task, play, taken)
    recorded["3"] = taken(recorded["3"].proposal, {"status": 200})
    proposals, _ = play(task, {"notify": {}}, recorded=recorded, before=list(recorded.values()))
    assert [one.key for one in proposals] == ["4"]


def test_resumed_session_stops_where_a_person_said_no(task_from, play, taken):
    task = task_from(PARKING)
    recorded = _recorded(task, play, taken)
    recorded["3"] = taken(recorded["3"].proposal, status=None, decision="deny", reason="a person denied it: not today")
    proposals, end = play(task, {}, recorded=recorded)
    assert not proposals
    assert "a person denied it: not today" in end.detail


def test_playbook_edited_while_parked_is_noticed(task_from, play, taken):
    recorded = _recorded(task_from(PARKING), play, taken)
    edited = task_from("steps:\n  - {do: list_files, args: {path: a}}\n  - {do: notify, args: {text: x}}\n")
    _, end = play(edited, {}, recorded=recorded)
    assert "edited while its session waited" in end.detail


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(cut=st.integers(0, 6), ips=st.lists(st.sampled_from(["a", "b", "c"]), max_size=3))
def test_wherever_a_session_is_cut_the_next_does_exactly_the_rest(task_from, play, taken, cut, ips):
    task = task_from(PARKING)
    answers = {"offenders": {"ips": ips, "report": "r"}, "block_ip": {}, "http_request": {}, "notify": {}}
    whole, end = play(task, answers)
    recorded = {one.key: taken(one, answers[one.tool]) for one in whole[:cut]}
    rest, again = play(task, answers, recorded=recorded)
    assert [one.key for one in rest] == [one.key for one in whole[cut:]]
    assert [one.args for one in rest] == [one.args for one in whole[cut:]]
    assert again == end


def test_planner_keeps_no_state_between_moves(task_from, view_of):
    task = task_from(PARKING)
    one, other = PlaybookPlanner(task), PlaybookPlanner(task)
    first = asyncio.run(one.propose(view_of(), None, 1.0)).move
    assert asyncio.run(one.propose(view_of(rejected="no"), None, 1.0)).move == first
    assert asyncio.run(other.propose(view_of(), None, 1.0)).move == first
    assert isinstance(first, Proposal)
    assert one.request(view_of()) is None


# -- what is saved ------------------------------------------------------------------------------------------------------


def test_step_that_did_not_run_keeps_what_it_saved_before(task_from, play):
    task = task_from('steps:\n  - {do: count, save: c}\n  - {do: offenders, when: "c.n > 0", save: found}\n')
    _, end = play(task, {"count": {"n": 0}}, last={"found": {"offset": 9}, "gone": 1})
    assert end.saved == {"c": {"n": 0}, "found": {"offset": 9}}


def test_saved_values_are_bounded_and_small_ones_survive(task_from, play):
    task = task_from("steps:\n  - {do: offenders, save: found}\n")
    huge = {
        "report": "x" * 500_000,
        "lines": ["y" * 100] * 5_000,
        "offset": 4711,
        "counts": {str(n): n for n in range(50)},
    }
    _, end = play(task, {"offenders": huge})
    assert end.saved["found"]["offset"] == 4711
    assert "shortened for `last`: found" in end.says


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=8),
)


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=5), st.integers(0, 80_000))
@settings(deadline=None, max_examples=50)
def test_saved_never_passes_its_bound_and_small_is_untouched(values, filler):
    values["filler"] = "z" * filler
    kept, cut = bounded_saved(values)
    assert len(json.dumps(kept, separators=(",", ":"))) <= SAVED_BYTES_MAX
    if not cut:
        assert kept == values
