"""`python -m tests.crash`: the crash suite. Starts itself again with the shim preloaded.

python -m tests.crash [--sample N] [--seed S] [--layer kill|power|cut|strace|daemon|all] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from .shim import build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="scenarios per set; 0: all of them")
    parser.add_argument("--states", type=int, default=0, help="power-loss states; 0: all of them")
    parser.add_argument(
        "--stride",
        type=int,
        default=5,
        help="every how many-th crash is followed by faults at every call of its recovery; 0: none",
    )
    parser.add_argument("--cuts", type=int, default=100, help="power cuts of a real ext4, where that can be done")
    parser.add_argument("--calls", type=int, default=150, help="system calls killed at with strace; 0: every one")
    parser.add_argument("--kills", type=int, default=60, help="kills of the daemon itself")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layer", choices=("kill", "power", "cut", "strace", "daemon", "all"), default="all")
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

    results = {}
    good = True
    for agent in (Agent, *CONTROLS):
        if options.agents and agent.__name__ not in options.agents:
            continue
        result: dict[str, object] = {"caught_by": agent.caught_by}
        layers = [("kill", kill), ("power", power_loss)]
        if agent in (Agent, Normal):
            layers.append(("cut", cut))
        if agent is Agent:
            layers += [("strace", strace), ("daemon", daemon)]
        for layer, explore in layers:
            if options.layer not in (layer, "all"):
                continue
            started = time.monotonic()
            count, failures, text = explore(agent, options)
            caught = bool(failures)
            good &= caught if agent.caught_by == layer else not failures if agent is Agent else True
            result[layer] = {"tried": count, "failures": len(failures), "examples": failures[:5]}
            if not options.json:
                print(
                    f"\n{agent.__name__} ({agent.__doc__}), layer {layer}: {count} tried in {time.monotonic() - started:.0f} s; {len(failures)} broken promises"
                    + (f"; caught: {caught}" if agent is not Agent else "")
                )
                print(
                    text, *(f"  {failure}" for failure in (failures[:20] if agent is Agent else failures[:1])), sep="\n"
                )
        results[agent.__name__] = result
    if options.json:
        print(json.dumps(results))
    return 0 if good else 1


def kill(agent, options: argparse.Namespace) -> tuple[int, list[str], str]:
    """Faults at system calls: (scenarios, broken promises, table)."""
    from .agents import Agent
    from .matrix import Matrix, seeded, table

    matrix = Matrix(agent)
    try:
        if agent is not Agent:  # a control only has to be caught, or to pass where another layer catches it
            chosen = seeded(matrix.every(modes=("kill", "kill-after")), options.sample or 400, options.seed)
            tally = matrix.run(chosen, failures_max=5 if options.sample else 0)
        elif options.sample:
            sets = [matrix.every(), matrix.every(fresh=True), matrix.every_pair(stride=23)]
            tally = matrix.run(one for scenarios in sets for one in seeded(scenarios, options.sample, options.seed))
        else:
            sets = [
                matrix.every(),
                matrix.every(fresh=True),
                *([matrix.every_pair(stride=options.stride)] if options.stride else []),
            ]
            tally = matrix.run(one for scenarios in sets for one in scenarios)
    finally:
        matrix.close()
    return tally.scenarios, tally.failures, table(tally) if agent is Agent else ""


def power_loss(agent, options: argparse.Namespace) -> tuple[int, list[str], str]:
    """Disk states that a power cut could leave: (states, broken promises, nothing)."""
    from . import power
    from .agents import Agent

    control = agent is not Agent
    states, failures = power.explore(
        agent,
        states_max=options.states or (4000 if control else 0),
        seed=options.seed,
        failures_max=5 if control else 0,
    )
    return states, failures, ""


def cut(agent, options: argparse.Namespace) -> tuple[int, list[str], str]:
    """Real power cuts: (cuts, broken promises, why there were none)."""
    from . import cuts
    from .agents import Agent

    if why := cuts.missing():
        return 0, [], f"NO REAL POWER CUTS: {why}"
    return *cuts.explore(agent, cuts=options.cuts if agent is Agent else min(options.cuts, 20), seed=options.seed), ""


def strace(agent, options: argparse.Namespace) -> tuple[int, list[str], str]:
    """The sweep with strace: (kills, broken promises, why there were none)."""
    from . import calls

    del agent
    if why := calls.missing():
        return 0, [], f"NO SWEEP WITH STRACE: {why}"
    return *calls.explore(samples=options.calls, seed=options.seed), ""


def daemon(agent, options: argparse.Namespace) -> tuple[int, list[str], str]:
    """The daemon itself: (kills, broken promises, where they came)."""
    from . import daemons

    del agent
    happened, failures, places = daemons.explore(kills=options.kills, seed=options.seed)
    return happened, failures, "  ".join(f"{place}: {count}" for place, count in sorted(places.items()))


sys.exit(main())
