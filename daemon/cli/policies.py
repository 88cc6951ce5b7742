"""`perdure policy`: check the files, and explain what they decide about one action, rule by rule."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation, with_json
from perdure.daemon.cli.page_parts import DECISION
from perdure.daemon.cli.terminal import exact, line, one_line
from perdure.daemon.cli.words import SECOND, count, short_digest
from perdure.daemon.layout import LEDGER
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from perdure.daemon.workspace import LoadedWorkspace
    from perdure.policies.explaining import Explanation, RuleExplanation
    from perdure.policies.model import Facts, Grant, ProposedAction

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@click.group()
@everywhere
def policy() -> None:
    """The files that decide which actions run, which wait for a person, and which never happen."""


# -- check --------------------------------------------------------------------------------------------------------------


@policy.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@with_json
@with_invocation
def check(invocation: Invocation, files: tuple[Path, ...]) -> None:
    """Load policy files and run their own tests (default: the workspace's). Lists every mistake and exits 2."""
    from perdure.daemon.config import load_config
    from perdure.daemon.layout import POLICIES
    from perdure.daemon.tools.registry import tool_specs
    from perdure.daemon.workspace import signatures
    from perdure.policies.lints import lints
    from perdure.policies.loading import load_policies

    config = load_config(invocation.workspace)
    paths = list(files) or [config.workspace / POLICIES]
    policies = load_policies(paths, signatures(tool_specs(config)), workspace=config.workspace)
    remarks = lints(policies)
    rules, tests = len(policies.rules), sum(len(document.tests) for document in policies.documents)
    if invocation.as_json:
        value = {"ok": True, "digest": policies.digest, "files": dict(policies.files), "rules": rules, "tests": tests}
        found = [{"file": r.file, "line": r.line, "code": r.code, "says": r.says} for r in remarks]
        invocation.emit("policy-check", value | {"remarks": found})
        return
    words = f": {count(len(policies.files), 'file')}, {count(rules, 'rule')}, {count(tests, 'test')} passed  "
    invocation.say(("✓ policies", "good"), words, (short_digest(policies.digest), "faint"))
    for remark in remarks:
        invocation.say(
            ("• ", "warn"),
            (f"{remark.file}:{remark.line}", "place"),
            f": {remark.says}",
            (f"  [{remark.code}]", "faint"),
        )


# -- explain ------------------------------------------------------------------------------------------------------------


VERDICT = {"matched": ("✓", "good"), "not matched": ("·", "faint"), "not certain": ("?", "ask")}


@policy.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for editors that complete and check YAML."""
    from perdure.policies.schema import policy_schema

    click.echo(json.dumps(policy_schema(), indent=2, ensure_ascii=False))


@policy.command()
@click.argument("subject", metavar="TOOL|ACTION")
@click.option("--args", "args_text", metavar="JSON", help="The arguments of the call, as a JSON object.")
@click.option("--task", help="The task that would propose it.")
@click.option(
    "--provenance",
    metavar="JSON",
    help='Where arguments come from, such as {"url": ["tool:read_file"]}; default: model.',
)
@click.option("--confidence", type=click.FloatRange(0, 1), default=1.0, show_default=True)
@click.option("--all", "everything", is_flag=True, help="Also the rules about other tools.")
@with_json
@with_invocation
def explain(
    invocation: Invocation,
    subject: str,
    args_text: str | None,
    task: str | None,
    provenance: str | None,
    confidence: float,
    everything: bool,
) -> None:
    """Say what the policies decide about a call of TOOL, or decide now about a past ACTION: every rule, and why or why not.

    Resolves paths and programs as the daemon does. Runs nothing, asks nobody.
    """
    from perdure.daemon.workspace import load_workspace
    from perdure.policies.explaining import explain as explain_action

    loaded = load_workspace(invocation.workspace)
    if subject in loaded.specs:
        args = _json_object(args_text or "{}", "--args")
        sources = _json_object(provenance or "{}", "--provenance")
        origin = {name: sources.get(name, ["model"]) for name in args}
        planner: str = loaded.tasks[task].planner if task is not None and task in loaded.tasks else "model"
        tool, asked_by = subject, task or "none"
    else:
        tool, args, origin, asked_by, planner, confidence = _past(invocation, loaded, subject, confidence)
    action = _action(loaded, tool, args, origin)
    facts = _facts(invocation, asked_by, planner, confidence)
    grants = _grants(invocation, asked_by)
    explanation = explain_action(loaded.policies, action, facts, grants=grants)
    if invocation.as_json:
        invocation.emit("explanation", _explanation_json(action, explanation))
        return
    about = {(bound.rule.file, bound.rule.line) for bound in loaded.policies.bound(tool)}
    rules = [rule for rule in explanation.rules if everything or (rule.file, rule.line) in about]
    _print(invocation, action, explanation, rules)


def _json_object(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise PerdureError(
            "read", option, f"it is not JSON: {error}", 'Quote it for the shell: --args \'{"path": "reports/a.md"}\''
        ) from None
    if not isinstance(value, dict):
        raise PerdureError("read", option, f"found {exact(value)}", "Give a JSON object")
    return value


def _past(
    invocation: Invocation, loaded: LoadedWorkspace, subject: str, confidence: float
) -> tuple[str, dict[str, Any], dict[str, list[str]], str, str, float]:
    from perdure.state import projections

    reader = invocation.ledger if (invocation.state_dir / LEDGER).exists() else None
    try:
        row = projections.action(reader, projections.resolve(reader, "action", subject)) if reader is not None else None
    except PerdureError:
        row = None
    if row is None or reader is None:
        cause = "there is neither a tool of this name nor an action of this id"
        raise PerdureError("explain", subject, cause, f"Tools here: {', '.join(sorted(loaded.specs))}")
    payload = reader.payload(row.seq_proposed)
    if not isinstance(payload, dict):
        raise PerdureError(
            "explain", f"the action {subject}", "its arguments were erased", "Explain a call with --args instead"
        )
    session = projections.session(reader, row.session)
    args = cast("dict[str, Any]", payload.get("args") or {})
    origin = cast("dict[str, list[str]]", payload.get("provenance") or {})
    return (
        row.tool,
        args,
        origin,
        row.task,
        session.planner if session else "model",
        row.confidence if confidence == 1.0 else confidence,
    )


def _action(
    loaded: LoadedWorkspace, tool: str, args: Mapping[str, Any], origin: Mapping[str, Sequence[str]]
) -> ProposedAction:
    """The action as policies see it, prepared by the tool itself: links, programs and hosts resolved."""
    from perdure.daemon.governance import as_policies_see
    from perdure.daemon.planners.moves import Proposal
    from perdure.daemon.tools.registry import build_tools

    # Only `prepare` is called, which has no effects and needs neither memory nor notifier.
    tools = build_tools(loaded.config, memory=cast("Any", None), notifier=cast("Any", None))
    if tool not in tools:
        raise PerdureError(
            "explain", f"a call of {tool}", "there is no such tool any more", f"Tools here: {', '.join(sorted(tools))}"
        )
    prepared = tools[tool].prepare(args)
    return as_policies_see(prepared, Proposal(tool=tool, args=args, provenance=origin, confidence=1.0))


def _facts(invocation: Invocation, task: str, planner: str, confidence: float) -> Facts:
    from perdure.policies.model import Facts

    local = datetime.fromtimestamp(invocation.now() / SECOND, UTC).astimezone(invocation.zone)
    return Facts(
        task=task,
        planner=planner,
        confidence=confidence,
        hour=local.hour,
        minute=local.minute,
        weekday=WEEKDAYS[local.weekday()],
    )


def _grants(invocation: Invocation, task: str) -> list[Grant]:
    from perdure.policies.model import Grant
    from perdure.state import projections

    if not (invocation.state_dir / LEDGER).exists():
        return []
    rows = projections.grants(invocation.ledger, task=task)
    return [
        Grant(id=r.grant, rule=r.rule, task=r.task, tool=r.tool, pattern=r.pattern)
        for r in rows
        if r.pattern is not None
    ]


def _explanation_json(action: ProposedAction, explanation: Explanation) -> dict[str, Any]:
    decision = explanation.decision
    keys = ("name", "file", "line", "decide", "shadow", "verdict", "why")
    return {
        "tool": action.tool,
        "args": dict(action.args),
        "paths": {name: list(paths) for name, paths in action.paths.items()},
        "decision": decision.decision,
        "reason": decision.reason,
        "unmet": list(explanation.unmet),
        "grant": decision.grant,
        "programs": list(explanation.programs),
        "files": list(explanation.files),
        "unknown": list(explanation.unknown),
        "rules": [{key: getattr(rule, key) for key in keys} for rule in explanation.rules],
    }


def _print(
    invocation: Invocation, action: ProposedAction, explanation: Explanation, rules: Sequence[RuleExplanation]
) -> None:
    words, style = DECISION.get(explanation.decision.decision, (explanation.decision.decision, ""))
    invocation.say((words, style), f": {explanation.decision.reason}")
    for name, paths in action.paths.items():
        invocation.say((f"  {name} → ", "faint"), ", ".join(paths))
    if explanation.programs:
        invocation.say(("  runs ", "faint"), ", ".join(explanation.programs))
    if explanation.files:
        invocation.say(("  names ", "faint"), ", ".join(map(one_line, explanation.files)))
    for unknown in explanation.unknown:
        invocation.say(("  cannot be told: ", "ask"), unknown)
    invocation.say()
    table = Table.grid(padding=(0, 2))
    for column in range(5):  # the verdict and what it decides stay whole, however narrow
        table.add_column(overflow="fold", no_wrap=column < 2)
    for rule in rules:
        sign, style = VERDICT.get(rule.verdict, ("·", ""))
        asks, asks_style = DECISION.get(rule.decide, (rule.decide, ""))
        matched = rule.verdict == "matched"
        table.add_row(
            Text(sign, style),
            Text(("shadow: " if rule.shadow else "") + asks, asks_style if matched else "faint"),
            Text(one_line(rule.name), "" if matched else "faint"),
            Text(one_line(rule.why), "faint"),
            Text(one_line(f"{rule.file}:{rule.line}"), "place"),
        )
    invocation.out.print(table)
    if not any(rule.verdict != "not matched" for rule in rules):
        invocation.out.print(line(("No rule matches this call: what nothing decides is asked about.", "ask")))


# The commands that look back register themselves on the group above.
from perdure.daemon.cli import policy_history  # noqa: E402, F401 — they need `policy` to be there
