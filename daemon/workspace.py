"""A workspace as its files say it: configuration, tools, tasks and policies, loaded together or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from perdure.daemon.config import Config, load_config
from perdure.daemon.layout import POLICIES, TASKS
from perdure.daemon.planners import check_planner
from perdure.daemon.tasks import Task, load_tasks
from perdure.daemon.tools.model import ToolSpec
from perdure.daemon.tools.registry import tool_specs
from perdure.errors import Problem, Problems
from perdure.policies import loading
from perdure.policies.decisions import PolicySet
from perdure.policies.loading import check_documents, load_policies
from perdure.policies.model import ToolSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWorkspace:
    """What is in force once loaded."""

    config: Config
    specs: Mapping[str, ToolSpec]
    tasks: Mapping[str, Task]
    policies: PolicySet


def load_workspace(directory: Path, config: Config | None = None) -> LoadedWorkspace:
    """Load everything. Raises Problems with every mistake of every file at once."""
    if config is None:
        try:
            config = load_config(directory)
        except Problems as error:
            raise Problems("load", error.problems + _problems_whatever_the_tools(directory.resolve())) from None
    specs = tool_specs(config)
    problems: list[Problem] = []
    tasks: Mapping[str, Task] = {}
    policies: PolicySet | None = None
    try:
        tasks = load_tasks(config.workspace / TASKS, known_tools=frozenset(specs), timezone=config.timezone)
        problems += [problem for task in tasks.values() for problem in check_planner(task, config, specs)]
    except Problems as error:
        problems += [_about_servers(problem, config) for problem in error.problems]
    try:
        policies = load_policies([config.workspace / POLICIES], signatures(specs), workspace=config.workspace)
    except Problems as error:
        problems += error.problems
    if problems or policies is None:
        raise Problems("load", problems)
    return LoadedWorkspace(config=config, specs=specs, tasks=tasks, policies=policies)


def _about_servers(problem: Problem, config: Config) -> Problem:
    """An unknown tool of a known MCP server is one that nobody has asked for yet."""
    found = re.fullmatch(r"the unknown tool `(\w+?)__.*`", problem.found)
    if found is None or found[1] not in config.mcp:
        return problem
    return replace(
        problem, expected=f"{problem.expected}; `perdure tools accept {found[1]}` asks the server for its tools"
    )


class _AnyTool(frozenset[str]):
    """Every name: while the configuration is broken, nobody knows which tools there are."""

    def __contains__(self, name: object) -> bool:
        return True


def _problems_whatever_the_tools(workspace: Path) -> list[Problem]:
    problems: list[Problem] = []
    try:
        load_tasks(workspace / TASKS, known_tools=_AnyTool(), timezone="UTC")
    except Problems as error:
        problems += error.problems
    if (workspace / POLICIES).is_dir():
        problems += check_documents([workspace / POLICIES], workspace=workspace)
    return problems


def policy_files(workspace: Path) -> list[Path]:
    """The workspace's own policy files."""
    return loading.policy_files([workspace / POLICIES])


def signatures(specs: Mapping[str, ToolSpec]) -> dict[str, ToolSignature]:
    """What the policies know of each tool."""
    return {
        name: ToolSignature(name=name, effect=spec.effect, args_schema=spec.args_schema, paths=dict(spec.paths))
        for name, spec in specs.items()
    }
