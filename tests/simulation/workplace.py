"""The workspace that is simulated: its configuration, the versions that people edit its files to, and the broken ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

TOKENS_PER_DAY = 60_000

CONFIG = f"""
timezone = "Europe/Berlin"
[limits]
sessions = 3
[budgets]
tokens_per_day = {TOKENS_PER_DAY}
[memory]
embedding = "none"
[model]
name = "simulated"
base_url = "http://127.0.0.1:9/v1"
completion_tokens = 512
factor = 1.0
prices = {{input = 1.0, output = 2.0}}

[tools.peek]
command = ["tools/act", "peek", "${{args.key}}"]
args = {{key = {{type = "string"}}}}
effect = "read"
[tools.put]
command = ["tools/act", "put", "${{args.key}}", "${{args.value}}"]
args = {{key = {{type = "string"}}, value = {{type = "integer"}}}}
effect = "idempotent"
[tools.block]
command = ["tools/act", "block", "${{args.ip}}"]
args = {{ip = {{type = "string"}}}}
effect = "probeable"
probe = {{command = ["tools/act", "blocked", "${{args.ip}}"]}}
[tools.pay]
command = ["tools/act", "pay", "${{args.amount}}"]
args = {{amount = {{type = "integer", minimum = 1}}}}
effect = "once"
"""

SIMULATED_TOOLS = ("peek", "put", "block", "pay")
OBSERVED_TOOLS = ("write_file",)

_EVERYDAY = """version: 1
rules:
  - {name: looking, tools: [peek, list_files, read_file, recall], decide: auto}
  - {name: reports, tools: [write_file], path: {under: reports}, decide: auto}
  - {name: notes, tools: [remember], decide: auto}
"""

Expected = Callable[[str, Mapping[str, object], float], str]


@dataclass(frozen=True)
class PolicyVersion:
    """A policy file, and what it must decide: the model's own view of it, which no code of Perdure has seen."""

    text: str
    expected: Expected


def _everyday(tool: str) -> str:
    return "auto" if tool in ("peek", "list_files", "read_file", "recall", "write_file", "remember") else "escalate"


def _version(extra: str, expected: Expected) -> PolicyVersion:
    return PolicyVersion(_EVERYDAY + extra, expected)


POLICIES = {
    "careful": _version(
        """  - {name: putting, tools: [put], decide: auto}
  - {name: blocking, tools: [block], decide: auto}
  - {name: money, tools: [pay], decide: escalate, expires: 12h, on_expiry: deny}
""",
        lambda tool, args, sure: "auto" if tool in ("put", "block") else _everyday(tool),
    ),
    "asking": _version(
        """  - {name: putting, tools: [put], decide: auto}
  - {name: blocking, tools: [block], decide: escalate, expires: 2h, on_expiry: approve}
  - {name: money, tools: [pay], decide: escalate, expires: 2d, on_expiry: deny}
""",
        lambda tool, args, sure: "auto" if tool == "put" else _everyday(tool),
    ),
    "strict": _version(
        """  - {name: putting, tools: [put], decide: auto}
  - {name: be sure, tools: [put], require: {confidence: 0.9}}
  - {name: blocking, tools: [block], decide: auto}
  - {name: no money, tools: [pay], decide: deny}
""",
        lambda tool, args, sure: (
            "deny"
            if tool == "pay"
            else ("auto" if sure >= 0.9 else "escalate")
            if tool == "put"
            else "auto"
            if tool == "block"
            else _everyday(tool)
        ),
    ),
    "open": _version(
        """  - {name: putting, tools: [put], decide: auto}
  - {name: not these, tools: [put], when: "args.value >= 900", decide: deny}
  - {name: blocking, tools: [block], decide: auto}
  - {name: small money, tools: [pay], when: "args.amount < 50", decide: auto}
  - {name: money, tools: [pay], when: "args.amount >= 50", decide: escalate, expires: 6h}
""",
        lambda tool, args, sure: (
            ("deny" if int(str(args["value"])) >= 900 else "auto")
            if tool == "put"
            else ("auto" if int(str(args["amount"])) < 50 else "escalate")
            if tool == "pay"
            else "auto"
            if tool == "block"
            else _everyday(tool)
        ),
    ),
}

BROKEN_POLICIES = (
    "version: 1\nrules:\n  - {name: x, tools: [pay], decide: atuo}\n",
    "version: 1\nrules: [{name: x, tools: [pay], decide: auto, when: 'args.amuont < 3'}]\n",
    "version: 1\nrules:\n  - {name: x, tools: [pay]\n",
    "",
    "version: 1\nrules:\n  - {name: x, tools: [pay], decide: auto}\ntests:\n"
    "  - {tool: pay, args: {amount: 3}, expect: deny}\n",
)

