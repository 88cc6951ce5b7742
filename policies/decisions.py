"""Policies in force: the rules of all files, bound to the tools, and the two passes over one action.

Every matching rule counts, whatever the order of rules and files: deny > grant > escalate > auto, and what no rule decides
escalates. A rule that cannot be evaluated escalates, and no grant answers that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from perdure.policies.conditions import Condition, Vocabulary
from perdure.policies.matching import Binder, Check, Question, Verdict, certainly_false, value_fits
from perdure.policies.model import (
    NOTHING_DECIDES,
    Decided,
    Decision,
    Facts,
    Grant,
    Obligations,
    ProposedAction,
    RuleHit,
    ToolSignature,
)
from perdure.policies.patterns import lexical, name_glob, text_glob
from perdure.policies.rule_index import GROUP_MAX, RuleIndex
from perdure.policies.rules import Equals, Glob, OneOf, PolicyFile, Rule

if TYPE_CHECKING:
    from perdure.policies.explaining import Explanation

EXPIRES_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule with its checks for one tool; `error` is the hit of one that could not be evaluated."""

    rule: Rule
    hit: RuleHit
    error: RuleHit
    checks: tuple[tuple[str, Check], ...]
    tests: tuple[Check, ...]  # the checks without their keys

    def verdict(self, question: Question) -> Verdict:
        """Whether the rule is about this action: True, False, or in words why that cannot be told."""
        doubt: Verdict = True
        for check in self.tests:
            found = check(question)
            if found is False:
                return False
            if found is not True:
                doubt = found
        return doubt


@dataclass(slots=True)
class _Counted:
    """The rules that counted in one evaluation."""

    hits: list[RuleHit] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    errors: list[tuple[RuleHit, str]] = field(default_factory=list)


def unmet_obligations(obligations: Obligations, facts: Facts) -> tuple[str, ...]:
    """In words, each obligation that the facts do not meet. A playbook never votes: its steps are what a person wrote."""
    unmet: list[str] = []
    if obligations.votes_ahead_by and facts.planner != "playbook" and facts.votes_ahead < obligations.votes_ahead_by:
        unmet.append(f"votes ahead by {facts.votes_ahead}, asked for {obligations.votes_ahead_by}")
    if not facts.confidence >= obligations.confidence:
        unmet.append(f"confidence {facts.confidence:.2f}, asked for {obligations.confidence:.2f}")
    if not facts.session_confidence >= obligations.session_confidence:
        asked = obligations.session_confidence
        unmet.append(f"session confidence {facts.session_confidence:.2f}, asked for {asked:.2f}")
    if obligations.max_per_hour is not None and facts.tool_calls_hour >= obligations.max_per_hour:
        unmet.append(f"{facts.tool_calls_hour} calls in the last hour, at most {obligations.max_per_hour}")
    return tuple(unmet)


