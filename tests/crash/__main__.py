"""`python -m tests.crash`: the crash suite. Starts itself again with the shim preloaded.

Layers: kill (faults at system calls), power (power loss, modelled), tamper (forgeries), cut (power cuts of a real ext4), strace
(the same calls, by strace), daemon (the daemon itself), backup (backup and restore, cut off), fault (full disk, read-only and
locked database, clock), index (the vector index, killed). The right agent must come through all of them; each wrong one must be
caught by the layer that is there for it. Ctrl-C ends a layer with what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .progress import Progress, end_on_ctrl_c
from .shim import build

LAYERS = ("kill", "power", "tamper", "cut", "strace", "daemon", "backup", "fault", "index")


@dataclass
class Result:
    """What a layer did with an agent. `why_not` says why it could do nothing, `text` is for people."""

    tried: int
    failures: list[str]
    text: str = ""
    why_not: str = ""
    counts: dict[str, int] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=0, help="scenarios and forgeries per set; 0: all of them")
    parser.add_argument("--states", type=int, default=0, help="power-loss states; 0: all of them")
    parser.add_argument(
        "--stride",
        type=int,
        default=9,
        help="every how many-th crash is followed by faults at every call of its recovery; 0: none",
    )
    parser.add_argument("--cuts", type=int, default=120, help="power cuts of a real ext4, where that can be done")
    parser.add_argument("--calls", type=int, default=150, help="system calls killed at with strace; 0: every one")
    parser.add_argument("--kills", type=int, default=60, help="kills of the daemon, and of the index or who uses it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of the layers kill and power")
    parser.add_argument("--layer", choices=(*LAYERS, "all"), default="all")
    parser.add_argument("--agents", nargs="*", help="only these; default: the right one and every control")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "LD_PRELOAD" not in os.environ:
        library = build()
        if library is None:
            print("no C compiler: install gcc to run the crash suite", file=sys.stderr)
            return 2
        os.environ.update({"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"})
        os.execv(sys.executable, [sys.executable, "-m", "tests.crash", *sys.argv[1:]])
    return run(options)


def run(options: argparse.Namespace) -> int:
    from .agents import CONTROLS, Agent, Normal

    end_on_ctrl_c()
    results: dict[str, dict[str, Result]] = {}
    wrong: list[str] = []
    for agent in (Agent, *CONTROLS):
        name = agent.__name__
        if options.agents and name not in options.agents:
            continue
        layers = LAYERS if agent is Agent else ("kill", "power", "tamper", *(("cut",) if agent is Normal else ()))
        for layer in layers:
            if options.layer not in (layer, "all"):
                continue
            started = time.monotonic()
            progress = Progress(f"{name}, layer {layer}", quiet=options.json)
            with agent.faulty_ledger():
                result = EXPLORE[layer](agent, options, progress)
            results.setdefault(name, {})[layer] = result
            if agent is Agent and result.failures:
                wrong.append(f"layer {layer} broke promises of the right agent")
            if agent.caught_by == layer and not result.failures and not progress.cut_short:
                wrong.append(f"layer {layer} did not catch {name}")
            if not options.json:
                _say(agent, layer, result, time.monotonic() - started)
            if progress.cut_short:
                wrong.append("Ctrl-C: what is above is all that was tried")
                break
        if Progress.cut_short:
            break
    if options.json:
        print(
            json.dumps(
                {
                    name: {
                        layer: {
                            "tried": result.tried,
                            "failures": len(result.failures),
                            "examples": result.failures[:5],
                            "why_not": result.why_not,
                            "counts": result.counts,
                        }
                        for layer, result in layers.items()
                    }
                    for name, layers in results.items()
                }
            )
        )
    else:
        print(f"\n{_controls([agent for agent in CONTROLS if agent.__name__ in results], results)}")
        print(
            "\n".join(["", *wrong]) if wrong else "\nEvery promise was kept, and every control was caught by its layer."
        )
    return 1 if wrong else 0


def _say(agent, layer: str, result: Result, seconds: float) -> None:
    from .agents import Agent

    right = agent is Agent
    print(f"\n{agent.__name__} ({agent.__doc__.splitlines()[0]}), layer {layer}: ", end="")
    if result.why_not:
        print(f"NOTHING TRIED: {result.why_not}", flush=True)
        return
    verdict = f"{len(result.failures)} broken promises" if right else "caught" if result.failures else "not caught"
    print(f"{result.tried:,} tried in {seconds:.0f} s; {verdict}")
    print(
        *filter(None, [result.text, *(f"  {failure}" for failure in result.failures[: 20 if right else 1])]), sep="\n"
    )
    sys.stdout.flush()


def _controls(controls: list, results: dict[str, dict[str, Result]]) -> str:
    """Which wrong way each layer caught, as a table: broken promises in so many tries."""
    layers = ("kill", "power", "tamper", "cut")
    lines = [f"{'wrong on purpose':<30}" + "".join(f"{layer:>18}" for layer in layers) + "  must be caught by"]
    for agent in controls:
        cells = []
        for layer in layers:
            result = results[agent.__name__].get(layer)
            tried = "" if result is None or not result.tried else f"{len(result.failures):,} in {result.tried:,}"
            cells.append(f"{tried or '-':>18}")
        lines.append(f"{agent.__name__:<30}" + "".join(cells) + f"  {agent.caught_by}")
    return "\n".join(["Broken promises in so many tries:", *lines]) if controls else ""


def kill(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """Faults at system calls."""
    from .agents import Agent, CheckpointsOften
    from .matrix import Matrix, Tally, seeded, table

    tally = Tally()
    sets: list[Callable[[], None]] = []

    def explore(which, scenarios, failures_max: int = 0) -> None:
        with contextlib.closing(Matrix(which, jobs=options.jobs)) as matrix:
            tally.join(matrix.run(scenarios(matrix), progress=progress, failures_max=failures_max))

    def part(scenarios):
        return lambda matrix: (
            seeded(scenarios(matrix), options.sample, options.seed) if options.sample else scenarios(matrix)
        )

    if agent is Agent:
        sets = [
            lambda: explore(Agent, part(lambda matrix: matrix.every())),
            lambda: explore(Agent, part(lambda matrix: matrix.every(fresh=True))),
            lambda: explore(CheckpointsOften, part(lambda matrix: matrix.every())),
        ]
        if options.stride:
            sets.append(
                lambda: explore(
                    Agent, part(lambda matrix: matrix.every_pair(stride=60 if options.sample else options.stride))
                )
            )
    else:  # a control only has to be caught, or to pass where another layer catches it
        count = options.sample or (400 if agent.caught_by == "kill" else 200)
        sets = [
            lambda: explore(
                agent,
                lambda matrix: seeded(matrix.every(modes=("kill", "kill-after")), count, options.seed),
                failures_max=1 if options.sample else 0,
            )
        ]
    for one in sets:
        one()
        if progress.cut_short:
            break
    counts = {"crashed": tally.scenarios, "went on": tally.went_on, "not fired": tally.not_fired}
    return Result(tally.scenarios, tally.failures, table(tally) if agent is Agent else "", counts=counts)


def power_loss(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """Disk states that a power cut could leave."""
    from . import power
    from .agents import Agent

    control = agent is not Agent
    return Result(
        *power.explore(
            agent,
            jobs=options.jobs,
            progress=progress,
            states_max=options.states or (4000 if control else 0),
            seed=options.seed,
            failures_max=(1 if options.states else 5) if control else 0,
        )
    )


def tamper(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """Forgeries of the file."""
    from . import tampering
    from .agents import Agent

    # A control that another layer must catch is only shown not to be caught here.
    samples = options.sample or (0 if agent is Agent or agent.caught_by == "tamper" else 80)
    tried, unnoticed = tampering.explore(agent, samples=samples, seed=options.seed, progress=progress)
    deeds = Counter(text.split(" ", 2)[2] for text in unnoticed)
    return Result(tried, unnoticed, "\n".join(f"  {count:>4} × {deed}" for deed, count in sorted(deeds.items())))


def cut(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """Real power cuts."""
    from . import cuts
    from .agents import Agent

    if why := cuts.missing():
        return Result(0, [], why_not=why)
    count = options.cuts if agent is Agent else min(options.cuts, 20)
    return Result(*cuts.explore(agent, cuts=count, seed=options.seed, progress=progress))


def strace(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """The sweep with strace."""
    from . import calls

    del agent
    if why := calls.missing():
        return Result(0, [], why_not=why)
    return Result(*calls.explore(samples=options.calls, seed=options.seed, progress=progress))


def daemon(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """The daemon itself."""
    from . import daemons

    del agent
    happened, failures, places = daemons.explore(kills=options.kills, seed=options.seed, progress=progress)
    return Result(happened, failures, _places(places), counts=places)


def backup(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """Backups of a ledger that is being written, and restores."""
    from . import backups

    del agent
    happened, failures, places = backups.explore(samples=options.sample, seed=options.seed, progress=progress)
    return Result(happened, failures, _places(places), counts=places)


def fault(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """Faults that are no crash."""
    from . import faulty

    del agent
    happened, failures, places = faulty.explore(samples=options.sample, seed=options.seed, progress=progress)
    return Result(happened, failures, _places(places), counts=places)


def index(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """The process of the vector index, and the one that uses it; and its directory, replaced."""
    from . import indexes

    del agent
    happened, failures, places = indexes.explore(kills=options.kills, seed=options.seed, progress=progress)
    return Result(happened, failures, _places(places), counts=places)


def _places(places: dict[str, int]) -> str:
    return "  ".join(f"{place}: {count}" for place, count in sorted(places.items()))


EXPLORE = dict(zip(LAYERS, (kill, power_loss, tamper, cut, strace, daemon, backup, fault, index), strict=True))


sys.exit(main())
