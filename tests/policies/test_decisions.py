"""What is decided: precedence, paths, hosts, provenance, conditions, obligations, grants, shadow rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy_tools import SIGNATURES, decide

from perdure.errors import Problems
from perdure.policies.decisions import unmet_obligations
from perdure.policies.inline_tests import action_of
from perdure.policies.loading import load_policies
from perdure.policies.model import NOTHING_DECIDES, Facts, Grant, Obligations

DESIGN = """\
version: 1
rules:
  - {name: reading here, tools: [list_files, read_file], path: {under: [inbox, reports]}, decide: auto}
  - {name: reports, tools: [write_file], path: {under: reports}, decide: auto}
  - {name: tell us, tools: [notify], decide: auto}
  - {name: our status page, tools: [http_request], host: {in: [status.example.org]}, method: {in: [GET]}, decide: auto}
  - {name: addresses that some tool's output chose, tools: [http_request], provenance: {url: {any: ["tool:*"]}}, decide: escalate}
  - name: blocks are for a person
    tools: [block_ip]
    decide: escalate
    expires: 12h
    on_expiry: deny
  - {name: never ourselves, tools: [block_ip], when: "args.ip.startsWith('10.')", decide: deny}
  - {name: be sure before leaving the machine, tools: [http_request], require: {votes: {ahead_by: 3, max: 15}, confidence: 0.9}}
tests:
  - {tool: write_file, args: {path: reports/today.md}, given: {}, expect: auto}
  - {tool: read_file, args: {path: reports/../../etc/shadow}, expect: escalate}
"""


@pytest.fixture
def design(workspace):
    return workspace.load(DESIGN)


@pytest.mark.parametrize(
    ("tool", "args", "decided"),
    [
        ("list_files", {"path": "inbox"}, "auto"),
        ("read_file", {"path": "inbox/a/b.log"}, "auto"),
        ("write_file", {"path": "reports/2026-11-22.md", "text": "x"}, "auto"),
        ("write_file", {"path": "./reports//x.md", "text": "x"}, "auto"),
        ("write_file", {"path": "reports/../inbox/x", "text": "x"}, "escalate"),
        ("write_file", {"path": "reportsx/x", "text": "x"}, "escalate"),
        ("write_file", {"path": "report", "text": "x"}, "escalate"),
        ("write_file", {"path": "Reports/x", "text": "x"}, "escalate"),
        ("write_file", {"path": "/reports/x", "text": "x"}, "escalate"),
        ("write_file", {"path": "//reports/x", "text": "x"}, "escalate"),
        ("read_file", {"path": "reports/../../etc/shadow"}, "escalate"),
        ("delete_file", {"path": "reports/x"}, "escalate"),
        ("notify", {"title": "x"}, "auto"),
        ("http_request", {"url": "https://status.example.org/up"}, "auto"),
        ("http_request", {"url": "https://STATUS.example.org./up"}, "auto"),
        ("http_request", {"url": "https://status.example.org/up", "method": "POST"}, "escalate"),
        ("http_request", {"url": "https://evil.example/"}, "escalate"),
        ("http_request", {"url": "https://status.example.org@evil.example/"}, "escalate"),
        ("http_request", {"url": "https://xstatus.example.org/"}, "escalate"),
        ("http_request", {"url": "https://status.example.org.evil.example/"}, "escalate"),
        ("http_request", {"url": "https://[::1/"}, "escalate"),
        ("block_ip", {"ip": "203.0.113.9"}, "escalate"),
        ("block_ip", {"ip": "10.0.0.1"}, "deny"),
    ],
)
def test_the_design_example_decides_as_written(design, tool, args, decided):
    assert decide(design, tool, args).decision == decided


def test_every_rule_that_counted_is_named_with_its_place(design):
    decision = decide(design, "block_ip", {"ip": "10.0.0.1"})
    assert [(hit.name, hit.file, hit.line, hit.decide) for hit in decision.rules] == [
        ("blocks are for a person", "policies/policy0.yaml", 8, "escalate"),
        ("never ourselves", "policies/policy0.yaml", 13, "deny"),
    ]
    assert decision.reason == "denied by 'never ourselves' (policies/policy0.yaml:13)"
    question = decide(design, "block_ip", {"ip": "203.0.113.9"})
    assert (question.expires_seconds, question.on_expiry) == (12 * 3600, "deny")


def test_an_address_that_a_tool_chose_is_asked(design):
    url = {"url": "https://status.example.org/"}
    assert decide(design, "http_request", url, provenance={"url": ("model", "tool:read_file")}).decision == "escalate"
    assert decide(design, "http_request", url, provenance={"url": ("instruction",)}).decision == "auto"
    assert decide(design, "http_request", url, provenance={"url": ()}).decision == "escalate", (
        "nobody knows whence: may be a tool's"
    )


def test_obligations_are_the_strictest_and_unmet_ones_escalate(workspace):
    policies = workspace.rules(
        "{name: a, tools: [notify], decide: auto}",
        "{name: b, tools: [notify], require: {confidence: 0.7, max_per_hour: 10}}",
        "{name: c, tools: ['*'], require: {confidence: 0.9, votes: {ahead_by: 2, max: 7}, max_per_hour: 30}}",
    )
    facts = Facts(task="t", planner="model", confidence=0.8, votes_ahead=1, tool_calls_hour=10)
    action = action_of(SIGNATURES["notify"], {"title": "x"}, policies.workspace)
    asked = policies.obligations(action, facts)
    assert (asked.confidence, asked.votes_ahead_by, asked.votes_max, asked.max_per_hour) == (0.9, 2, 7, 10)
    assert [hit.name for hit in asked.rules] == ["b", "c"]
    unmet = unmet_obligations(asked, facts)
    assert len(unmet) == 3
    decision = policies.decide(action, facts, unmet=unmet)
    assert decision.decision == "escalate"
    assert "confidence 0.80, asked for 0.90" in decision.reason
    assert unmet_obligations(asked, Facts(task="t", planner="model", confidence=float("nan"))), (
        "not a number is not certainty"
    )
    assert not unmet_obligations(asked, Facts(task="t", planner="playbook")), "a playbook never votes"


def test_deny_beats_grant_beats_escalate_beats_auto(workspace):
    rules = {
        "auto": "{name: a, tools: [notify], decide: auto}",
        "escalate": "{name: e, tools: [notify], decide: escalate}",
        "deny": "{name: d, tools: [notify], decide: deny}",
    }
    grant = Grant(id="G1", rule="e", task="triage", tool="notify", pattern={"title": "x"})
    for names, granted, decided in (
        (("auto",), False, "auto"),
        (("auto", "escalate"), False, "escalate"),
        (("auto", "escalate"), True, "auto"),
        (("escalate",), True, "auto"),
        (("auto", "escalate", "deny"), True, "deny"),
        (("deny",), False, "deny"),
    ):
        policies = workspace.rules(*(rules[name] for name in names))
        decision = decide(policies, "notify", {"title": "x"}, grants=[grant] if granted else [])
        assert decision.decision == decided, names
        assert (decision.grant == "G1") == (granted and decided == "auto")


def test_a_grant_covers_its_task_tool_rule_and_arguments_and_nothing_else(workspace):
    policies = workspace.rules(
        "{name: e, tools: [write_file, notify], decide: escalate}",
        "{name: f, tools: [write_file], path: {under: secret}, decide: escalate}",
    )
    args = {"path": "reports/a.md", "text": "x"}

    def with_grant(rule="e", task="triage", tool="write_file", pattern=None, args=args, facts=None):
        grant = Grant(
            id="G", rule=rule, task=task, tool=tool, pattern=pattern or {"path": {"glob": "reports/*.md"}, "text": "x"}
        )
        return decide(policies, "write_file", args, grants=[grant], facts=facts).decision

    assert with_grant() == "auto"
    assert with_grant(pattern={"path": "reports/a.md", "text": {"in": ["x", "y"]}}) == "auto"
    assert with_grant(rule="other") == "escalate"
    assert with_grant(task="other") == "escalate"
    assert with_grant(tool="notify") == "escalate"
    assert with_grant(pattern={"path": {"glob": "reports/*.md"}}) == "escalate", (
        "an argument that the person did not see"
    )
    assert with_grant(pattern={"path": {"glob": "reports/*.md"}, "text": "x", "mode": "w"}) == "escalate"
    assert with_grant(args={"path": "reports/../policies/a.md", "text": "x"}) == "escalate"
    assert with_grant(args={"path": "reports/b/c.md", "text": "x"}) == "escalate"
    assert (
        with_grant(pattern={"path": {"glob": "**"}, "text": "x"}, args={"path": "secret/a.md", "text": "x"})
        == "escalate"
    ), "the other rule asks too"


def test_what_nobody_decided_can_be_granted_by_its_own_name(workspace):
    policies = workspace.rules("{name: a, tools: [notify], decide: auto}")
    args = {"path": "x", "text": "y"}
    decision = decide(policies, "write_file", args)
    assert decision.answerable == (NOTHING_DECIDES,)
    grant = Grant(id="G", rule=NOTHING_DECIDES, task="triage", tool="write_file", pattern=args)
    assert decide(policies, "write_file", args, grants=[grant]).decision == "auto"
    assert decide(policies, "write_file", args, grants=[grant], unmet=["confidence"]).decision == "escalate"


@pytest.mark.parametrize("decided", ["auto", "deny", "escalate"])
@pytest.mark.parametrize(
    ("tool", "condition", "args"),
    [
        ("tickets", "args.count / 0 == 1", {"count": 3}),
        ("tickets", "args.count > 2", {}),
        ("tickets", "args.count > 2", {"count": "three"}),
        ("tickets", "args.count > 2", {"count": 2**70}),
        ("tickets", "args.extra.absent == 'x'", {"extra": {}}),
        ("tickets", "args.labels[7] == 'x'", {"labels": []}),
        (
            "tickets",
            "args.labels.exists(a, args.labels.exists(b, args.labels.exists(c, a + b + c == 'x')))",
            {"labels": ["a"] * 300},
        ),
        ("tickets", "args.in_ == 'ok'", {"in": "ok\0evil"}),
        ("tickets", "args.in_ == 'ok'", {"in": "\ud800"}),
        ("tickets", "args.in_ == 'ok'", {"in": {"secret": "TOKEN"}}),
        ("tickets", "timestamp(args.due_date) < timestamp('2026-01-01T00:00:00Z')", {"due-date": "soon"}),
    ],
)
def test_a_condition_that_fails_is_a_question_whatever_it_would_have_decided(workspace, decided, tool, condition, args):
    policies = workspace.rules(
        f'{{name: c, tools: [{tool}], when: "{condition}", decide: {decided}}}',
        f"{{name: a, tools: [{tool}], decide: auto}}",
    )
    grant = Grant(id="G", rule="c", task="triage", tool=tool, pattern=args)
    decision = decide(policies, tool, args, grants=[grant])
    assert decision.decision == "escalate"
    assert "'c' (policies/policy0.yaml:3) could not be evaluated" in decision.reason
    assert [hit.decide for hit in decision.rules if hit.name == "c"] == ["error"]


def test_a_pattern_that_backtracks_elsewhere_is_linear_here(workspace):
    policies = workspace.rules(
        "{name: c, tools: [recall], when: \"args.query.matches('^(a+)+$')\", decide: auto}",
        "{name: g, tools: [recall], args: {query: {glob: '*a*a*a*a*a*a*a*a*a*b'}}, decide: auto}",
    )
    assert decide(policies, "recall", {"query": "a" * 50_000 + "c"}).decision == "escalate"


def test_optional_arguments_and_odd_names(workspace):
    policies = workspace.rules(
        "{name: a, tools: [tickets], when: \"given.due_date && args.due_date == 'now'\", decide: auto}",
        "{name: b, tools: [tickets], when: \"given.in_ && args.in_ == 'x'\", decide: deny}",
        "{name: c, tools: [tickets], args: {labels: {in: [red]}}, decide: deny}",
        "{name: d, tools: [tickets], args: {urgent: true}, decide: deny}",
    )
    assert decide(policies, "tickets", {"due-date": "now"}).decision == "auto"
    assert decide(policies, "tickets", {}).decision == "escalate"
    assert decide(policies, "tickets", {"due-date": "now", "in": "x"}).decision == "deny"
    assert decide(policies, "tickets", {"due-date": "now", "labels": ["blue", "red"]}).decision == "deny"
    assert decide(policies, "tickets", {"due-date": "now", "urgent": 1}).decision == "auto", "1 is not true"
    assert decide(policies, "tickets", {"due-date": "now", "urgent": True}).decision == "deny"


def test_allowing_needs_every_path_and_forbidding_any(workspace):
    policies = workspace.rules(
        "{name: a, tools: [move_file], path: {under: reports}, decide: auto}",
        "{name: d, tools: [move_file], path: {under: policies}, decide: deny}",
    )
    assert decide(policies, "move_file", {"from": "reports/a", "to": "reports/b"}).decision == "auto"
    assert decide(policies, "move_file", {"from": "reports/a", "to": "b"}).decision == "escalate"
    assert decide(policies, "move_file", {"from": "reports/a", "to": "policies/b.yaml"}).decision == "deny"
    assert decide(policies, "move_file", {"from": ".", "to": "reports/b"}).decision == "deny", (
        "what moves the parent moves it too"
    )
    assert (
        decide(policies, "move_file", {"from": "reports/a", "to": "reports/b"}, paths={"from": ("/x",)}).decision
        == "escalate"
    ), "unresolved"


def test_a_directory_that_is_a_link_is_matched_where_it_lies(workspace, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "reports").symlink_to("real")
    (tmp_path / "secret").symlink_to("/etc")
    policies = workspace.rules(
        "{name: a, tools: [read_file], path: {under: [reports, /]}, decide: auto}",
        "{name: d, tools: [read_file], path: {under: secret}, decide: deny}",
    )
    real = str((tmp_path / "real").resolve())
    assert decide(policies, "read_file", {"path": "reports/x"}, paths={"path": (f"{real}/x",)}).decision == "auto"
    assert decide(policies, "read_file", {"path": "hosts"}, paths={"path": ("/etc/hosts",)}).decision == "deny"


def test_expiry_is_the_shortest_and_silence_approves_only_unanimously(workspace):
    approve = "{name: a, tools: [notify], decide: escalate, expires: 2h, on_expiry: approve}"
    assert decide(workspace.rules(approve), "notify", {"title": "x"}).on_expiry == "approve"
    both = workspace.rules(approve, "{name: b, tools: [notify], decide: escalate, expires: 30m}")
    decision = decide(both, "notify", {"title": "x"})
    assert (decision.expires_seconds, decision.on_expiry) == (1800, "deny")
    assert decide(workspace.rules(approve), "notify", {"title": "x"}, unmet=["votes"]).on_expiry == "deny"


def test_a_shadow_rule_counts_in_the_tests_that_are_about_it_and_in_no_other(workspace):
    rules = "{name: a, tools: [notify], decide: auto}, {name: s, tools: [notify], decide: deny, shadow: true}"
    call = "tool: notify, args: {title: x}"
    workspace.load(
        f"version: 1\nrules: [{rules}]\ntests: [{{{call}, expect: auto}}, {{{call}, expect: deny, by: s}}]\n"
    )
    with pytest.raises(Problems, match="a test that fails"):
        workspace.load(f"version: 1\nrules: [{rules}]\ntests: [{{{call}, expect: deny}}]\n")
    workspace.load(f"version: 1\nshadow: true\nrules: [{rules}]\ntests: [{{{call}, expect: deny}}]\n")


def test_shadow_rules_are_recorded_and_not_enforced(workspace):
    policies = workspace.rules(
        "{name: a, tools: [notify], decide: auto}",
        "{name: s, tools: [notify], decide: deny, shadow: true}",
        "{name: o, tools: [notify], require: {confidence: 0.9}, shadow: true}",
    )
    decision = decide(policies, "notify", {"title": "x"})
    assert (decision.decision, decision.shadow) == ("auto", "deny")
    assert [hit.name for hit in decision.shadow_rules] == ["s", "o"]
    assert [hit.name for hit in decision.rules] == ["a"]
    whole = workspace.load(
        "version: 1\nshadow: true\nrules: [{name: a, tools: [notify], decide: auto}]\ntests: [{tool: notify, args: {title: x}, expect: auto}]\n"
    )
    assert (decide(whole, "notify", {"title": "x"}).decision, decide(whole, "notify", {"title": "x"}).shadow) == (
        "escalate",
        "auto",
    )


def test_a_tool_that_came_after_the_policies_is_still_governed(workspace):
    policies = load_policies(
        [workspace.write("version: 1\nrules:\n  - {name: d, tools: ['*'], decide: deny}\n")],
        {},
        workspace=workspace.root,
    )
    assert decide(policies, "notify", {"title": "x"}).decision == "deny"
    policies = load_policies(
        [
            workspace.write(
                "version: 1\nrules:\n  - {name: d, tools: ['*'], when: hour > 3, decide: deny}\n  - {name: a, tools: ['*'], decide: auto}\n"
            )
        ],
        {},
        workspace=workspace.root,
    )
    assert decide(policies, "notify", {"title": "x"}).decision == "escalate"


def test_the_floor_of_the_whole_session_is_an_obligation_like_the_others() -> None:
    floor = Obligations(session_confidence=0.6)
    facts = Facts(task="t", planner="playbook", session_confidence=0.42)
    assert unmet_obligations(floor, facts) == ("session confidence 0.42, asked for 0.60",)
    assert unmet_obligations(floor, replace(facts, session_confidence=0.6)) == ()
    assert unmet_obligations(floor, replace(facts, session_confidence=float("nan"))) != ()


@pytest.mark.parametrize(
    ("under", "path", "fits"),
    [
        ("**/.git", ".git", True),
        ("**/.git", "a/b/.git/hooks/x", True),
        ("**/.git", "a/.github/x", False),
        ("**/.git", "../.git/x", False),
        ("out/*/log", "out/a/log", True),
        ("out/*/log", "out/a/log/x/y", True),
        ("out/*/log", "out/a/b/log", False),
        ("out/*/log", "outs/a/log", False),
        ("a/**/b/c", "a/x/b/y/b/c/z", True),
        ("a/**/b/c", "a/b/c", True),
        ("a/**/b/c", "a/b/x/c", False),
        ("**/*.sh", "x/y.sh", True),
        ("**/*.sh", "x/y.sh.txt", False),
    ],
)
def test_a_directory_may_be_a_glob(workspace, under, path, fits):
    for kind, otherwise in (("deny", "escalate"), ("auto", "escalate")):
        policies = workspace.rules(f"{{name: a, tools: [write_file], path: {{under: '{under}'}}, decide: {kind}}}")
        decision = decide(policies, "write_file", {"path": path, "text": "x"}).decision
        assert decision == (kind if fits else otherwise), kind


def test_what_moves_a_directory_moves_what_a_glob_names_below_it(workspace):
    policies = workspace.rules(
        "{name: a, tools: [move_file], decide: auto}",
        "{name: d, tools: [move_file], path: {under: 'users/*/keys/own'}, decide: deny}",
    )
    for source, expected in (
        ("users", "deny"),
        ("users/me", "deny"),
        ("users/me/keys", "deny"),
        ("users/me/other", "auto"),
    ):
        assert decide(policies, "move_file", {"from": source, "to": "x"}).decision == expected, source
