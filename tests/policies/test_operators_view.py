"""What operators look at: explanations, remarks on policies, replays of the past, suggestions, the editors' schema."""

from __future__ import annotations

import dataclasses

import jsonschema
import pytest
import yaml
from policy_tools import SIGNATURES, decide

from perdure.policies.explaining import explain
from perdure.policies.inline_tests import action_of
from perdure.policies.lints import lints
from perdure.policies.loading import library_files
from perdure.policies.model import Facts, Grant
from perdure.policies.replay import Recorded, replay
from perdure.policies.schema import policy_schema
from perdure.policies.suggestions import Answered, suggest


def explained(policies, tool, args, **changes):
    action = dataclasses.replace(action_of(SIGNATURES[tool], args, policies.workspace), **changes)
    return explain(policies, action, Facts(task="t", planner="model", confidence=0.5))


@pytest.mark.parametrize(
    ("rule", "tool", "args", "verdict", "why"),
    [
        (
            "{tools: [write_file], path: {under: reports}, decide: auto}",
            "write_file",
            {"path": "reports/x", "text": ""},
            "matched",
            "everything",
        ),
        (
            "{tools: [write_file], path: {under: reports}, decide: auto}",
            "write_file",
            {"path": "x", "text": ""},
            "not matched",
            "`path` wants {'under': ['reports']} and the action has ",
        ),
        (
            "{tools: [notify], decide: auto}",
            "write_file",
            {"path": "x", "text": ""},
            "not matched",
            "it is about notify",
        ),
        (
            "{tools: [http_request], host: {in: [a.example]}, decide: auto}",
            "http_request",
            {"url": "http://b.example"},
            "not matched",
            "the action has b.example",
        ),
        (
            "{tools: [http_request], method: {in: [GET]}, decide: auto}",
            "http_request",
            {"url": "http://b.example", "method": "POST"},
            "not matched",
            "the action has POST",
        ),
        (
            "{tools: [notify], args: {title: y}, decide: auto}",
            "notify",
            {"title": "x"},
            "not matched",
            "`args.title` wants y and the action has 'x'",
        ),
        ("{tools: [notify], args: {level: y}, decide: auto}", "notify", {"title": "x"}, "not matched", "not given"),
        (
            "{tools: [notify], provenance: {title: {all: [config]}}, decide: auto}",
            "notify",
            {"title": "x"},
            "not matched",
            "title from instruction",
        ),
        (
            "{tools: [notify], when: 'hour > 3', decide: auto}",
            "notify",
            {"title": "x"},
            "not matched",
            "`when: hour > 3` is false",
        ),
        ("{tools: [tickets], when: 'args.count > 3', decide: deny}", "tickets", {}, "not certain", "args.count"),
        (
            "{tools: [run_command], program: {in: [ls]}, decide: auto}",
            "run_command",
            {"script": "ls; rm x"},
            "not matched",
            "the action has ls, rm",
        ),
        (
            "{tools: [run_command], program: {in: [ls]}, decide: auto}",
            "run_command",
            {"script": "ls > f"},
            "not matched",
            "writes f",
        ),
        (
            "{tools: [run_command], program: {in: [ls]}, decide: auto}",
            "run_command",
            {"script": "$x"},
            "not matched",
            "not certain: a program whose name",
        ),
    ],
)
def test_every_rule_says_whether_it_matched_and_why_not(workspace, rule, tool, args, verdict, why):
    found = explained(workspace.rules("{name: r, " + rule[1:]), tool, args)
    (one,) = found.rules
    assert one.verdict == verdict
    assert why in one.why
    assert (one.file, one.line) == ("policies/policy0.yaml", 3)


def test_an_explanation_agrees_with_the_decision(workspace):
    policies = workspace.rules(
        "{name: a, tools: [notify], decide: auto}",
        "{name: q, tools: [notify], require: {confidence: 0.9}}",
        "{name: o, tools: [write_file], decide: deny}",
    )
    found = explained(policies, "notify", {"title": "x"})
    assert (found.decision.decision, found.obligations.confidence, found.unmet) == (
        "escalate",
        0.9,
        ("confidence 0.50, asked for 0.90",),
    )
    assert [one.name for one in found.rules] == ["a", "q", "o"]
    action = action_of(SIGNATURES["notify"], {"title": "x"}, policies.workspace)
    assert policies.explain(action, Facts(task="t", planner="model", confidence=0.5)) == found


def codes(policies):
    return [(lint.line, lint.code) for lint in lints(policies)]


