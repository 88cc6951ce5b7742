"""A file's own tests: run at every load, against that file alone, paths taken as written from the workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from perdure.policies.commands import named_files
from perdure.policies.conditions import FACTS
from perdure.policies.decisions import PolicySet
from perdure.policies.documents import Complaints, Place, nearest, short
from perdure.policies.model import Decision, Facts, ProposedAction, ToolSignature
from perdure.policies.patterns import lexical
from perdure.policies.rules import InlineTest, PolicyFile

_FACT_TYPES: Mapping[str, tuple[type, ...]] = {"string": (str,), "int": (int,), "double": (int, float), "bool": (bool,)}


def check_tests(document: PolicyFile, policies: PolicySet, complaints: Complaints) -> None:
    """Add a problem for each test that is wrong or fails."""
    tried = {rule.name for rule in document.rules if rule.shadow}
    for test in document.tests:
        signature = policies.signatures.get(test.tool)
        if signature is None:
            known = list(policies.signatures)
            complaints.add(
                _place(test, "tool"),
                f"the unknown tool {test.tool!r}",
                f"one of {', '.join(known)}{nearest(test.tool, known)}",
            )
            continue
        if not _well_formed(test, signature, complaints):
            continue
        decision = outcome(test, signature, policies, enforce_shadow=document.shadow or test.by in tried)
        if decision.decision != test.expect:
            found = f"a test that fails: {test.tool} {short(str(dict(test.args)))} is {decision.decision}, {decision.reason}"
            complaints.add(_place(test, "expect"), found, f"{test.expect}, as the test says (the file alone decides)")
        elif test.by is not None and test.by not in {*(hit.name for hit in decision.rules), *decision.answerable}:
            counted = ", ".join(repr(hit.name) for hit in decision.rules) or "no rule"
            complaints.add(_place(test, "by"), f"a test in which {counted} counted", f"the rule {test.by!r} to count")


def outcome(
    test: InlineTest, signature: ToolSignature, policies: PolicySet, *, enforce_shadow: bool = False
) -> Decision:
    """What the policies decide about the test's action; the facts of the test itself meet obligations or do not. Shadow rules
    count where the test is about them."""
    values = {FACTS[name].field: value for name, value in test.given.items()}
    facts = Facts(**({"task": "test", "planner": "model"} | values))
    action = action_of(signature, test.args, policies.workspace, provenance=test.provenance)
    question = policies.question(action, facts, written=True)
    return policies.answer(question, enforce_shadow=enforce_shadow)


def action_of(
    signature: ToolSignature,
    args: Mapping[str, Any],
    workspace: str,
    *,
    provenance: Mapping[str, tuple[str, ...]] | None = None,
) -> ProposedAction:
    """The action that a call with these arguments would be, judged by them alone: paths as written, the host of `url`,
    the command of `command` (a list) or `script`. Arguments come from the instruction unless said otherwise."""
    properties = signature.args_schema.get("properties") or {}
    full = {
        name: schema["default"]
        for name, schema in properties.items()
        if isinstance(schema, Mapping) and "default" in schema
    } | dict(args)
    paths = {
        name: tuple(
            lexical(path, workspace)
            for path in (full[name] if isinstance(full[name], list) else [full[name]])
            if isinstance(path, str)
        )
        for name in signature.paths
        if name in full
    }
    url, method = full.get("url"), full.get("method")
    command, script = full.get("command"), full.get("script")
    argv = [str(word) for word in command] if isinstance(command, list) else None
    script = script if isinstance(script, str) else None
    cwd = paths["cwd"][0] if paths.get("cwd") else workspace
    named = named_files(argv, script, cwd) if signature.takes_command else ()
    return ProposedAction(
        tool=signature.name,
        args=dict(args),
        effect=signature.effect,
        provenance=dict.fromkeys(args, ("instruction",)) | dict(provenance or {}),
        paths=paths,
        argv=argv,
        script=script,
        cwd=cwd,
        host=_host(url) if isinstance(url, str) else None,
        method=method.upper() if isinstance(method, str) else None,
        targets={
            one.text: (lexical(one.directory if one.glob else one.text, cwd),)
            for one in named
            if not (one.glob and one.text.startswith("~"))
        },
    )


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _well_formed(test: InlineTest, signature: ToolSignature, complaints: Complaints) -> bool:
    before = len(complaints.problems)
    known = list(signature.args_schema.get("properties") or {})
    for name in (*test.args, *test.provenance):
        if name not in known:
            expected = f"an argument of {signature.name}: {', '.join(known) or 'it has none'}{nearest(name, known)}"
            complaints.add(_place(test, f"args.{name}"), f"the unknown argument {name!r}", expected)
    for name, value in test.given.items():
        fact = FACTS.get(name)
        if fact is None:
            complaints.add(
                _place(test, f"given.{name}"),
                f"the unknown fact {name!r}",
                f"one of {', '.join(FACTS)}{nearest(name, list(FACTS))}",
            )
        elif not isinstance(value, _FACT_TYPES[fact.type]) or (isinstance(value, bool) and fact.type != "bool"):
            complaints.add(
                _place(test, f"given.{name}"),
                f"the value {short(str(value))!r}",
                f"a value of type {fact.type}: {fact.says}",
            )
    return len(complaints.problems) == before


def _place(test: InlineTest, key: str) -> Place:
    return Place(*(test.places.get(key) or test.places.get(key.partition(".")[0]) or (test.line, test.column)))
