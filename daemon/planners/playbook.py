"""The deterministic planner: a task's steps, walked anew for every move, with what was done taken from the record.

Walking anew keeps no state between moves, so a session that resumes another stands exactly where that one stood."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perdure.daemon.planners import expressions
from perdure.daemon.planners.expressions import ExpressionFault, Missing
from perdure.daemon.planners.moves import Finish, Malformed, Move, Proposal, Reply, Request, Taken, View
from perdure.daemon.planners.saved import bounded_saved
from perdure.daemon.planners.used_fields import used_fields
from perdure.daemon.provenance import Origin, by_trust, origin_of_result
from perdure.daemon.recollection import RECALL, origin_of_recalled
from perdure.daemon.tools.model import ToolSpec
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.tasks import Step, Task

ITEMS_MAX = 10_000
ARGUMENT_CHARACTERS_MAX = 1_000_000
SLOT_NAMES = ("date", "time", "due", "kind", "id")


class PlaybookPlanner:
    """Proposes a playbook's steps in order. Confidence is 1: the operator wrote it."""

    name = "playbook"
    model: str | None = None
    factor = 1.0

    def __init__(self, task: Task) -> None:
        self._task = task

    def overhead(self, tools: Sequence[ToolSpec]) -> int:
        """0: no model is called."""
        del tools
        return 0

    def request(self, view: View) -> Request | None:
        """None: no model is called."""
        del view
        return None

    async def propose(self, view: View, request: Request | None, seconds_max: float) -> Reply:
        """The first step that the record does not settle; Finish after the last; Malformed (`plan-error`) where an
        expression has no value, or a step failed, was refused or waits and the playbook does not go on without it."""
        del request, seconds_max
        try:
            return Reply(move=_Walk(self._task, view).move())
        except PlanError as error:
            return Reply(move=Malformed(reason="plan-error", detail=str(error)))


class PlanError(Exception):
    """The playbook cannot go on; the text names the place and the reason."""


@dataclass(slots=True)
class _Scope:
    """The variables that expressions may use here, and where each value came from."""

    values: dict[str, JSON]
    origins: dict[str, Origin]

    def with_item(self, item: JSON, index: int, origin: Origin) -> _Scope:
        return _Scope(
            {**self.values, "item": item, "index": index},
            {**self.origins, "item": origin, "index": Origin(origin.sources)},
        )

    def origin_of_items(self, value: JSON) -> Origin:
        """Where the elements of a list come from: of a plain `${found.ips}`, the fields that its elements have too."""
        whole = expressions.parse(value).whole if isinstance(value, str) else None
        used = used_fields(whole.source) if whole is not None else frozenset()
        plain = whole is not None and len(used) == 1 and re.fullmatch(r"[\s\w.]+", whole.source, re.ASCII) is not None
        name, field = next(iter(used)) if plain else ("", ())
        return self.origins[name].within(field) if name in self.origins else Origin(self.sources_of(value))

    def sources_of(self, value: JSON) -> tuple[str, ...]:
        """Where an argument's value comes from: its literal text from the instruction, its holes from what they use."""
        found: set[str] = set()
        holes = 0
        for template in expressions.templates(value):
            for hole in template.holes:
                holes += 1
                used = [(name, part) for name, part in used_fields(hole.source) if name in self.origins]
                found.update(source for name, part in used for source in self.origins[name].of(part))
                if not used:
                    found.add("instruction")
            if template.has_text:
                found.add("instruction")
        return by_trust(found) if found and holes else ("instruction",)


@dataclass(slots=True)
class _Tally:
    """What became of the steps, for the closing words."""

    done: int = 0
    failed: int = 0
    refused: int = 0
    waiting: int = 0
    passed_over: int = 0

    def words(self) -> str:
        parts = [f"{self.done} step{'s' if self.done != 1 else ''} done"]
        for count, word in (
            (self.passed_over, "passed over"),
            (self.waiting, "waiting for a person"),
            (self.refused, "refused"),
            (self.failed, "failed"),
        ):
            if count:
                parts.append(f"{count} {word}")
        return ", ".join(parts)


