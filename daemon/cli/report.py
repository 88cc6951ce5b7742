"""`perdure report calibration`: how far the confidence numbers can be believed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from perdure.daemon.cli.invocation import Invocation, everywhere, task_option, with_invocation, with_json
from perdure.daemon.cli.terminal import line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from perdure.daemon.confidence import Observed


COUNT_TELLING = 20  # outcomes below which the calibration error is not compared with its noise


@click.group()
@everywhere
def report() -> None:
    """What the ledger adds up to."""


@report.command()
@task_option("Only proposals of this task.")
@click.option("--tool", help="Only proposals of this tool.")
@with_json
@with_invocation
def calibration(invocation: Invocation, task: str | None, tool: str | None) -> None:
    """Show whether what planners were held to be sure of came true: Brier score, calibration error and its own noise, plot.

    Counted are proposals of model planners that a verification, a postcondition, a tool or a person has since answered.
    """
    observed = [one for one in _observed(invocation) if task in (None, one.task) and tool in (None, one.tool)]
    parts = {
        "calibrated": _figures(observed, lambda one: one.confidence),
        "stated": _figures(observed, lambda one: one.stated),
    }
    cold_below = _cold_below(invocation)
    groups = _groups(observed, cold_below)
    if invocation.as_json:
        invocation.emit("calibration", {"task": task, "tool": tool, **parts, "groups": groups})
        return
    if not observed:
        invocation.say("No proposal of a model planner has an outcome yet: every number is the prior (a cold start).")
        return
    for name, figures in parts.items():
        _show(invocation, name, figures)
    _show_groups(invocation, groups, cold_below)


def _cold_below(invocation: Invocation) -> int:
    from perdure.daemon.confidence import COLD_BELOW

    section = invocation.settings.get("confidence")
    value = section.get("cold_below") if isinstance(section, dict) else None
    return value if isinstance(value, int) else COLD_BELOW


def _observed(invocation: Invocation) -> list[Observed]:
    from perdure.daemon.confidence import EVENT_TYPES, Calibration

    record = Calibration()
    record.keep_all = True
    record.feed(invocation.ledger.events(types=EVENT_TYPES))
    return record.observed


def _figures(observed: Sequence[Observed], number: Callable[[Observed], float]) -> dict[str, Any] | None:
    from perdure.daemon.reliability import reliability

    if not observed:
        return None
    return asdict(reliability([number(one) for one in observed], [one.outcome for one in observed]))


def _groups(observed: Sequence[Observed], cold_below: int) -> list[dict[str, Any]]:
    found: dict[tuple[str, str, str], list[Observed]] = {}
    for one in observed:
        found.setdefault((one.model, one.tool, one.task), []).append(one)
    return [
        {
            "model": model,
            "tool": tool,
            "task": task,
            "count": len(ones),
            "cold": len(ones) < cold_below,
            "stated": sum(one.stated for one in ones) / len(ones),
            "calibrated": sum(one.confidence for one in ones) / len(ones),
            "right": sum(one.outcome for one in ones) / len(ones),
        }
        for (model, tool, task), ones in sorted(found.items())
    ]


def _show(invocation: Invocation, name: str, figures: Mapping[str, Any] | None) -> None:
    from perdure.daemon.reliability import Bin, plot

    if figures is None:
        return
    invocation.say((f"{name}, {figures['count']} outcomes", "heading"))
    few = figures["count"] < COUNT_TELLING
    noise = "within its own noise" if figures["ece"] <= figures["ece_perfect_95"] else "more than its own noise"
    noise = f"fewer than {COUNT_TELLING} outcomes: says nothing yet" if few else noise
    invocation.say(f"  Brier score                 {figures['brier']:.4f}   right {figures['base_rate']:.3f}")
    invocation.say(f"  expected calibration error  {figures['ece']:.4f}   {noise}")
    perfect, most = figures["ece_perfect"], figures["ece_perfect_95"]
    most = max(perfect, most)  # of a few numbers near 1 the 95th of 100 may lie below the mean
    invocation.say(f"  a perfect scorer shows      {perfect:.4f}   on average, up to {most:.4f} in 95 of 100 cases")
    for row in plot([Bin(**one) for one in figures["bins"]]):
        invocation.say(f"  {row}")
    invocation.say()


def _show_groups(invocation: Invocation, groups: Sequence[Mapping[str, Any]], cold_below: int) -> None:
    for one in groups:
        words = line(
            (f"{one['task']} ", "name"),
            f"{one['tool']} ({one['model']}): stated {one['stated']:.2f}, calibrated {one['calibrated']:.2f}, ",
            f"right {one['right']:.2f}, {one['count']} outcomes",
            (f" (a cold start: fewer than {cold_below})" if one["cold"] else "", "warn"),
        )
        invocation.out.print(words)
