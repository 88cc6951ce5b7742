"""`python -m tests.crash.peers`: DBOS, LangGraph and durabl beside Perdure, killed at the same kinds of moments.

python -m tests.crash.peers [--sample N] [--seed S] [--systems NAME …] [--json]

Each system does the same four steps, one per effect class, each one call of a program that keeps the log of its own effects
(target.sh): what happened is read there and nowhere else. Each is SIGKILLed inside every tool call, before and after its
effect, and before and after state-changing system calls on its files, chosen with the seed; is looked at; and is then resumed
as its documentation says, where every fourth scenario kills once more. Perdure is its real command line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.shim import build
from tests.crash.tables import table

from .programs import PROGRAMS, STEPS

REPOSITORY = Path(__file__).resolve().parents[3]
PEERS = REPOSITORY / ".cache" / "peers" / "bin" / "python"
NO_REPEATS = ("probeable", "once")  # what happened twice here, somebody notices
COLUMNS = ("crashed", "lost", "repeated", "unrecorded", "asked", "recovered", "begun anew", "unfinished")
MEANING = """
crashed      scenarios in which the process really died of the kill (the others are not counted)
lost         a step whose result had been handed on to the next was not on record as done after the crash
repeated     an effect of class probeable or once happened twice, and nobody was told
unrecorded   an effect had happened of which nothing on disk said that it had begun (LangGraph's checkpoint names the next node,
             the same whether it has begun or not)
asked        the outcome is unknown, the step stands still, and a person is asked or finds it in the list for that
recovered    went on by itself to the end, with nothing lost, repeated or unrecorded
begun anew   there was nothing to resume: started from the beginning, as a person or a timer would
unfinished   neither finished nor asked"""


@dataclass(frozen=True)
class Scenario:
    """Kill at state-changing call `call` (0: not there), or inside the tool call of `step`; `again`: at which call of the
    recovery, too."""

    call: int = 0
    how: str = "kill"
    step: str = ""
    when: str = ""
    again: int = 0


@dataclass
class Tally:
    """What came of a system's scenarios."""

    system: str
    resumes: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Bench:
    """A system's server and its directories."""

    def __init__(self, system: str, library: Path, directory: Path, *, keep: bool) -> None:
        self.keep = keep
        python = sys.executable if system == "perdure" else str(PEERS)
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ},
            "LD_PRELOAD": str(library),
            "DBOS__CLOUD": "false",
            "LANGCHAIN_TRACING_V2": "false",
            "LANGSMITH_TRACING": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "*",
            # Whatever would call home after all finds nobody there.
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
        }
        self.directory = directory
        with (directory / f"{system}.errors").open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-m", "tests.crash.peers.server", system],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.template = self._furnish(directory / f"{system}-template")
        self.ask(self.template, "prepare")
        self.numbers = iter(range(10**9))

    def ask(self, directory: Path, do: str, **more: object) -> dict:
        """One request to the server."""
        request = {"directory": str(directory), "do": do, **more}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server ended: {self.process.wait()}; see {self.directory}")
        return json.loads(answer)

    def fresh(self) -> Path:
        """A directory in which nothing has happened yet."""
        directory = self.directory / f"{self.template.name}-{next(self.numbers)}"
        skip = shutil.ignore_patterns("world", "ready", "answer.json", "*.sock")
        shutil.copytree(self.template, directory, ignore=skip, symlinks=True)
        return self._furnish(directory)

    def _furnish(self, directory: Path) -> Path:
        (directory / "world").mkdir(parents=True)
        (directory / "state").mkdir(exist_ok=True)
        shutil.copy(Path(__file__).with_name("target.sh"), directory / "world")
        (directory / "world" / "log").touch()
        for pipe in ("kill", "gate"):
            os.mkfifo(directory / "world" / pipe)
        return directory

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def scenarios(calls: int, sample: int, seed: int) -> list[Scenario]:
    """The tool calls, all of them, and as many state-changing calls as asked for."""
    chance = random.Random(seed)
    inside = [Scenario(step=step, when=when) for step in STEPS for when in ("before", "after")]
    every = [Scenario(call=call, how=how) for call in range(1, calls + 1) for how in ("kill", "kill-after")]
    chosen = inside + chance.sample(every, min(sample, len(every)))
    return [
        Scenario(one.call, one.how, one.step, one.when, chance.randint(1, calls) if number % 4 == 3 else 0)
        for number, one in enumerate(chosen)
    ]


