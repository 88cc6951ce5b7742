"""What must hold of every set of rules and every action, whatever they are."""

from __future__ import annotations

import dataclasses
import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_tools import SIGNATURES

from perdure.policies.binding import check_rules
from perdure.policies.decisions import PolicySet, unmet_obligations
from perdure.policies.documents import read_document
from perdure.policies.inline_tests import action_of
from perdure.policies.model import Facts, Grant
from perdure.policies.printing import print_policy
from perdure.policies.reading import read_policy
from perdure.policies.rules import Equals, Glob, InlineTest, OneOf, PolicyFile, Require, Rule, Sources, Under

ROOT = "/w"
RANK = {"auto": 0, "escalate": 1, "deny": 2}
CONDITIONS = {
    "write_file": [
        "args.path.endsWith('.md')",
        "hour > 12",
        "args.text.matches('^a+$')",
        "int(args.text) > 1",
        "session.steps / votes_ahead > 1",
        "tainted",
    ],
    "tickets": [
        "args.count > 3",
        "given.urgent && args.urgent",
        "args.labels[0] == 'red'",
        "args.extra.x == 1",
        "1 / args.count > 0",
    ],
    "http_request": [
        "host.endsWith('.example')",
        "method == 'POST'",
        "given.body",
        "provenance.url.exists(s, s == 'model')",
    ],
    "run_command": ["size(args.command) > 2", "weekday in ['sat', 'sun']"],
}
NAMES = st.sampled_from(["reading", "writing here", "it's: a #rule", "öffentlich", "null", "12", "- x"])


@st.composite
def rules(draw, decide=None):
    tool = draw(st.sampled_from(sorted(CONDITIONS)))
    tools = draw(st.sampled_from([(tool,), (tool[:3] + "*",)]))
    decided = decide or draw(st.sampled_from(["auto", "auto", "escalate", "deny", None]))
    require = None
    if decided is None:
        require = draw(
            st.builds(Require, confidence=st.sampled_from([0.0, 0.5, 0.9]), max_per_hour=st.sampled_from([0, 5]))
        )
    args, provenance, under, hosts, methods, programs = {}, {}, (), (), (), ()
    if tool == "write_file":
        under = draw(st.sampled_from([(), ("reports",), ("reports", "/etc"), (".",)]))
        args = draw(
            st.sampled_from(
                [
                    {},
                    {"text": Equals("a")},
                    {"text": OneOf(("a", "b"))},
                    {"path": Glob("reports/*.md")},
                    {"path": Under(("reports",))},
                ]
            )
        )
        provenance = draw(
            st.sampled_from(
                [
                    {},
                    {"path": Sources("any", ("tool:*",))},
                    {"path": Sources("any", ("model", "person"))},
                    {"text": Sources("any", ("unknown",))},
                    {"*": Sources("all", ("instruction", "config"))},
                ]
            )
        )
    if tool == "tickets":
        args = draw(
            st.sampled_from([{}, {"count": Equals(3)}, {"urgent": Equals(True)}, {"labels": OneOf(("red", "blue"))}])
        )
    if tool == "http_request":
        hosts = draw(st.sampled_from([(), ("a.example",), ("*.example", "b.org"), ("A.Example.",), ("*.org",)]))
        methods = draw(st.sampled_from([(), ("GET",), ("GET", "POST")]))
    if tool == "run_command":
        programs = draw(st.sampled_from([(), ("ls", "cat"), ("rm",), ("git log",), ("/bin/rm",), ("*",), ("c*", "ls")]))
        under = draw(st.sampled_from([(), (), ("reports",), (".",), ("/",), ("/etc/shadow",)]))
    when = draw(st.sampled_from([None, None, *CONDITIONS[tool]]))
    if require is not None and when is not None and "votes" in when:
        when = None
    return Rule(
        name=draw(NAMES), file="f.yaml", line=1, tools=tools, under=under, hosts=hosts, methods=methods, programs=programs, args=args,
        provenance=provenance, when=when, decide=decided, require=require,
        expires_seconds=draw(st.sampled_from([None, 60, 5_400])) if decided == "escalate" else None,
        on_expiry=draw(st.sampled_from([None, "deny", "approve"])) if decided == "escalate" else None,
        shadow=draw(st.sampled_from([False, False, False, True])),
    )  # fmt: skip


