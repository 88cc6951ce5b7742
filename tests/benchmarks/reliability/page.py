"""docs/reliability.md: the table as `make bench-reliability RELIABILITY=--docs` writes it."""

from __future__ import annotations

from typing import Any

from .in_memory import SESSIONS_WARM_UP, WARM_UP
from .workflows import FALSE_ALARM, FLOOR, MISS

TITLES = {
    "independent": "In memory; each draw errs by itself",
    "correlated": "In memory; the draws of a step err together",
    "sessions": "Through real sessions, ledger and policies; each draw errs by itself",
}
INTRODUCTION = """# What each mechanism does to a planner that errs

Written by `make bench-reliability RELIABILITY=--docs` (seed {seed}); nothing here is typed by hand. A workflow of n steps puts n
values in their places. At each step the planner is right with probability p and else proposes the step's one plausible rival (a
wrong argument 40 %, a wrong tool 20 %, a skipped step 20 %, the false claim that all is done 20 %), the worst case for voting. An
oracle that knows nothing of Perdure looks at the places. The verifier behind the postcondition misses {miss:.0%} of what is wrong (and
the second time what it missed the first) and raises a false alarm in {alarm:.0%}. The floor of a session's confidence is {floor}, a
vote has at most 25 draws. Nobody answers questions here: what asks a person is neither proven nor silent.

In memory the policies, votes, calibration and certainty are Perdure's own, the loop around them is the experiment's; the rows
through real sessions say whether that is faithful. They are compared with the same cell in memory under their circumstances:
a warm-up of {sessions_warm_up} workflows, and a confidence that goes on learning. Where the floor stops nearly every workflow that matters: what it
stops has no outcome, and what ends before it (on a false claim) is wrong, so that the confidence falls further. The large cells
are frozen after {warm_up} workflows.

Why each draw a call costs more than 8 × the bare loop's own tokens: first to lead by k takes k / (2p - 1) draws a step on average,
for k = 5 and p = 0.85 that is 7.1; and a bare loop that ends on a false claim has paid for a part of the steps only, so that to
go to the end once costs 1.2 × its tokens at 10 steps and 2.4 × at 50. Fewer draws are a smaller k. That is what a provider without
several answers to one prompt costs; of an `openai-compatible` server the draws are asked for together.

- **proven**: called done, and right. **silent**: called done, wrong, and nobody was told. ± is one standard error.
- **asked**: questions and failed sessions that a person is told of, per workflow.
- **tokens**: against the bare loop's own, which often ends early on a false claim; in brackets against a bare loop that goes to
  the end. **each**: every draw a call of its own (as of providers and servers that know no `n`). **shared**: the draws that a vote asks for at
  once in one call, whose prompt counts once (`answers_per_call = 16`, the default for `openai-compatible`).
"""


def page(report: dict[str, Any]) -> str:
    records: list[dict[str, Any]] = report["cells"]
    parts = [
        INTRODUCTION.format(
            seed=report["seed"],
            miss=MISS,
            alarm=FALSE_ALARM,
            floor=FLOOR,
            sessions_warm_up=SESSIONS_WARM_UP,
            warm_up=WARM_UP,
        ),
        "## Checks and goals\n",
    ]
    parts += [f"- {'met' if met else '**missed**'}: {words}" for words, met in report["checks"]]
    for p in sorted({one["p"] for one in records}):
        picture = "reliability.svg" if p == 0.85 else f"reliability-{p:.2f}.svg"
        parts.append(f"\n## p = {p:.2f}\n\n![proven, asked and silently wrong workflows](pictures/{picture})")
        for mode, title in TITLES.items():
            chosen = [one for one in records if one["mode"] == mode and one["p"] == p]
            if not chosen:
                continue
            counts = sorted({one["workflows"] for one in chosen})
            workflows = ", ".join(f"{count:,}" for count in counts)
            parts.append(f"\n{title}; {workflows} workflows for each row.\n")
            parts.append(
                "| steps | | proven | silent | asked | tokens, each | tokens, shared |\n|---|---|---|---|---|---|---|"
            )
            parts += [line(one) for one in sorted(chosen, key=lambda one: int(one["steps"]))]
    return "\n".join(parts) + "\n"


def line(one: dict[str, Any]) -> str:
    return (
        f"| {one['steps']} | {one['row']} | {one['proven']:.2%} ± {one['proven_error']:.2%} | {one['silent']:.3%} ± "
        f"{one['silent_error']:.3%} | {one['escalations']:.3f} ± {one['escalations_error']:.3f} | {one['tokens_of_bare']:.2f} "
        f"({one['tokens_of_whole_bare']:.2f}) | {one['shared_of_bare']:.2f} ({one['shared_of_whole_bare']:.2f}) |"
    )