class PolicySet:
    """The policies in force. Pure and immutable: it may be asked from anywhere, and replaced as a whole by a reload.

    `digest` is the hash of all files' contents; `files` maps each file to its SHA-256. `resolve` follows the links in the
    directories that rules name; it is used while binding only."""

    def __init__(
        self,
        documents: Sequence[PolicyFile],
        signatures: Mapping[str, ToolSignature],
        *,
        workspace: str,
        digest: str,
        files: Mapping[str, str],
        resolve: Callable[[str], str],
    ) -> None:
        self.documents = tuple(documents)
        self.signatures = signatures
        self.workspace = workspace
        self.digest = digest
        self.files = files
        self.rules = tuple(
            sorted(
                (rule for document in documents for rule in document.rules),
                key=lambda rule: (rule.file, rule.line, rule.name),
            )
        )
        self._resolve = resolve
        self.vocabularies = {name: Vocabulary(signature) for name, signature in signatures.items()}
        self._bound: dict[str, RuleIndex[BoundRule]] = {name: self._bind(name) for name in signatures}

    # -- binding ------------------------------------------------------------------------------------------------------

    def bound(self, tool: str) -> Sequence[BoundRule]:
        """The rules about `tool`. One that was not known at load still meets every rule that names it or `*`."""
        return self._index(tool).rules

    def _index(self, tool: str) -> RuleIndex[BoundRule]:
        found = self._bound.get(tool)
        return self._bind(tool) if found is None else found

    def _bind(self, tool: str) -> RuleIndex[BoundRule]:
        signature = self.signatures.get(tool) or ToolSignature(name=tool, effect="once", args_schema={})
        binder = Binder(signature, self.workspace, self._resolve)
        vocabulary = self.vocabularies.get(tool)
        rules = [rule for rule in self.rules if any(name_glob(glob)(tool) for glob in rule.tools)]
        bound: list[BoundRule] = []
        for rule in rules:
            hit = RuleHit(name=rule.name, file=rule.file, line=rule.line, decide=rule.decide or "require")
            checks = binder.checks(rule, _condition(rule, vocabulary))
            tests = tuple(check for _, check in checks)
            bound.append(BoundRule(rule, hit, replace(hit, decide="error"), checks, tests))
        index = RuleIndex(bound)
        conditional: dict[bool, list[int]] = {False: [], True: []}
        for position, one in enumerate(bound):
            if vocabulary is not None and [key for key, _ in one.checks] == ["when"]:
                conditional[one.rule.require is not None].append(position)
            else:
                index.add(position, binder.found_by(one.rule))
        for obligation, positions in conditional.items():
            for start in range(0, len(positions), GROUP_MAX):
                group = positions[start : start + GROUP_MAX]
                texts = [bound[position].rule.when or "" for position in group]
                together = vocabulary.compile_any(texts, obligation=obligation) if vocabulary is not None else None
                if together is None or len(group) == 1:
                    for position in group:
                        index.add(position, None)
                else:
                    index.group(group, certainly_false(together))
        return index

    def question(self, action: ProposedAction, facts: Facts, *, written: bool = False) -> Question:
        """The action and its facts, ready to be checked against rules."""
        return Question(action, facts, self.vocabularies.get(action.tool), written=written)

    # -- the two passes -----------------------------------------------------------------------------------------------

    def obligations(self, action: ProposedAction, facts: Facts) -> Obligations:
        """First pass: what must hold before the action may be automatic; the strictest of all matching rules."""
        return self.required(self.question(action, facts))

    def required(self, question: Question) -> Obligations:
        """The first pass over a prepared question."""
        asking = [
            bound
            for bound, verdict in self._standing(question)
            if verdict is True and bound.rule.require is not None and not bound.rule.shadow
        ]
        return strictest([bound.rule for bound in asking], [bound.hit for bound in asking])

    def _standing(self, question: Question) -> Sequence[tuple[BoundRule, bool | str]]:
        """Every rule that is about the action, or of which that cannot be told, in order; found once for both passes."""
        known: Sequence[tuple[BoundRule, bool | str]] | None = question.standing
        if known is None:
            found: list[tuple[BoundRule, bool | str]] = []
            for bound in self._index(question.action.tool).candidates(question):
                verdict: Verdict = True
                for check in bound.tests:
                    one = check(question)
                    if one is False:
                        verdict = False
                        break
                    if one is not True:
                        verdict = one
                if verdict is not False:
                    found.append((bound, verdict))
            question.standing = known = found
        return known

    def decide(
        self, action: ProposedAction, facts: Facts, *, grants: Sequence[Grant] = (), unmet: Sequence[str] = ()
    ) -> Decision:
        """Second pass: auto, escalate or deny. `unmet` says in words which obligations are not met."""
        return self.answer(self.question(action, facts), grants=grants, unmet=unmet)

    def answer(
        self,
        question: Question,
        *,
        grants: Sequence[Grant] = (),
        unmet: Sequence[str] | None = None,
        enforce_shadow: bool = False,
    ) -> Decision:
        """Both passes over a prepared question at once; `unmet` None: the facts themselves say which obligations are met.
        `enforce_shadow` lets shadow rules count like all others."""
        live, shadow = _Counted(), _Counted()
        for bound, verdict in self._standing(question):
            counted = shadow if bound.rule.shadow and not enforce_shadow else live
            if verdict is True:
                counted.hits.append(bound.hit)
                counted.rules.append(bound.rule)
            elif isinstance(verdict, str):
                counted.errors.append((bound.error, verdict))
        if unmet is None:
            unmet = unmet_obligations(strictest(live.rules, live.hits), question.facts)
        decision = self._compose(live, question, grants, unmet)
        if not shadow.hits and not shadow.errors:
            return decision
        both = _Counted(live.hits + shadow.hits, live.rules + shadow.rules, live.errors + shadow.errors)
        imagined_unmet = [*unmet, *unmet_obligations(strictest(shadow.rules, shadow.hits), question.facts)]
        imagined = self._compose(both, question, grants, imagined_unmet).decision
        return replace(
            decision,
            shadow=imagined if imagined != decision.decision else None,
            shadow_rules=tuple(shadow.hits) + tuple(hit for hit, _ in shadow.errors),
        )

    def explain(self, action: ProposedAction, facts: Facts, grants: Sequence[Grant] = ()) -> Explanation:
        """The decision, and of every rule whether it matched and why not."""
        from perdure.policies.explaining import explain

        return explain(self, action, facts, grants=grants)

    def _compose(
        self, counted: _Counted, question: Question, grants: Sequence[Grant], unmet: Sequence[str]
    ) -> Decision:
        hits = counted.hits
        rules = (*hits, *(hit for hit, _ in counted.errors)) if counted.errors else tuple(hits)
        denied: list[RuleHit] = []
        asking: list[RuleHit] = []
        automatic: list[RuleHit] = []
        for hit in hits:
            if hit.decide == "auto":
                automatic.append(hit)
            elif hit.decide == "escalate":
                asking.append(hit)
            elif hit.decide == "deny":
                denied.append(hit)
        if denied:
            return self._decision("deny", rules, f"denied by {_cited(denied)}")
        undecided = not asking and not automatic
        questions = [hit.name for hit in asking] or ([NOTHING_DECIDES] if undecided else [])
        granted = {name: grant for name in questions if (grant := self._grant(name, question, grants)) is not None}
        open_questions = tuple(name for name in questions if name not in granted)
        reasons: list[str] = []
        if any(hit.name not in granted for hit in asking):
            reasons.append(f"escalated by {_cited([hit for hit in asking if hit.name not in granted])}")
        reasons += [f"{_cited([hit])} could not be evaluated ({why})" for hit, why in counted.errors]
        reasons += list(unmet)
        if undecided and NOTHING_DECIDES not in granted:
            reasons.append("no rule decides about this action")
        if reasons:
            return self._escalation(
                rules,
                "; ".join(reasons),
                counted,
                plain=not (counted.errors or unmet or undecided),
                names=open_questions,
            )
        if granted:
            given = list(granted.values())
            rules += tuple(RuleHit(name=grant.rule, file="ledger", line=0, decide="grant") for grant in given)
            reason = f"granted by a person: {', '.join(grant.id for grant in given)}"
            return replace(self._decision("auto", rules, reason), grant=given[0].id)
        return self._decision("auto", rules, f"allowed by {_cited(automatic)}")

    def _decision(self, decided: Decided, rules: tuple[RuleHit, ...], reason: str) -> Decision:
        return Decision(decision=decided, rules=rules, reason=reason, policies=self.digest)

    def _escalation(
        self, rules: tuple[RuleHit, ...], reason: str, counted: _Counted, *, plain: bool, names: tuple[str, ...]
    ) -> Decision:
        """The shortest expiry of the rules that ask; silence approves only if each of them says so and nothing else asks."""
        asking = [rule for rule in counted.rules if rule.decide == "escalate"]
        seconds = min(
            (rule.expires_seconds for rule in asking if rule.expires_seconds is not None), default=EXPIRES_SECONDS
        )
        approves = plain and all(rule.on_expiry == "approve" for rule in asking)
        return Decision(
            decision="escalate",
            rules=rules,
            reason=reason,
            policies=self.digest,
            expires_seconds=seconds,
            on_expiry="approve" if approves else "deny",
            answerable=names,
        )

    def _grant(self, name: str, question: Question, grants: Sequence[Grant]) -> Grant | None:
        for grant in grants:
            if grant.rule == name and self.covers(grant, question):
                return grant
        return None

    def covers(self, grant: Grant, question: Question) -> bool:
        """Whether the grant is about this action: its task, its tool, and every argument within the pattern, none beside."""
        action = question.action
        if grant.task != question.facts.task or grant.tool != action.tool or set(grant.pattern) != set(action.args):
            return False
        return all(self._fits(name, wanted, action) for name, wanted in grant.pattern.items())

    def _fits(self, name: str, wanted: object, action: ProposedAction) -> bool:
        is_pattern = isinstance(wanted, Mapping) and len(wanted) == 1 and next(iter(wanted)) in {"glob", "in"}
        if not is_pattern:
            return value_fits(Equals(wanted))(action.args[name])
        assert isinstance(wanted, Mapping)
        if "in" in wanted:
            return value_fits(OneOf(tuple(wanted["in"])))(action.args[name])
        pattern = str(wanted["glob"])
        paths = action.paths.get(name)
        if paths:  # a glob over a path is about where it leads, not about how it is spelled
            check = text_glob(lexical(pattern, self.workspace))
            return all(check(path) for path in paths)
        return value_fits(Glob(pattern))(action.args[name])