@st.composite
def questions(draw):
    tool = draw(st.sampled_from(sorted(CONDITIONS)))
    words = st.sampled_from(["a", "aaa", "", "x\0y", "reports", "\ud800"])
    values = {
        "write_file": st.fixed_dictionaries(
            {"path": st.sampled_from(["reports/a.md", "reports/../b", "/etc/motd", "x", ""]), "text": words}
        ),
        "tickets": st.fixed_dictionaries(
            {},
            optional={
                "count": st.sampled_from([0, 3, 2**70, "x"]),
                "urgent": st.booleans(),
                "labels": st.lists(words, max_size=2),
                "extra": st.sampled_from([{}, {"x": 1}]),
            },
        ),
        "http_request": st.fixed_dictionaries(
            {"url": st.sampled_from(["http://a.example/", "http://b.org", "nonsense", "http://["])},
            optional={"method": st.sampled_from(["GET", "POST"]), "body": words},
        ),
        "run_command": st.one_of(
            st.fixed_dictionaries(
                {
                    "command": st.lists(
                        st.sampled_from(
                            ["ls", "rm", "cat", "-x", "git", "log", "/bin/rm", "/etc/shadow", "reports/a", ".."]
                        ),
                        max_size=3,
                    )
                }
            ),
            st.fixed_dictionaries(
                {
                    "script": st.sampled_from(
                        [
                            "ls",
                            "ls; rm x",
                            "$x",
                            "cat f > g",
                            "git log",
                            "cat reports/*",
                            "cat $x",
                            "grep -r x /",
                            "cd /etc && cat shadow",
                        ]
                    )
                }
            ),
        ),
    }
    args = draw(values[tool])
    provenance = {
        name: tuple(draw(st.sampled_from([("instruction",), ("model", "tool:read_file"), ("config", "person"), ()])))
        for name in args
    }
    facts = Facts(
        task=draw(st.sampled_from(["t", "u"])), planner=draw(st.sampled_from(["model", "playbook"])), confidence=draw(st.sampled_from([0.0, 0.6, 1.0])),
        hour=draw(st.integers(0, 23)), votes_ahead=draw(st.integers(0, 3)), tool_calls_hour=draw(st.sampled_from([0, 7])), tainted=draw(st.booleans()),
    )  # fmt: skip
    return action_of(SIGNATURES[tool], args, ROOT, provenance=provenance), facts


def policy_set(*documents):
    """Policies without a disk: the rules as they are, numbered so that each has a place of its own."""
    numbered = [
        dataclasses.replace(
            document,
            rules=tuple(
                dataclasses.replace(
                    rule, line=index + 1, name=f"{rule.name} {index}" if not rule.name.startswith("=") else rule.name
                )
                for index, rule in enumerate(document.rules)
            ),
        )
        for document in documents
    ]
    return PolicySet(numbered, SIGNATURES, workspace=ROOT, digest="sha256:0", files={}, resolve=lambda path: path)


def judged(policies, action, facts, grants=()):
    return policies.decide(
        action, facts, grants=grants, unmet=unmet_obligations(policies.obligations(action, facts), facts)
    )


def document(rules, file="f.yaml"):
    return PolicyFile(file=file, rules=tuple(dataclasses.replace(rule, file=file) for rule in rules))


@settings(max_examples=150, deadline=None)
@given(st.lists(rules(), max_size=6), rules(decide="deny"), questions())
def test_adding_a_deny_rule_never_loosens_a_decision(some, denying, question):
    denying = dataclasses.replace(denying, shadow=False)
    before = judged(policy_set(document(some)), *question)
    after = judged(policy_set(document([*some, denying])), *question)
    assert RANK[after.decision] >= RANK[before.decision]


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), max_size=6), rules(), questions())
def test_adding_anything_but_an_auto_rule_never_loosens_a_decision(some, more, question):
    before = judged(policy_set(document(some)), *question)
    after = judged(policy_set(document([*some, more])), *question)
    if more.decide != "auto":
        assert RANK[after.decision] >= RANK[before.decision]


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), min_size=2, max_size=6), questions(), st.randoms(use_true_random=False))
def test_the_order_of_rules_and_files_never_matters(some, question, shuffle: random.Random):
    named = [dataclasses.replace(rule, name=f"={index}") for index, rule in enumerate(some)]
    one = judged(policy_set(document(named)), *question)
    mixed = named[:]
    shuffle.shuffle(mixed)
    cut = shuffle.randrange(len(mixed) + 1)
    other = judged(policy_set(document(mixed[cut:], "b.yaml"), document(mixed[:cut], "a.yaml")), *question)
    assert (one.decision, one.expires_seconds, one.on_expiry, one.shadow) == (
        other.decision,
        other.expires_seconds,
        other.on_expiry,
        other.shadow,
    )
    assert sorted(hit.name for hit in one.rules) == sorted(hit.name for hit in other.rules)
    assert set(one.answerable) == set(other.answerable)


