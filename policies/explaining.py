"""Why an action is decided as it is: every rule about its tool, whether it matched, and if not, at which of its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.policies.decisions import BoundRule, PolicySet, strictest, unmet_obligations
from perdure.policies.matching import Question
from perdure.policies.model import Decision, Facts, Grant, Obligations, ProposedAction
from perdure.policies.printing import rule_data


@dataclass(frozen=True, slots=True)
class RuleExplanation:
    """One rule: `verdict` is matched, not matched or not certain; `why` says which of its words decided that."""

    name: str
    file: str
    line: int
    decide: str
    shadow: bool
    verdict: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, what it obliges to, and every rule of the policies in force, matching ones first. Of a command: the programs
    that it runs, the files that it names (as they lie), and what cannot be told of either."""

    decision: Decision
    obligations: Obligations
    unmet: tuple[str, ...]
    rules: tuple[RuleExplanation, ...]
    programs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def explain(
    policies: PolicySet, action: ProposedAction, facts: Facts, *, grants: Sequence[Grant] = (), written: bool = False
) -> Explanation:
    """The decision on the action and the part that every rule had in it. `written`: judge paths as written."""
    question = policies.question(action, facts, written=written)
    about = policies.bound(action.tool)
    verdicts = [(bound, bound.verdict(question)) for bound in about]
    counted = [bound for bound, verdict in verdicts if verdict is True and not bound.rule.shadow]
    obligations = strictest([bound.rule for bound in counted], [bound.hit for bound in counted])
    unmet = unmet_obligations(obligations, facts)
    rules = [_explained(bound, question) for bound, _ in verdicts]
    named = {(bound.rule.file, bound.rule.line) for bound in about}
    for rule in policies.rules:
        if (rule.file, rule.line) not in named:
            why = f"it is about {', '.join(rule.tools)}"
            rules.append(
                RuleExplanation(
                    rule.name, rule.file, rule.line, rule.decide or "require", rule.shadow, "not matched", why
                )
            )
    order = {"matched": 0, "not certain": 1, "not matched": 2}
    analysis = question.analysis
    own = {path for paths in action.paths.values() for path in paths}
    files = [f"{path}/…" for path in question.reach.trees] + [path for path in question.reach.paths if path not in own]
    return Explanation(
        decision=policies.answer(question, grants=grants),
        obligations=obligations,
        unmet=unmet,
        rules=tuple(sorted(rules, key=lambda one: (order[one.verdict], one.file, one.line))),
        programs=tuple(map(str, analysis.programs)) if analysis else (),
        files=tuple(dict.fromkeys(files)),
        unknown=(*analysis.unknown, *analysis.unlocated) if analysis else (),
    )


def _explained(bound: BoundRule, question: Question) -> RuleExplanation:
    rule = bound.rule
    verdict, why = "matched", "everything it names fits"
    for key, check in bound.checks:
        found = check(question)
        if found is False:
            verdict, why = "not matched", _because(key, bound, question)
            break
        if found is not True:
            verdict, why = "not certain", f"`{key}`: {found}; that counts as a question"
    if not bound.checks:
        why = "it names nothing but the tool"
    return RuleExplanation(rule.name, rule.file, rule.line, rule.decide or "require", rule.shadow, verdict, why)


def _because(key: str, bound: BoundRule, question: Question) -> str:
    """What the rule wants of `key`, and what the action has there."""
    rule, action = bound.rule, question.action
    data = rule_data(rule)
    head, _, name = key.partition(".")
    wanted = data[head][name] if name else data.get(head, "programs that can all be told")
    if head == "when":
        return f"`when: {rule.when}` is false"
    if head == "path":
        reach = question.reach
        has = ", ".join((*reach.paths, *reach.trees)) or "no path"
        if reach.doubt is not None:
            has += f"; not certain: {reach.doubt}"
    elif head == "program":
        analysis = question.analysis
        has = "no command" if analysis is None else ", ".join(map(str, analysis.programs)) or "no program"
        if analysis is not None and analysis.unknown:
            has += f"; not certain: {'; '.join(analysis.unknown)}"
        elif analysis is not None and analysis.writes:
            has += f"; writes {', '.join(analysis.writes)}"
    elif head == "provenance":
        names = list(action.args) if name == "*" else [name] if name in action.args else []
        told = [f"{each} from {', '.join(action.provenance.get(each, ())) or 'unknown'}" for each in names]
        has = "; ".join(told) or ("no argument" if name == "*" else f"no {name}")
    elif head == "args":
        has = ", ".join(action.paths.get(name, ())) or (
            repr(action.args[name])[:200] if name in action.args else "not given"
        )
    else:
        has = getattr(action, head) or "none"
    return f"`{key}` wants {_brief(wanted)} and the action has {has}"


def _brief(wanted: object) -> str:
    text = str(wanted)
    return text if len(text) <= 120 else f"{text[:119]}…"