def strictest(rules: Sequence[Rule], hits: Sequence[RuleHit]) -> Obligations:
    """The strictest of each obligation that these rules ask for; `hits` are the same rules, in the same order."""
    # one pass without generators: at every step, and a third of its time otherwise
    ahead = votes_max = 0
    texts = False
    confidence = session_confidence = 0.0
    per_hour: int | None = None
    asking: list[RuleHit] = []
    for rule, hit in zip(rules, hits, strict=True):
        asked = rule.require
        if asked is None:
            continue
        asking.append(hit if hit.decide == "require" else replace(hit, decide="require"))
        confidence = max(confidence, asked.confidence)
        session_confidence = max(session_confidence, asked.session_confidence)
        if asked.max_per_hour is not None and (per_hour is None or asked.max_per_hour < per_hour):
            per_hour = asked.max_per_hour
        if asked.votes_ahead_by:
            votes_max = min(votes_max, asked.votes_max) if ahead else asked.votes_max
            ahead = max(ahead, asked.votes_ahead_by)
            texts = texts or asked.votes_texts
    if not asking:
        return _NOTHING_ASKED
    return Obligations(
        votes_ahead_by=ahead,
        votes_max=max(votes_max, ahead),
        votes_texts=texts,
        confidence=confidence,
        session_confidence=session_confidence,
        max_per_hour=per_hour,
        rules=tuple(asking),
    )


_NOTHING_ASKED = Obligations()


def _condition(rule: Rule, vocabulary: Vocabulary | None) -> Condition | None:
    if rule.when is None:
        return None
    if vocabulary is None:
        return Condition(rule.when, _unknown_tool)
    return vocabulary.compile(rule.when, obligation=rule.require is not None)


def _unknown_tool(_activation: object) -> object:
    raise LookupError("the tool was not known when the policies were loaded")


def _cited(hits: Sequence[RuleHit]) -> str:
    cited = [f"{hit.name!r} ({hit.file}:{hit.line})" for hit in hits[:5]]
    more = len(hits) - len(cited)
    return ", ".join(cited) + (f" and {more} more" if more else "")