@dataclass(slots=True)
class _Walk:
    """One pass over the playbook, up to the first step that is not settled."""

    task: Task
    view: View
    saved: dict[str, JSON] = field(default_factory=dict)
    tally: _Tally = field(default_factory=_Tally)

    def move(self) -> Move:
        steps = self.task.steps
        scope = _first_scope(steps, self.view)
        # What this session did counts over what it took over; the view's `taken` may list both.
        current = {
            taken.proposal.key: taken
            for taken in self.view.taken
            if taken.proposal.key is not None and self.view.recorded.get(taken.proposal.key) is not taken
        }
        for number, step in enumerate(steps, start=1):
            results: list[JSON] = []
            ran = False
            for key, inner, title in self._instances(number, step, scope):
                taken = current.get(key)
                recorded = self.view.recorded.get(key) if taken is None else None
                if taken is None and recorded is None:
                    if not self._wanted(step, inner):
                        self.tally.passed_over += 1
                        continue
                    return self._proposal(step, key, inner, title)
                if recorded is not None and self._again(step, key, recorded):
                    return self._proposal(step, key, inner, title)
                settled = taken or recorded
                assert settled is not None
                self._settle(step, title, settled)
                if settled.status is not None and (settled.status == "succeeded" or settled.result is not None):
                    ran = True
                    results.append(settled.result)
            if step.save is not None and (ran or step.for_each is not None):
                self.saved[step.save] = results if step.for_each is not None else results[-1]
                scope.values[step.save] = self.saved[step.save]
                scope.origins[step.save] = _origin(step, self.saved[step.save], self.view)
        return self._finish()

    def _instances(self, number: int, step: Step, scope: _Scope) -> Iterator[tuple[str, _Scope, str]]:
        """Each time the step is to be taken: its key, its variables, its name for people."""
        title = f"step {number} of {len(self.task.steps)}"
        if step.for_each is None:
            yield str(number), scope, title
            return
        items = self._value(step, step.for_each, scope)
        if not isinstance(items, list):
            shown = "nothing" if isinstance(items, Missing) else _kind(items)
            raise PlanError(f"{self._place(step)}: for_each needs a list, `{step.for_each}` gave {shown}")
        if len(items) > ITEMS_MAX:
            raise PlanError(f"{self._place(step)}: for_each goes over {len(items)} items; the most is {ITEMS_MAX}")
        origin = scope.origin_of_items(step.for_each)
        for index, item in enumerate(items):
            inner = scope.with_item(item, index, origin)
            yield f"{number}[{index}]", inner, f"{title}, item {index + 1} of {len(items)}"

    def _wanted(self, step: Step, scope: _Scope) -> bool:
        if step.when is None:
            return True
        source = condition(step.when)
        try:
            value = expressions.evaluate(source, scope.values)
        except ExpressionFault as fault:
            raise PlanError(f"{self._place(step)}: when: {fault}") from None
        if not isinstance(value, bool):
            raise PlanError(f"{self._place(step)}: when: `{source}` must be true or false, it gave {_kind(value)}")
        return value

    def _proposal(self, step: Step, key: str, scope: _Scope, title: str) -> Proposal:
        args: dict[str, JSON] = {}
        provenance: dict[str, tuple[str, ...]] = {}
        for name, raw in step.args.items():
            value = self._value(step, raw, scope)
            if isinstance(value, Missing):
                continue
            if (size := _characters(value)) > ARGUMENT_CHARACTERS_MAX:
                raise PlanError(
                    f"{self._place(step)}: the argument {name} has {size} characters; "
                    f"at most {ARGUMENT_CHARACTERS_MAX} are allowed"
                )
            args[name] = value
            provenance[name] = scope.sources_of(raw)
        return Proposal(
            tool=step.do,
            args=args,
            provenance=provenance,
            confidence=1.0,
            key=key,
            says=f"{title} ({self._place(step)})",
            on_escalate=step.on_escalate,
            on_error=step.on_error,
        )

    def _again(self, step: Step, key: str, recorded: Taken) -> bool:
        """Whether a recorded step is to be proposed again: decided or asked for, it never ran, and is not skipped."""
        if recorded.proposal.tool != step.do:
            raise PlanError(
                f"{self._place(step)}: step {key} is now {step.do}, but {recorded.proposal.tool} was done under this "
                "key before: the playbook was edited while its session waited. Run it anew with `perdure session run`"
            )
        if recorded.status is not None:
            return False
        return recorded.decision == "auto" or (recorded.decision == "escalate" and step.on_escalate == "park")

    def _settle(self, step: Step, title: str, taken: Taken) -> None:
        """Count a settled step, or stop where the playbook says that it does not go on without it."""
        if taken.status == "succeeded" or (taken.status is None and taken.decision == "auto"):
            self.tally.done += 1
        elif taken.status is not None:
            self.tally.failed += 1
            if step.on_error == "stop":
                ended = "failed" if taken.status == "failed" else "ended with its outcome unknown"
                raise PlanError(f"{self._place(step)}: {title} ({step.do}) {ended}: {taken.error or 'no reason given'}")
        elif taken.decision == "deny":
            # whoever goes on without waiting for the answer goes on after a no as well
            self.tally.refused += 1
            if step.on_error == "stop" and step.on_escalate == "park":
                raise PlanError(f"{self._place(step)}: {title} ({step.do}) was refused: {taken.reason}")
        else:
            self.tally.waiting += 1
            if step.on_escalate == "park":
                raise PlanError(f"{self._place(step)}: {title} ({step.do}) waits for a person: {taken.reason}")

    def _finish(self) -> Finish:
        # A step that did not run this time keeps the value it saved before: an offset must survive a quiet session.
        names = {step.save for step in self.task.steps if step.save is not None}
        kept = {name: value for name, value in self.view.last.items() if name in names}
        saved, cut = bounded_saved({**kept, **self.saved})
        words = self.tally.words()
        if cut:
            words += f"; shortened for `last`: {', '.join(cut)} (the ledger has the whole)"
        return Finish(says=words, saved=saved)

    def _value(self, step: Step, raw: JSON, scope: _Scope) -> JSON | Missing:
        try:
            return expressions.filled(raw, scope.values)
        except ExpressionFault as fault:
            raise PlanError(f"{self._place(step)}: {fault}") from None

    def _place(self, step: Step) -> str:
        return f"{self.task.path}:{step.line}"