_SWEEP = """---
name: sweep
planner: playbook
schedule: {{every: {every}}}
if_missed: run-once
tools: [peek, put, write_file]
postconditions:
  - file_exists: "reports/sweep-${{slot.date}}.md"
---
steps:
  - {{do: peek, args: {{key: disk}}, save: seen}}
  - {{do: put, args: {{key: sweep, value: {value}}}, on_error: continue}}
  - {{do: write_file, args: {{path: "reports/sweep-${{slot.date}}.md", text: "swept"}}}}
"""

_GUARD = """---
name: guard
planner: model
schedule: {{cron: "{cron}", timezone: Europe/Berlin}}
if_missed: skip
tools: [peek, put, block, pay, remember, recall]
retries: 1
bounds: {{steps: {steps}, context: 3000, tokens: 20000, minutes: 20, cost_usd: 0.10}}
---
Guard the gate. Block what attacks, pay what is owed, and note what you learn.
"""

_NIGHTLY = """---
name: nightly
planner: playbook
schedule: {{cron: "15 2 * * *", timezone: Europe/Berlin}}
if_missed: {if_missed}
tools: [peek, pay, write_file]
while_parked: hold
postconditions:
  - file_exists: "reports/nightly-${{slot.date}}.md"
---
steps:
  - {{do: peek, args: {{key: bill}}, save: bill}}
  - {{do: pay, args: {{amount: 70}}, on_error: continue}}
  - {{do: write_file, args: {{path: "reports/nightly-${{slot.date}}.md", text: "paid"}}}}
"""

_AUDIT = """---
name: audit
planner: model
schedule: {{every: {every}}}
if_missed: {{run-if-within: 3h}}
tools: [peek, block, pay, write_file]
while_parked: run
bounds: {{steps: 6, context: 4000, tokens: 16000, minutes: 30}}
postconditions:
  - file_contains: {{path: reports/audit.md, text: audited}}
---
Audit the books and write reports/audit.md, which says that you audited.
"""

_HOURLY = """---
name: hourly
planner: playbook
schedule: {{cron: "5 * * * *", timezone: Europe/Berlin}}
if_missed: {if_missed}
only_if: {{files_changed: "inbox/*.log"}}
tools: [put]
---
steps:
  - {{do: put, args: {{key: hour, value: 1}}}}
"""

_WATCHER = """---
name: watcher
planner: playbook
schedule: {{watch: "inbox/*.log"}}
tools: [block, peek]
---
steps:
  - {{do: peek, args: {{key: inbox}}, on_error: continue}}
  - {{do: block, args: {{ip: "10.0.0.{host}"}}, on_escalate: continue, on_error: continue}}
"""

TASKS: dict[str, tuple[str, ...]] = {
    "sweep": (_SWEEP.format(every="6h", value=1), _SWEEP.format(every="5h", value=1), _SWEEP.format(every="6h", value=2)),
    "guard": (_GUARD.format(cron="30 */8 * * *", steps=8), _GUARD.format(cron="45 1,9,17 * * *", steps=5)),
    "nightly": (_NIGHTLY.format(if_missed="{run-all: {max: 3}}"), _NIGHTLY.format(if_missed="run-once")),
    "audit": (_AUDIT.format(every="12h"), _AUDIT.format(every="8h")),
    "hourly": (_HOURLY.format(if_missed="skip"), _HOURLY.format(if_missed="run-once")),
    "watcher": (_WATCHER.format(host=1), _WATCHER.format(host=2)),
}  # fmt: skip

BROKEN_TASKS = (
    "---\nname: sweep\nplanner: playbook\nschedule: {every: 0s}\n---\nsteps: []\n",
    "---\nname: sweep\nplanner: robot\n---\nsteps:\n  - {do: peek, args: {key: x}}\n",
    "no front matter at all",
    '---\nname: sweep\nplanner: playbook\ntools: [peek]\n---\nsteps:\n  - {do: peek, args: {key: "${nobody.knows}"}}\n',
)


def furnish(directory: Path) -> None:
    """Write the workspace as it is on the first day."""
    for name in ("policies", "tasks", "tools", "inbox", "reports"):
        (directory / name).mkdir(parents=True)
    write(directory / "perdure.toml", CONFIG)
    write(directory / "policies/policy.yaml", POLICIES["careful"].text)
    for name, versions in TASKS.items():
        write(directory / f"tasks/{name}.md", versions[0])
    write(directory / "tools/act", "#!/bin/sh\nexit 0\n")
    (directory / "tools/act").chmod(0o755)


def write(path: Path, text: str, *, at_us: int | None = None) -> None:
    """Write a file as an editor does; `at_us` is when."""
    path.write_text(text, encoding="utf-8")
    if at_us is not None:
        os.utime(path, ns=(at_us * 1_000, at_us * 1_000))