@settings(max_examples=200, deadline=None)
@given(st.lists(rules(), max_size=12), questions(), st.booleans())
def test_every_rule_that_is_about_an_action_is_found(some, question, written):
    """The index leaves out no rule that would have matched, or of which that cannot be told."""
    policies = policy_set(document(some))
    asked = policies.question(*question, written=written)
    every = [(bound.hit, bound.verdict(asked)) for bound in policies.bound(asked.action.tool)]
    decision = policies.answer(asked, enforce_shadow=True)
    counted = {(hit.name, hit.decide != "error") for hit in decision.rules}
    assert counted == {(hit.name, verdict is True) for hit, verdict in every if verdict is not False}


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), max_size=6), questions())
def test_what_cannot_be_told_of_a_command_is_never_automatic(some, question):
    action, facts = question
    policies = policy_set(document(some))
    analysis = policies.question(action, facts).analysis
    if analysis is not None and (analysis.unknown or not analysis.programs):
        assert judged(policies, action, facts).decision != "auto"


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), max_size=6), questions())
def test_what_cannot_be_evaluated_is_never_automatic(some, question):
    action, facts = question
    policies = policy_set(document(some))
    grants = [
        Grant(id="g", rule=rule.name, task=facts.task, tool=action.tool, pattern=dict(action.args))
        for rule in policies.rules
    ]
    errors = [
        bound
        for bound in policies.bound(action.tool)
        if not bound.rule.shadow and isinstance(bound.verdict(policies.question(action, facts)), str)
    ]
    decision = judged(policies, action, facts, grants)
    if errors:
        assert decision.decision != "auto"
        assert {"error"} <= {hit.decide for hit in decision.rules} or decision.decision == "deny"


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), max_size=6), questions())
def test_only_auto_rules_and_grants_make_anything_automatic(some, question):
    policies = policy_set(document([rule for rule in some if rule.decide != "auto"]))
    assert judged(policies, *question).decision != "auto"


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), max_size=5), st.booleans(), questions())
def test_load_print_load_is_the_identity(some, shadow, question):
    action, facts = question
    named = [
        dataclasses.replace(rule, name=f"{rule.name} {index}", shadow=rule.shadow or shadow)
        for index, rule in enumerate(some)
    ]
    clean = {
        name: value
        for name, value in action.args.items()
        if "\\u" not in ascii(value) and "\\ud800" not in ascii(value)
    }
    test = InlineTest(
        name="n",
        line=0,
        column=0,
        tool=action.tool,
        args=clean if clean == action.args and "\\ud800" not in str(ascii(clean)) else {},
        given={"hour": facts.hour},
        expect="escalate",
    )
    first = PolicyFile(file="f.yaml", rules=tuple(named), tests=(test,), uses=("ops",), shadow=shadow)
    second = _load(print_policy(first))
    assert _bare(second) == _bare(first)
    assert print_policy(second) == print_policy(first)


def _load(text):
    root, complaints = read_document(text.encode(), "f.yaml")
    assert root is not None, (complaints.problems, text)
    found = read_policy(root, complaints)
    assert found is not None
    check_rules(found, SIGNATURES, complaints)
    assert not complaints.problems, (complaints.problems, text)
    return found


def _bare(document):
    """Without places, which printing changes."""
    return dataclasses.replace(
        document,
        rules=tuple(dataclasses.replace(rule, line=0) for rule in document.rules),
        tests=tuple(dataclasses.replace(test, line=0, column=0) for test in document.tests),
    )


def test_every_library_file_survives_printing():
    from perdure.policies.loading import library_files

    for path in library_files().values():
        first = _load(path.read_text())
        assert _bare(_load(print_policy(first))) == _bare(first)


def test_precedence_is_total():
    """Every combination of one rule of each kind: the strictest that is there decides."""
    kinds = ["auto", "escalate", "deny"]
    for count in range(4):
        for chosen in itertools.combinations(kinds, count):
            policies = policy_set(
                document([Rule(name=f"={kind}", file="f", line=1, tools=("notify",), decide=kind) for kind in chosen])
            )
            decision = judged(
                policies, action_of(SIGNATURES["notify"], {"title": "x"}, ROOT), Facts(task="t", planner="model")
            )
            assert decision.decision == (max(chosen, key=RANK.__getitem__) if chosen else "escalate")