@pytest.mark.parametrize(
    ("rules", "line", "code"),
    [
        (["{name: a, tools: [wirte_file], decide: deny}"], 3, "no-tool"),
        (["{name: a, tools: [notify, nope], decide: deny}"], 3, "no-tool"),
        (["{name: a, tools: [notify], decide: auto}", "{name: b, tools: ['*'], decide: deny}"], 3, "unreachable"),
        (
            [
                "{name: b, tools: [write_file], path: {under: .}, decide: escalate}",
                "{name: a, tools: [write_file], path: {under: reports}, decide: auto}",
            ],
            4,
            "unreachable",
        ),
        (
            ["{name: a, tools: [notify], decide: deny}", "{name: b, tools: [notify], when: hour > 3, decide: deny}"],
            4,
            "shadowed-deny",
        ),
        (
            ["{name: a, tools: [notify], decide: auto}", "{name: b, tools: [notify], args: {title: x}, decide: auto}"],
            4,
            "shadowed",
        ),
        (
            [
                "{name: a, tools: [notify], args: {title: x}, decide: auto}",
                "{name: b, tools: [notify], when: hour > 3, decide: deny}",
            ],
            4,
            "overlap",
        ),
        (["{name: a, tools: [notify], decide: auto}"], 1, "no-tests"),
        (["""{name: a, tools: [run_command], when: "args.script.contains('x')", decide: deny}"""], 3, "not-given"),
    ],
)
def test_what_is_probably_not_meant_is_remarked_upon(workspace, rules, line, code):
    assert (line, code) in codes(workspace.rules(*rules))


def test_what_the_library_excepts_from_ones_own_rules_is_no_remark(workspace):
    policies = workspace.load(
        "version: 1\nuse: [egress, ops, read-only, workspace-writer, business-hours]\nrules:\n"
        "  - {name: ours, tools: [http_request], host: {in: [a.example]}, method: {in: [GET]}, decide: auto}\n"
        "  - {name: ours too, tools: [run_command], program: {in: [touch]}, path: {under: tmp}, decide: auto}\n"
        "tests:\n"
        "  - {tool: http_request, args: {url: 'https://a.example/'}, given: {weekday: wed, hour: 9}, expect: auto}\n"
        "  - {tool: run_command, args: {command: [touch, tmp/x]}, given: {weekday: wed, hour: 9}, expect: auto}\n"
    )
    assert codes(policies) == []


def test_an_optional_argument_that_is_not_given_is_told_in_words(workspace):
    policies = workspace.rules("""{name: a, tools: [run_command], when: "args.script.contains('x')", decide: deny}""")
    decision = decide(policies, "run_command", {"command": ["ls"]})
    assert decision.decision == "escalate"
    assert "args.script was not given; `given.script &&` before it says what is meant then" in decision.reason


def test_rules_without_a_test_are_remarked_upon(workspace):
    policies = workspace.load(
        "version: 1\nrules:\n  - {name: a, tools: [notify], decide: auto}\n  - {name: b, tools: [write_file], decide: auto}\ntests:\n  - {tool: notify, args: {title: x}, expect: auto}\n"
    )
    assert codes(policies) == [(4, "missing-test")]


def test_different_directories_do_not_overlap(workspace):
    policies = workspace.rules(
        "{name: a, tools: [write_file], path: {under: a}, decide: auto}",
        "{name: b, tools: [write_file], path: {under: b}, decide: deny}",
    )
    assert [code for _, code in codes(policies)] == ["no-tests"]


def recorded(number, tool, args, decided, **facts):
    action = action_of(SIGNATURES[tool], args, "/w")
    return Recorded(
        id=f"A{number}",
        at=number,
        action=action,
        facts=Facts(**({"task": "t", "planner": "model"} | facts)),
        decided=decided,
    )


def test_a_replay_lists_what_flips_with_the_facts_of_then(workspace):
    policies = workspace.rules(
        "{name: a, tools: [notify], decide: auto}",
        "{name: n, tools: [notify], when: hour < 6, decide: escalate}",
        "{name: c, tools: [notify], require: {max_per_hour: 10}}",
        "{name: d, tools: [tickets], decide: deny}",
    )
    past = [
        recorded(1, "notify", {"title": "x"}, "auto", hour=12),
        recorded(2, "notify", {"title": "x"}, "auto", hour=3),
        recorded(3, "notify", {"title": "x"}, "escalate", hour=12),
        recorded(4, "notify", {"title": "x"}, "auto", hour=12, tool_calls_hour=10),
        *(recorded(number, "tickets", {}, "auto") for number in range(5, 25)),
    ]
    result = replay(policies, iter(past))
    assert (result.decisions, result.flipped, result.loosened) == (24, 23, 1)
    assert result.flips == {
        ("notify", "auto", "escalate"): 2,
        ("notify", "escalate", "auto"): 1,
        ("tickets", "auto", "deny"): 20,
    }
    assert [flip.recorded.id for flip in result.examples["notify", "auto", "escalate"]] == ["A2", "A4"]
    assert len(result.examples["tickets", "auto", "deny"]) == 5
    (loose,) = result.examples["notify", "escalate", "auto"]
    assert loose.loosens
    assert result.before == {"auto": 23, "escalate": 1}
    assert result.after == {"auto": 2, "escalate": 2, "deny": 20}


