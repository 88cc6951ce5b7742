"""What a run says to a person: a layer when it has ended, and at the end one table of the right agent and one of the wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from .agents import CONTROLS, Agent
from .tables import table

EXAMPLES_MAX = 20
LAYERS = {  # in the order in which they run
    "kill": "a fault at each system call, and again at each call of the recovery",
    "power": "each disk content that a power cut could leave",
    "tamper": "each event edited, moved, renumbered, deleted, cut off",
    "cut": "an ext4 whose power is cut",
    "strace": "the unmodified program killed at its system calls",
    "daemon": "the daemon killed during a session",
    "backup": "a fault at each call of a backup, a restore, and of the writer beside them",
    "beside": "the same, and `perdure backup` killed, beside a real daemon",
    "fault": "full disk, read-only or locked database, a clock that jumps",
    "index": "the vector index and who uses it killed; the index replaced",
}


@dataclass
class Result:
    """What a layer did with an agent. `why_not` says why it could do nothing, `text` is for people."""

    tried: int
    failures: list[str]
    text: str = ""
    why_not: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


Results = dict[str, dict[str, Result]]  # agent -> layer -> what it did


def summary_line(agent: type[Agent]) -> str:
    """What the agent is, in a line."""
    return (agent.__doc__ or "").splitlines()[0]


def layer_words(agent: type[Agent], layer: str, result: Result) -> str:
    """One layer that has ended."""
    right = agent is Agent
    who = "the right agent" if right else f"{agent.__name__} ({summary_line(agent)})"
    head = f"\n■ {layer}: {who}"
    if result.why_not:
        return f"{head}\n  NOTHING TRIED: {result.why_not}"
    broken = len(result.failures)
    verdict = (
        (f"{broken:,} BROKEN PROMISES" if broken else "no promise broken")
        if right
        else "caught"
        if broken
        else "not caught"
    )
    examples = [f"  for example: {failure}" for failure in result.failures[: EXAMPLES_MAX if right else 1]]
    head += f"\n  {result.tried:,} tried in {result.seconds:.0f} s; {verdict}"
    return "\n".join([head, *([result.text] if result.text else []), *examples])


def right_table(results: dict[str, Result]) -> str:
    """The right agent, layer by layer. Every figure under `broken` must be a zero."""
    rows = [
        (layer, LAYERS[layer], "none" if one.why_not else one.tried, len(one.failures), f"{one.seconds:.0f}")
        for layer, one in results.items()
    ]
    return table(("layer", "what was done to it", "scenarios tried", "promises broken", "seconds"), rows, left=2)


def controls_table(results: Results) -> str:
    """Which wrong way each layer caught, as broken promises of so many scenarios; ✓ where it had to."""
    layers = [layer for layer in LAYERS if any(layer in results.get(one.__name__, {}) for one in CONTROLS)]
    rows = []
    for agent in CONTROLS:
        cells = []
        for layer in layers:
            result = results.get(agent.__name__, {}).get(layer)
            figures = f"{len(result.failures):,} of {result.tried:,}" if result is not None and result.tried else "-"
            must = agent.caught_by == layer and result is not None
            cells.append(f"{'✓' if result is not None and result.failures else '✗'} {figures}" if must else figures)
        if agent.__name__ in results:
            rows.append((agent.__name__, summary_line(agent), *cells))
    return table(("wrong on purpose", "how", *layers), rows, left=2)


def verdict(results: Results, wrong: list[str]) -> str:
    """The last words: what is wrong, or what was shown and what was left out."""
    if wrong:
        return "\n".join(f"✗ {words}" for words in wrong)
    tried = results.get("Agent", {})
    words = (
        [f"✓ {sum(one.tried for one in tried.values()):,} scenarios of the right agent, no promise broken"]
        if tried
        else []
    )
    caught = [agent for agent in CONTROLS if agent.caught_by in results.get(agent.__name__, {})]
    if caught:
        words.append(f"✓ {len(caught)} of {len(CONTROLS)} wrong ways caught, each by its layer")
    if untried := [agent.__name__ for agent in CONTROLS if agent not in caught]:
        words.append(f"• not tried in the layer that must catch them: {', '.join(untried)}")
    if left := [layer for layer in LAYERS if layer not in tried or tried[layer].why_not]:
        words.append(f"• layers not run: {', '.join(left)}")
    return "\n".join(words)
