"""The rules of the house that no linter knows: who may import whom, what things are called, how long a module may be."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("daemon", "memory", "policies", "state", "systemd")
MAY_IMPORT = {  # room -> the rooms it may import besides itself; perdure.errors is everybody's
    "state": set(),
    "policies": set(),
    "memory": {"state"},
    "systemd": {"daemon"},
    "daemon": {"memory", "policies", "state", "systemd"},
}
LINES_MAX = 450
LONGER: dict[str, str] = {}  # path -> why one thing needs that many lines
VAGUE = {"util", "utils", "helper", "helpers", "misc", "common", "manager", "base", "core", "stuff", "tools2", "lib"}
VAGUE_CLASS = re.compile(r"(Manager|Helper|Util|Utils|Misc|Common)$|^Base[A-Z]")
CLOCKS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
}
READS_THE_CLOCK = {  # path -> why it may read the wall clock itself instead of being handed `now`
    "daemon/clock.py": "this is the clock that is handed in",
    "daemon/cli/invocation.py": "the command line's own; the module above would bring asyncio into `perdure status`",
}
MAY_SLEEP: dict[str, str] = {  # test -> what it waits for that sends no event
    "tests/daemon/mcp/drivers/hostile_server.py": "the reader at the other end of a pipe to take the first half by itself",
}
SQL = re.compile(
    r"^\s*(SELECT .+ FROM|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM|CREATE (TABLE|INDEX|VIEW|TRIGGER))\b",
    re.DOTALL,
)


@cache
def tracked() -> tuple[str, ...]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nobody says which files belong to the house")
    return tuple(name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).exists())


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((REPOSITORY / name).read_text(encoding="utf-8"), name)


def modules(*rooms: str) -> list[str]:
    return [name for name in tracked() if name.endswith(".py") and name.split("/")[0] in rooms]


def library() -> list[str]:
    """The package's own modules, without the programs that an example brings."""
    return [
        *(name for name in modules(*ROOMS) if not name.startswith("daemon/examples/")),
        *(name for name in modules("src") if not (REPOSITORY / name).is_symlink()),
    ]


def imported(name: str) -> Iterator[tuple[int, str]]:
    """Every dotted name that the module imports, at any depth, as (line, name)."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            written_out = node.level == 0 or name.startswith("tests/")
            assert written_out, f"{name}:{node.lineno}: imports are written out as perdure.ROOM.MODULE"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def calls(name: str) -> Iterator[tuple[int, str, str]]:
    """Every call of `owner.attribute(…)` (owner "" for a plain name), as (line, owner, attribute)."""
    for node in ast.walk(tree(name)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            yield node.lineno, node.func.value.id, node.func.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.lineno, "", node.func.id


def test_state_flows_down_and_never_up() -> None:
    wrong = []
    for name in modules(*ROOMS):
        room = name.split("/")[0]
        for line, what in imported(name):
            parts = what.split(".")
            if (
                parts[0] == "perdure"
                and len(parts) > 1
                and parts[1] in ROOMS
                and parts[1] not in MAY_IMPORT[room] | {room}
            ):
                wrong.append(f"{name}:{line} imports {what}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_a_room_by_its_bare_name() -> None:
    wrong = [
        f"{name}:{line} imports {what}"
        for name in [*library(), *modules("tests")]
        for line, what in imported(name)
        if what.split(".")[0] in {*ROOMS, "src"}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_links_in_the_package_lead_to_the_rooms() -> None:
    for room in ROOMS:
        link = REPOSITORY / "src" / "perdure" / room
        assert link.is_symlink(), link
        assert link.readlink() == Path("..") / ".." / room
        assert (link / "__init__.py").is_file(), f"{room} is no package"


def test_names_say_what_they_hold() -> None:
    wrong = [name for name in tracked() if Path(name).stem.lower() in VAGUE]
    for name in [*library(), *modules("tests")]:
        wrong += [
            f"{name}:{node.lineno} class {node.name}"
            for node in ast.walk(tree(name))
            if isinstance(node, ast.ClassDef) and VAGUE_CLASS.search(node.name)
        ]
    assert not wrong, "\n".join(wrong)


def test_a_module_is_readable_in_one_sitting() -> None:
    lengths = {name: len((REPOSITORY / name).read_text(encoding="utf-8").splitlines()) for name in library()}
    wrong = [f"{name}: {length} lines" for name, length in lengths.items() if length > LINES_MAX and name not in LONGER]
    assert not wrong, "do two things live here? (or say in LONGER why not)\n" + "\n".join(wrong)
    idle = [name for name in LONGER if lengths.get(name, 0) <= LINES_MAX]
    assert not idle, f"no longer long, take them out of LONGER: {idle}"


def test_the_library_prints_nothing() -> None:
    wrong = [
        f"{name}:{line}"
        for name in library()
        for line, owner, called in calls(name)
        if (owner, called) == ("", "print")
    ]
    assert not wrong, "\n".join(wrong)


def test_time_comes_in_through_parameters() -> None:
    wrong = [
        f"{name}:{line} {owner}.{called}()"
        for name in library()
        for line, owner, called in calls(name)
        if (owner, called) in CLOCKS and name not in READS_THE_CLOCK
    ]
    assert not wrong, "\n".join(wrong)


def test_chance_comes_in_through_parameters() -> None:
    wrong = [
        f"{name}:{line} {owner}.{called}()"
        for name in library()
        for line, owner, called in calls(name)
        if (owner == "random" and called != "Random") or (owner == "uuid" and called in {"uuid1", "uuid4"})
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_reaches_around_state_and_memory_into_their_tables() -> None:
    wrong = [
        f"{name}:{node.lineno} {node.value.strip()[:60]!r}"
        for name in modules("daemon", "policies", "systemd")
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value)
    ]
    assert not wrong, "\n".join(wrong)


def test_tests_wait_for_events_and_do_not_sleep() -> None:
    wrong = []
    for name in modules("tests"):
        for node in ast.walk(tree(name)):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep"}):
                continue
            yields = isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if not yields and name not in MAY_SLEEP:
                wrong.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_an_exception_from_the_linters_says_why() -> None:
    bare = re.compile(r"#\s*(noqa(:\s*[A-Z0-9, ]+)?|type:\s*ignore(\[[\w, -]+\])?)\s*$")
    wrong = [
        f"{name}:{number} {line.strip()}"
        for name in library()
        for number, line in enumerate((REPOSITORY / name).read_text(encoding="utf-8").splitlines(), 1)
        if bare.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b|raise NotImpl" + "emented")
    wrong = [
        f"{name}:{number} {line.strip()}"
        for name in tracked()
        if Path(name).suffix in {".py", ".sh", ".md", ".toml", ".yaml"}
        and not name.startswith("tests/")  # a corpus of commands may well search for such words
        for number, line in enumerate((REPOSITORY / name).read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert not wrong, "\n".join(wrong)