def answer(number, args, approved=True, task="triage", tool="http_request"):
    return Answered(escalation=f"E{number}", task=task, tool=tool, args=args, approved=approved)


def test_a_suggestion_allows_what_was_approved_and_nothing_else(workspace):
    url = "https://status.example.org/up"
    answers = [answer(n, {"url": url, "method": method}) for n, method in enumerate(["GET", "HEAD", "GET"])]
    (made,) = suggest(answers, SIGNATURES)
    assert (made.approvals, made.evidence) == (3, ("E0", "E1", "E2"))
    policies = workspace.load(made.text)  # its own tests pass, or it would not load
    for args, task, decided in (
        ({"url": url, "method": "GET"}, "triage", "auto"),
        ({"url": url, "method": "HEAD"}, "triage", "auto"),
        ({"url": url, "method": "POST"}, "triage", "escalate"),
        ({"url": url}, "triage", "escalate"),
        ({"url": url + "x", "method": "GET"}, "triage", "escalate"),
        ({"url": url, "method": "GET", "body": "x"}, "triage", "escalate"),
        ({"url": url, "method": "GET"}, "other", "escalate"),
    ):
        assert decide(policies, "http_request", args, facts={"task": task}).decision == decided, args


def test_commands_that_people_approved_are_suggested_word_for_word(workspace):
    reload, restart = ["systemctl", "reload", 'it\'s "ü" \\ ${x}'], ["systemctl", "restart", "web"]
    answers = [
        answer(n, {"command": command}, tool="run_command") for n, command in enumerate([reload, restart, restart])
    ]
    (made,) = suggest(answers, SIGNATURES)
    policies = workspace.load(made.text)
    assert codes(policies) == []
    for args, decided in (
        ({"command": reload}, "auto"),
        ({"command": restart}, "auto"),
        ({"command": restart[:2]}, "escalate"),
        ({"command": [*restart, "db"]}, "escalate"),
        ({"command": ["systemctl", "restart", "db"]}, "escalate"),
        ({"command": restart, "cwd": "elsewhere"}, "escalate"),
        ({"script": "systemctl restart web"}, "escalate"),
    ):
        assert decide(policies, "run_command", args).decision == decided, args
    assert suggest([*answers, answer(9, {"command": restart}, approved=False, tool="run_command")], SIGNATURES) == []


@pytest.mark.parametrize(
    "answers",
    [
        [answer(1, {"url": "http://a"})],
        [
            answer(1, {"url": "http://a"}),
            answer(2, {"url": "http://a"}),
            answer(3, {"url": "http://a"}, approved=False),
        ],
        [answer(n, {"url": f"http://{n}", "method": "GET"}) for n in range(30)],
        [answer(1, {"url": "http://a", "body": "x"}), answer(2, {"url": "http://b", "body": "y"})],
        [answer(1, {"extra": {"a": 1}}, tool="tickets"), answer(2, {"extra": {"a": 1}}, tool="tickets")],
        [
            answer(1, {"script": "x=$(y); $x"}, tool="run_command"),
            answer(2, {"script": "x=$(y); $x"}, tool="run_command"),
        ],
        [
            answer(1, {"command": ["tee", "f"]}, tool="run_command"),
            answer(2, {"command": ["tee", "f"]}, tool="run_command"),
        ],
    ],
    ids=[
        "one answer is no habit",
        "a person said no to the same",
        "no end of values",
        "combinations nobody saw",
        "nested values",
        "a script of which nobody can tell what it runs",
        "a command that writes over a file",
    ],
)
def test_no_suggestion_is_wider_than_its_evidence(answers):
    assert suggest(answers, SIGNATURES) == []


def test_the_editors_schema_accepts_the_library_and_refuses_what_the_loader_refuses():
    validator = jsonschema.Draft202012Validator(policy_schema())
    for path in library_files().values():
        validator.validate(yaml.safe_load(path.read_text()))
    for broken in (
        {"version": 2},
        {"version": 1, "rules": [{"name": "a", "tools": "x"}]},
        {"version": 1, "rules": [{"name": "a", "tools": "x", "decide": "maybe"}]},
        {"version": 1, "rulse": []},
    ):
        assert not validator.is_valid(broken), broken


def test_a_grant_shows_in_the_explanation(workspace):
    policies = workspace.rules("{name: e, tools: [notify], decide: escalate}")
    action = action_of(SIGNATURES["notify"], {"title": "x"}, policies.workspace)
    grant = Grant(id="G", rule="e", task="t", tool="notify", pattern={"title": "x"})
    found = policies.explain(action, Facts(task="t", planner="model"), [grant])
    assert (found.decision.decision, found.decision.grant) == ("auto", "G")