def play(bench: Bench, scenario: Scenario, tally: Tally) -> None:
    """Kill, look, resume, judge."""
    directory = bench.fresh()
    if scenario.step:
        (directory / "world" / f"stop-{scenario.step}").write_text(scenario.when + "\n")
    begun = bench.ask(directory, "start", call=scenario.call, how=scenario.how)
    if not begun["killed"]:
        shutil.rmtree(directory)
        return
    (directory / "world" / f"stop-{scenario.step}").unlink(missing_ok=True)
    found = look(bench, directory)
    ended = bench.ask(directory, "resume", call=scenario.again)
    if ended["killed"]:
        found |= look(bench, directory)
        ended = bench.ask(directory, "resume")
    if ended["value"] == "nothing":
        tally.counts["begun anew"] += 1
        ended = bench.ask(directory, "start")
    happened = Counter(line.split()[1] for line in log(directory) if line.startswith("effect"))
    if any(happened[step] > 1 for step in NO_REPEATS):
        found.add("repeated")
    if ended["value"] == "asked":
        found.add("asked")
    elif ended["value"] != "done" or any(not happened[step] for step in STEPS):
        found.add("unfinished")
    if not found:
        found.add("recovered")
    for what in found:
        tally.counts[what] += 1
    tally.counts["crashed"] += 1
    if found - {"recovered", "asked"}:
        tally.examples.append(f"{scenario}: {', '.join(sorted(found))} {dict(happened)}")
        if bench.keep:
            return
    shutil.rmtree(directory)


def look(bench: Bench, directory: Path) -> set[str]:
    """What is wrong with the record as the crash left it."""
    record = bench.ask(directory, "record")["value"]
    if not isinstance(record, dict):
        raise RuntimeError(f"nobody can say what is on record: {(directory / 'output').read_text()[-2000:]}")
    lines = [line.split() for line in log(directory)]
    called = [step for word, step in lines if word == "called"]
    handed_on = {step for step, next_ in itertools.pairwise(STEPS) if next_ in called}
    wrong = set()
    if any(record.get(step) != "done" for step in handed_on):
        wrong.add("lost")
    if any(word == "effect" and step not in record for word, step in lines):
        wrong.add("unrecorded")
    return wrong


def log(directory: Path) -> list[str]:
    return (directory / "world" / "log").read_text().splitlines()


def measure(system: str, library: Path, directory: Path, options: argparse.Namespace) -> Tally:
    """All scenarios of one system."""
    tally = Tally(system, PROGRAMS[system].resumes)
    started = time.monotonic()
    bench = Bench(system, library, directory, keep=options.keep)
    try:
        clean = bench.ask(bench.fresh(), "start")
        if clean["value"] != "done":
            raise RuntimeError(f"{system} does not even run undisturbed: {clean}; see {directory}")
        chosen = scenarios(clean["calls"], options.sample, options.seed)
        for number, scenario in enumerate(chosen, 1):
            play(bench, scenario, tally)
            if number % 10 == 0 or number == len(chosen):
                print(f"{system}: {number} of {len(chosen)} scenarios", file=sys.stderr, flush=True)
    finally:
        bench.close()
    tally.seconds = time.monotonic() - started
    return tally


def side_by_side(tallies: list[Tally]) -> str:
    """One row per system."""
    rows = [(one.system, one.resumes, *(one.counts[column] for column in COLUMNS)) for one in tallies]
    return table(("system", "resumed by", *COLUMNS), rows, left=2)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sample", type=int, default=60, help="scenarios at system calls, for each system (default 60)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--systems", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the directories of the scenarios that went wrong")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    library = build()
    if library is None:
        print("no C compiler: install gcc to run the crash suite", file=sys.stderr)
        return 2
    if (
        options.systems != ["perdure"]
        and subprocess.run([Path(__file__).with_name("setup.sh")], check=False).returncode
    ):
        return 2
    directory = Path(tempfile.mkdtemp(prefix="perdure-peers-"))
    with ThreadPoolExecutor(options.workers) as pool:
        tallies = list(pool.map(lambda system: measure(system, library, directory, options), options.systems))
    if not options.keep:
        shutil.rmtree(directory)
    if options.json:
        print(json.dumps([{**vars(one), "counts": dict(one.counts)} for one in tallies]))
    else:
        print(side_by_side(tallies) + "\n" + MEANING)
        for one in tallies:
            for example in one.examples[:2]:
                print(f"\n{one.system}, for example: {example}")
        print(f"\nseed {options.seed}; {', '.join(f'{one.system} {one.seconds:.0f} s' for one in tallies)}")
    ours = next((one for one in tallies if one.system == "perdure"), None)
    return int(ours is not None and any(ours.counts[bad] for bad in ("lost", "repeated", "unrecorded", "unfinished")))


if __name__ == "__main__":
    sys.exit(main())