def condition(when: str) -> str:
    """The CEL source of a step's `when`, which may be written bare or as one `${…}`."""
    text = when.strip()
    if not text.startswith("${"):
        return when
    try:
        hole = expressions.parse(text).whole
    except ExpressionFault:
        return when
    return hole.source if hole is not None else when


def _origin(step: Step, result: JSON, view: View) -> Origin:
    """Where a result of the step came from."""
    if step.do == RECALL:
        return origin_of_recalled(result, view.behind)
    return origin_of_result(next((spec for spec in view.tools if spec.name == step.do), None), step.do)


def _first_scope(steps: Sequence[Step], view: View) -> _Scope:
    saving = [(step.save, step) for step in steps if step.save is not None]
    values: dict[str, JSON] = {"last": last_variable(view.last)}
    # a name that `last` does not hold may be that of a field
    parts = tuple(
        (name if name in view.last else "", _origin(step, view.last.get(name), view)) for name, step in saving
    )
    origins = {"last": Origin(("memory",), parts=parts)}
    for name in SLOT_NAMES:
        values[f"slot.{name}"] = view.slot.get(name, "")
        origins[f"slot.{name}"] = Origin(("config",))
    for name, step in saving:
        values[name] = None
        origins[name] = _origin(step, None, view)
    return _Scope(values, origins)


def last_variable(last: Mapping[str, JSON]) -> dict[str, JSON]:
    """What `last` is in expressions: the saved names and, where no name is in the way, the fields of saved objects
    (`save: found` makes both `last.found.offset` and `last.offset`; of two the later wins)."""
    fields = {name: value for saved in last.values() if isinstance(saved, dict) for name, value in saved.items()}
    return {**fields, **last}


def _characters(value: JSON) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_characters(element) + 1 for element in value)
    if isinstance(value, dict):
        return sum(len(key) + _characters(element) + 1 for key, element in value.items())
    return 1


def _kind(value: JSON) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    words = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return next(word for kind, word in words.items() if isinstance(value, kind))
