"""Tasks: Markdown files with a head (schedule, tools, bounds, postconditions) and an instruction or a playbook's steps."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol
from zoneinfo import ZoneInfo

from perdure.daemon.front_matter import (
    Bounds,
    FrontMatter,
    IfMissed,
    OnlyIf,
    Playbook,
    ScheduleEntry,
    StepEntry,
)
from perdure.daemon.planners import expressions
from perdure.daemon.planners.expressions import ExpressionFault
from perdure.daemon.proofs import Postcondition, postcondition_texts
from perdure.daemon.schedule import SECOND, Cron, Every, Schedule, Watch
from perdure.daemon.validation import Path as KeyPath
from perdure.daemon.validation import Source, nearest, validate
from perdure.errors import Problem, Problems
from perdure.policies.documents import Listing, Node, Place, Table, plain, read_document
from perdure.state.events import JSON

TASK_BYTES_MAX: Final = 1_000_000
SLOT_NAMES: Final = frozenset({"slot.date", "slot.time", "slot.due", "slot.kind", "slot.id"})

_FENCE = re.compile(r"(`{3,}|~{3,})\s*(?:ya?ml)?\s*")
_LOOKS_LIKE_A_STEP = re.compile(r"\s*-\s+(?:\{\s*)?do\s*:")


class DueSlot(Protocol):
    """What `Task.slot_facts` needs of a slot."""

    @property
    def slot(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def due(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a playbook; `line` is where it stands in the task's file."""

    do: str
    args: Mapping[str, JSON]
    when: str | None
    for_each: JSON
    save: str | None
    on_escalate: Literal["park", "continue"]
    on_error: Literal["stop", "continue"]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as its file says it. `path` is relative to the workspace; `text` is the whole file and `digest` its SHA-256;
    `instruction` is what a planner is told. `tools` of a playbook that lists none are those that its steps use."""

    name: str
    path: Path
    text: str
    digest: str
    instruction: str
    planner: Literal["playbook", "model"]
    schedule: Schedule | None
    if_missed: IfMissed
    only_if: OnlyIf | None
    tools: tuple[str, ...]
    bounds: Bounds
    memory: Literal["task", "workspace"]
    stale_memory: Literal["refuse", "use"]
    retries: int
    while_parked: Literal["hold", "run"]
    postconditions: tuple[Postcondition, ...]
    steps: tuple[Step, ...]
    timezone: str

    def slot_facts(self, slot: DueSlot) -> dict[str, str]:
        """What expressions know of a slot, in the task's time zone."""
        due = datetime.fromtimestamp(slot.due // SECOND, UTC).astimezone(ZoneInfo(self.timezone))
        return {
            "date": due.strftime("%Y-%m-%d"),
            "time": due.strftime("%H:%M"),
            "due": due.isoformat(),
            "kind": slot.kind,
            "id": slot.slot,
        }

    def anchored(self, first_loaded: int) -> Task:
        """The task with its schedule counting from `first_loaded` (microseconds UTC)."""
        return self if self.schedule is None else replace(self, schedule=self.schedule.anchored(first_loaded))


def load_tasks(directory: Path, *, known_tools: Collection[str], timezone: str) -> dict[str, Task]:
    """The tasks in the `*.md` files of `directory` (in the workspace), by name; `timezone` is theirs where they name none.
    Raises Problems with every mistake in every file."""
    workspace = directory.parent
    tasks: dict[str, Task] = {}
    problems: list[Problem] = []
    for path in sorted(directory.glob("*.md")):
        name = str(path.relative_to(workspace))
        try:
            with path.open("rb") as file:
                content = file.read(TASK_BYTES_MAX + 1)
        except OSError as error:
            problems.append(Problem(name, 0, 0, str(error.strerror), "a file that this user can read"))
            continue
        task, found = read_task(name, content, known_tools=known_tools, timezone=timezone, workspace=workspace)
        problems += found
        if task is None:
            continue
        if task.name in tasks:
            other = tasks[task.name].path
            problems.append(Problem(name, 0, 0, f"the name {task.name}", f"a name of its own: {other} has this one"))
        tasks.setdefault(task.name, task)
    if problems:
        raise Problems("load", problems)
    return tasks


def read_task(
    name: str, content: bytes, *, known_tools: Collection[str], timezone: str, workspace: Path
) -> tuple[Task | None, list[Problem]]:
    """The task in a file called `name` (relative to the workspace), or all that is wrong with it."""
    if len(content) > TASK_BYTES_MAX:
        return None, [Problem(name, 0, 0, "a larger file", f"at most {TASK_BYTES_MAX:,} bytes")]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        return None, [Problem(name, line, column, f"the byte 0x{content[error.start]:02x}", "text in UTF-8")]
    reader = _Reader(Source(name, text), text, known_tools)
    settings, body_from = reader.settings()
    if settings is None:
        return None, reader.problems
    head = reader.head(settings)
    planner = head.planner if head is not None else _data(settings).get("planner")
    steps, instruction = reader.steps(head, body_from) if planner == "playbook" else ((), reader.rest(body_from))
    if planner == "model" and not instruction:
        reader.complain(
            (min(body_from + 1, len(reader.lines)), 1), "no instruction", "what the model is to do, in words"
        )
    if head is None or reader.problems:
        return None, reader.problems
    zone = (head.schedule.timezone if head.schedule is not None else None) or timezone
    missed = head.if_missed or (head.schedule.if_missed if head.schedule is not None else None) or IfMissed()
    return Task(
        name=head.name,
        path=Path(name),
        text=text,
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
        instruction=instruction,
        planner=head.planner,
        schedule=_schedule(head.schedule, zone, workspace) if head.schedule is not None else None,
        if_missed=missed,
        only_if=head.only_if,
        tools=head.tools or tuple(dict.fromkeys(step.do for step in steps)),
        bounds=head.bounds,
        memory=head.memory,
        stale_memory=head.stale_memory,
        retries=head.retries,
        while_parked=head.while_parked,
        postconditions=tuple(entry.postcondition() for entry in head.postconditions),
        steps=steps,
        timezone=zone,
    ), []


def _schedule(entry: ScheduleEntry, zone: str, workspace: Path) -> Schedule:
    if entry.cron is not None:
        return Cron(entry.cron, zone)
    if entry.every is not None:
        return Every(round(entry.every * SECOND))
    assert entry.watch is not None
    return Watch(entry.watch, workspace)


class _Reader:
    """One task file on its way to a Task; collects what is wrong. Line numbers count from 0 inside, from 1 in problems."""

    def __init__(self, source: Source, text: str, known_tools: Collection[str]) -> None:
        self.source = source
        self.lines = text.split("\n")
        self.known_tools = known_tools
        self.problems: list[Problem] = []

    def complain(self, place: tuple[int, int], found: str, expected: str) -> None:
        self.problems.append(self.source.problem(place, found, expected))

    def settings(self) -> tuple[Table | None, int]:
        """The mapping at the head of the file, and the line after it."""
        if self.lines[0].rstrip() != "---":
            found = "no head" if self.lines[0].strip() else "an empty line"
            self.complain((1, 1), found, "a line `---`, the task's settings, and another `---`")
            return None, 0
        end = next((index for index in range(1, len(self.lines)) if self.lines[index].rstrip() == "---"), None)
        if end is None:
            self.complain((len(self.lines), 1), "the end of the file", "a line `---` after the task's settings")
            return None, 0
        return self._yaml(1, end, "the task's settings, such as `name: …` and `planner: …`"), end + 1

    def head(self, settings: Table) -> FrontMatter | None:
        """The settings, checked."""
        head, problems = validate(FrontMatter, _data(settings), self.source, _place_in(settings))
        self.problems += problems
        if head is not None:
            self._check_tools(settings, head)
            self._check_conditions(settings, head)
        return head

    def _yaml(self, first: int, end: int, expected: str) -> Table | None:
        """The mapping in lines `first` … `end - 1`, which keep their numbers; None if it cannot be read."""
        text = "\n" * first + "\n".join(self.lines[first:end]) + "\n"
        if not text.strip():
            self.complain((first, 1), "nothing", expected)
            return None
        tree, complaints = read_document(text.encode(), self.source.name)
        self.problems += complaints.problems
        if tree is not None and not isinstance(tree, Table):
            self.complain((tree.place.line, tree.place.column), "no mapping", expected)
            return None
        return tree

    def _check_tools(self, tree: Table, head: FrontMatter) -> None:
        place = _place_in(tree)
        for index, tool in enumerate(head.tools):
            if tool not in self.known_tools:
                self.complain(
                    place(("tools", index), False), f"the unknown tool `{tool}`", nearest(tool, self.known_tools)
                )

    def _check_conditions(self, tree: Table, head: FrontMatter) -> None:
        place = _place_in(tree)
        for index, entry in enumerate(head.postconditions):
            for text in postcondition_texts(entry.postcondition()):
                for found, expected in _expression_problems(text):
                    self.complain(place(("postconditions", index), False), found, expected)

    def rest(self, first: int) -> str:
        """The text from line `first` on."""
        return "\n".join(self.lines[first:]).strip()

    def steps(self, head: FrontMatter | None, body_from: int) -> tuple[tuple[Step, ...], str]:
        """A playbook's steps, and the text after them (or, without one, what the playbook is)."""
        first, end, after = self._block(body_from)
        expected = "the playbook's steps as the body's first block, beginning with `steps:`"
        if first >= len(self.lines):
            self.complain((len(self.lines), 1), "the end of the file", expected)
            return (), ""
        tree = self._yaml(first, end, expected)
        if tree is None:
            return (), ""
        playbook, problems = validate(Playbook, _data(tree), self.source, _place_in(tree))
        self.problems += problems
        for index in range(after, len(self.lines)):
            if _LOOKS_LIKE_A_STEP.match(self.lines[index]):
                self.complain((index + 1, 1), "a step outside of the block", "all steps in the first block of the body")
        if playbook is None:
            return (), ""
        place = _place_in(tree)
        for index, entry in enumerate(playbook.steps):
            self._check_do(entry, place(("steps", index, "do"), False), head)
        steps = tuple(_step(entry, place(("steps", index), False)[0]) for index, entry in enumerate(playbook.steps))
        names = ", ".join(step.do for step in steps)
        return steps, self.rest(after) or f"A playbook: {names}."

    def _check_do(self, entry: StepEntry, place: tuple[int, int], head: FrontMatter | None) -> None:
        if entry.do not in self.known_tools:
            self.complain(place, f"the unknown tool `{entry.do}`", nearest(entry.do, self.known_tools))
        elif head is not None and head.tools and entry.do not in head.tools:
            self.complain(place, f"the tool `{entry.do}`", "a tool that the task lists under `tools`")

    def _block(self, body_from: int) -> tuple[int, int, int]:
        """The body's first block, fenced or not: its first line, the line after its last, and where the rest begins."""
        first = body_from
        while first < len(self.lines) and not self.lines[first].strip():
            first += 1
        if first >= len(self.lines):
            return first, first, first
        fence = _FENCE.fullmatch(self.lines[first])
        if fence is not None:
            for index in range(first + 1, len(self.lines)):
                if self.lines[index].strip() == fence[1]:
                    return first + 1, index, index + 1
            self.complain((first + 1, 1), "a fence without end", f"a line {fence[1]} after the steps")
            return first + 1, len(self.lines), len(self.lines)
        for index in range(first + 1, len(self.lines)):
            line = self.lines[index]
            after_gap = not self.lines[index - 1].strip()
            if line.strip() and after_gap and not line.startswith((" ", "\t", "-")):
                return first, index, index
        return first, len(self.lines), len(self.lines)


def _step(entry: StepEntry, line: int) -> Step:
    return Step(
        do=entry.do,
        args=entry.args,
        when=entry.when,
        for_each=entry.for_each,
        save=entry.save,
        on_escalate=entry.on_escalate,
        on_error=entry.on_error,
        line=line,
    )


def _data(tree: Table) -> dict[str, object]:
    return {key: plain(value) for key, value in tree.entries.items()}


class _PlaceIn(Protocol):
    def __call__(self, path: KeyPath, key: bool, /) -> tuple[int, int]: ...


def _place_in(tree: Table) -> _PlaceIn:
    """A function from a path to its place in `tree`; a path that is not there has the place of what holds it."""

    def place(path: KeyPath, key: bool, /) -> tuple[int, int]:
        node: Node = tree
        found = tree.place
        for depth, part in enumerate(path):
            last = depth == len(path) - 1
            if isinstance(node, Table) and isinstance(part, str) and part in node.keys:
                found = _key_place(node, part, key and last)
                if part not in node.entries:
                    break
                node = node.entries[part]
            elif isinstance(node, Listing) and isinstance(part, int) and part < len(node.items):
                node = node.items[part]
                found = node.place
        return (found.line, found.column)

    return place


def _key_place(table: Table, part: str, key: bool) -> Place:
    return table.keys[part] if key or part not in table.entries else table.entries[part].place


def _expression_problems(text: str) -> list[tuple[str, str]]:
    """What is wrong with the `${…}` of a postcondition's text: found and expected."""
    try:
        holes = expressions.parse(text).holes
    except ExpressionFault as error:
        return [
            (fault.reason, "`${expression}`; write `$${` for the two characters themselves") for fault in error.faults
        ]
    problems = []
    for hole in holes:
        for fault in expressions.faults(hole.source, SLOT_NAMES):
            if fault.name is None:
                problems.append((f"`{hole.source}`: {fault.reason}", "a CEL expression"))
                continue
            near = difflib.get_close_matches(fault.name, sorted(SLOT_NAMES), n=1)
            expected = f"`{near[0]}`" if near else f"one of {', '.join(sorted(SLOT_NAMES))}"
            problems.append((f"the unknown name `{fault.name}`", expected))
    return problems
