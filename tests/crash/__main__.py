"""`python -m tests.crash`: the crash suite. Starts itself again with the shim preloaded.

Layers: kill (faults at system calls), power (power loss, modelled), tamper (forgeries), cut (power cuts of a real ext4), strace
(the same calls, by strace), daemon (the daemon itself), backup (backup and restore, cut off), beside (backups of a running
daemon, cut off), fault (full disk, read-only and locked database, clock), index (the vector index, killed). The right agent
must come through all of them; each wrong one must be caught by the layer that is there for it. Ctrl-C ends it with what it has.
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
from importlib import import_module
from typing import Any, TypeAlias

from .progress import Progress, end_on_ctrl_c
from .report import LAYERS, Result, Results, controls_table, layer_words, right_table, verdict
from .shim import build

Explore: TypeAlias = Callable[[Any, argparse.Namespace, Progress], Result]


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
    if not options.json:
        layers = "all layers" if options.layer == "all" else f"the layer {options.layer}"
        print(
            f"{layers} with seed {options.seed} on {options.jobs} processes; Ctrl-C ends it with what it has",
            flush=True,
        )
    results: Results = {}
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
            progress = Progress(layer if agent is Agent else f"{layer}, {name}", quiet=options.json)
            with agent.faulty_ledger():
                result = EXPLORE[layer](agent, options, progress)
            result.seconds = time.monotonic() - started
            results.setdefault(name, {})[layer] = result
            if agent is Agent and result.failures:
                wrong.append(f"layer {layer} broke promises of the right agent")
            if not (result.tried or result.why_not or progress.cut_short):
                wrong.append(f"layer {layer} did nothing to {name}: it shows nothing")
            if agent.caught_by == layer and not result.failures and not progress.cut_short:
                wrong.append(f"layer {layer} did not catch {name}")
            if not options.json:
                print(layer_words(agent, layer, result), flush=True)
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
        right = results.get("Agent")
        tables = ([right_table(right)] if right else []) + (
            [controls_table(results)] if len(results) > bool(right) else []
        )
        print("\n" + "\n\n".join([*tables, verdict(results, wrong)]))
    return 1 if wrong else 0


def kill(agent, options: argparse.Namespace, progress: Progress) -> Result:
    """Faults at system calls."""
    from .agents import Agent, CheckpointsOften
    from .matrix import Matrix, Tally, in_words, seeded

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
    return Result(tally.scenarios, tally.failures, in_words(tally) if agent is Agent else "", counts=counts)


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


def in_places(module: str, bound: str, option: str) -> Explore:
    """A layer whose module counts the places where it struck; `option` of the command line is its `bound`."""

    def explore(agent, options: argparse.Namespace, progress: Progress) -> Result:
        del agent
        bounds = {bound: getattr(options, option), "seed": options.seed}
        happened, failures, places = import_module(f".{module}", __package__).explore(**bounds, progress=progress)
        text = "".join(f"\n  {place:<40}{count:>8,}" for place, count in sorted(places.items()))
        return Result(happened, failures, text.removeprefix("\n"), counts=places)

    return explore


EXPLORE: dict[str, Explore] = {
    "kill": kill,
    "power": power_loss,
    "tamper": tamper,
    "cut": cut,
    "strace": strace,
    "daemon": in_places("daemons", "kills", "kills"),
    "backup": in_places("backups", "samples", "sample"),
    "beside": in_places("beside", "samples", "sample"),
    "fault": in_places("faulty", "samples", "sample"),
    "index": in_places("indexes", "kills", "kills"),
}


sys.exit(main())
