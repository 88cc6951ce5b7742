"""The daemon itself, killed at a seeded moment of `perdure session run`, and recovered by its own start. The observer is the
tools' target: a file in which each run of a tool program notes for which action it acts."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.daemon.stage import Stage

from perdure.state import projections as p
from perdure.state.reading import LedgerReader
from perdure.state.verification import verify

from .matrix import ROOT
from .progress import Progress

EFFECTS = ("read", "idempotent", "probeable", "once")
LOG = "work/effects.log"  # the tools' target
TOOL = """
import os, sys
file = os.open("work/effects.log", os.O_WRONLY | os.O_APPEND)
os.write(file, f"effect {os.environ['PERDURE_ACTION']} {sys.argv[1]}\\n".encode())
"""
CONFIG = 'timezone = "UTC"\n[memory]\nembedding = "none"\n' + "".join(
    f"""[tools.{effect}_tool]
command = ["{{python}}", "-IS", "act.py", "{effect}-${{{{args.number}}}}"]
args = {{{{number = {{{{type = "integer"}}}}}}}}
effect = "{effect}"
write = ["work"]
timeout = "60s"
"""
    + (
        f'probe = {{{{command = ["/bin/grep", "-q", " {effect}-${{{{args.number}}}}$", "work/effects.log"], happened = "exit == 0"}}}}\n'
        if effect == "probeable"
        else ""
    )
    for effect in EFFECTS
)


def explore(*, kills: int, seed: int, progress: Progress) -> tuple[int, list[str], Counter[str]]:
    """(kills that came while the session was at work, broken promises, where they came)."""
    chance = random.Random(seed)
    happened, failures, places = 0, [], Counter[str]()
    for number in progress.over(range(kills), kills):
        progress.broken = len(failures)
        root = Path(tempfile.mkdtemp(prefix="perdure-daemon-", dir=ROOT))
        try:
            place, found = asyncio.run(_one(root / "w", chance))
        finally:
            shutil.rmtree(root)
        if place is not None:
            happened += 1
            places[place] += 1
            failures += [f"kill {number} ({place}): {text}" for text in found]
    return happened, failures, places


def tools_workspace(directory: Path, *, extra: str = "") -> Stage:
    """A workspace whose task `work` has three effects of each class. `extra` is more of the task's front matter."""
    stage = Stage(directory)
    stage.write("perdure.toml", CONFIG.format(python=sys.executable))
    tools = [f"{effect}_tool" for effect in EFFECTS]
    stage.write(
        "policies/act.yaml", f"version: 1\nrules:\n  - {{name: acting, tools: [{', '.join(tools)}], decide: auto}}\n"
    )
    stage.write("act.py", TOOL)
    stage.write(LOG, "")
    steps = "".join(f"\n  - {{do: {tool}, args: {{number: {n}}}}}" for n in range(3) for tool in tools)
    stage.playbook("work", steps + "\n", tools=", ".join(tools), extra=extra)
    return stage


async def _one(directory: Path, chance: random.Random) -> tuple[str | None, list[str]]:
    stage = tools_workspace(directory)
    log = directory / LOG
    if not _killed_at_work(directory, log, chance):
        return None, []
    if not (directory / "state" / "ledger.db").exists():
        return None, []
    place = _place(directory)
    for _ in range(2):  # the second start finds nothing more to do
        async with stage.runtime() as runtime:
            await stage.run_open_slots(runtime)
    return place, [*broken_promises(directory), *_left_undone(directory)]


def _killed_at_work(directory: Path, log: Path, chance: random.Random) -> bool:
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.daemon.cli", "session", "run", "work"],
        cwd=directory, env={**os.environ, "PERDURE_WORKSPACE": str(directory)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    # So many calls of tools are let through, then a moment of up to a whole call more.
    calls, moment = chance.randrange(12), chance.uniform(0, 0.2)
    while process.poll() is None and log.read_text().count("\n") < calls:
        _wait(process, 0.002)
    _wait(process, moment)
    at_work = process.poll() is None
    process.kill()
    process.wait()
    return at_work


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _place(directory: Path) -> str:
    with LedgerReader.open(directory / "state" / "ledger.db") as reader:
        intents = p.open_intents(reader)
        return f"inside {intents[0].effect}" if intents else "between actions"


def broken_promises(directory: Path) -> list[str]:
    """Every promise that the ledger, or what happened, does not keep."""
    found = [f"verify: {finding}" for finding in verify(directory / "state").findings if finding.grave]
    effects = Counter(line.split()[1] for line in (directory / LOG).read_text().splitlines())
    with LedgerReader.open(directory / "state" / "ledger.db") as reader:
        intended = {event.body["action"] for event in reader.events(types=["action.intended"])}
        found += [f"{action} acted without an intent" for action in effects if action not in intended]
        found += [f"{row.action} has an intent and no end" for row in p.open_intents(reader)]
        for row in p.actions(reader):
            count = effects[row.action]
            if count > row.attempt or (row.effect in ("once", "probeable") and count > 1):
                found.append(f"{row.action} ({row.effect}) happened {count} times in {row.attempt} attempts")
            if row.status == "succeeded" and count == 0:
                found.append(f"{row.action} is recorded as succeeded and never happened")
            if row.status == "unknown" and p.open_escalation_for(reader, row.task, row.digest) is None:
                found.append(f"{row.action} ({row.effect}) is unknown and nobody was asked")
    return found


def _left_undone(directory: Path) -> list[str]:
    with LedgerReader.open(directory / "state" / "ledger.db") as reader:
        rows = p.actions(reader)
        parked = any(row.status == "unknown" for row in rows)
        done = {(row.tool, row.key) for row in rows if row.status == "succeeded"}
        if rows and not parked and len(done) != 3 * len(EFFECTS):
            return [f"{len(done)} of {3 * len(EFFECTS)} steps were done, and nobody was asked about the rest"]
    return []
