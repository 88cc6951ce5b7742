"""How long decisions, commands, loading and replays take. Run it alone: `python tests/benchmarks/bench_policies.py`.

Prints one line for each measurement and writes nothing; a test that times itself would only measure the machine's mood."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "policies"))

from benign_corpus import LISTED
from policy_tools import SIGNATURES

from perdure.policies import commands
from perdure.policies.decisions import PolicySet, unmet_obligations
from perdure.policies.inline_tests import action_of
from perdure.policies.loading import load_policies
from perdure.policies.model import Facts
from perdure.policies.replay import Recorded, replay

FACTS = Facts(task="triage", planner="model", confidence=0.95, votes_ahead=3, hour=10, weekday="wed")
# Per 20 rules: what people write. Every fourth has a condition; six of them are about the tool that is asked for.
SHAPES = (
    '{{name: "r{n}", tools: [write_file], path: {{under: [reports{n}, out/{n}]}}, decide: auto}}',
    '{{name: "r{n}", tools: [write_file, append_file], when: "args.path.endsWith(\'.sh\') && hour < {h}", decide: escalate}}',
    '{{name: "r{n}", tools: [http_request], host: {{in: [h{n}.example.org, "*.h{n}.example.com"]}}, method: {{in: [GET]}}, decide: auto}}',
    '{{name: "r{n}", tools: [block_ip], when: "args.ip.startsWith(\'10.{h}.\')", decide: deny}}',
    '{{name: "r{n}", tools: [notify], args: {{level: l{n}}}, decide: auto}}',
    '{{name: "r{n}", tools: ["*"], require: {{confidence: 0.5}}}}',
    '{{name: "r{n}", tools: [read_file, list_files], path: {{under: in/{n}}}, decide: auto}}',
    '{{name: "r{n}", tools: [write_file], provenance: {{path: {{any: ["tool:x{n}"]}}}}, decide: escalate}}',
    '{{name: "r{n}", tools: [tickets], when: "given.count && args.count > {n}", decide: escalate}}',
    '{{name: "r{n}", tools: [run_command], program: {{in: [p{n}, q{n}]}}, decide: auto}}',
)


def rules(count: int) -> str:
    """A policy file of `count` rules of the shapes above."""
    body = "\n".join("  - " + SHAPES[n % len(SHAPES)].format(n=n, h=n % 24) for n in range(count))
    return (
        f"version: 1\nrules:\n{body}\ntests:\n  - {{tool: write_file, args: {{path: reports0/a.md}}, expect: auto}}\n"
    )


def load(count: int) -> tuple[PolicySet, float]:
    """The policies of `count` rules and the seconds that loading took."""
    with tempfile.TemporaryDirectory() as directory:
        (path := Path(directory) / "bench.yaml").write_text(rules(count), encoding="utf-8")
        begun = time.perf_counter()
        return load_policies([path], SIGNATURES, workspace=Path(directory)), time.perf_counter() - begun


def microseconds(ask: Callable[[], object], times: int = 5_000) -> list[float]:
    """Sorted durations of single calls in CPU time (the machine may be shared), the first hundred left out."""
    taken = []
    for number in range(times + 100):
        begun = time.thread_time_ns()
        ask()
        if number >= 100:
            taken.append((time.thread_time_ns() - begun) / 1_000)
    return sorted(taken)


def report(name: str, taken: list[float]) -> None:
    print(f"{name:<58} p50 {taken[len(taken) // 2]:8.1f} µs   p99 {taken[int(len(taken) * 0.99)]:8.1f} µs")


def main() -> None:
    for count in (20, 500):
        policies, seconds = load(count)
        gc.freeze()  # as the daemon does once it has loaded
        print(f"load and test {count} rules: {seconds * 1_000:.0f} ms")
        for tool, args in (
            ("write_file", {"path": "reports0/a.md", "text": "x"}),
            ("http_request", {"url": "https://h2.example.org/"}),
            ("block_ip", {"ip": "203.0.113.7"}),
        ):
            action = action_of(SIGNATURES[tool], args, policies.workspace)
            about = len(policies.bound(tool))
            report(
                f"decision, {count} rules ({about} about {tool})",
                microseconds(lambda p=policies, a=action: p.decide(a, FACTS)),
            )

            def both(p: PolicySet = policies, a: object = action) -> object:
                question = p.question(a, FACTS)
                return p.answer(question, unmet=unmet_obligations(p.required(question), FACTS))

            report("  both passes", microseconds(both))
    scripts = [form for form in LISTED if isinstance(form, str)]
    taken = []
    for _ in range(5):
        commands._analysed.cache_clear()
        for script in scripts:
            begun = time.thread_time_ns()
            commands.analyse(None, script, "/w")
            taken.append((time.thread_time_ns() - begun) / 1_000)
    report(f"analysis of {len(scripts)} everyday scripts, each once", sorted(taken))
    policies, _ = load(20)
    past = [
        Recorded(
            id=str(n),
            at=n,
            action=action_of(
                SIGNATURES["write_file"], {"path": f"reports{n % 40}/{n}.md", "text": "x"}, policies.workspace
            ),
            facts=FACTS,
            decided="auto",
        )
        for n in range(100_000)
    ]
    begun = time.perf_counter()
    result = replay(policies, past)
    print(
        f"replay of {result.decisions:,} decisions over 20 rules: {time.perf_counter() - begun:.1f} s, {result.flipped:,} flips"
    )


if __name__ == "__main__":
    main()
