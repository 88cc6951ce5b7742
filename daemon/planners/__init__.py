"""Planners propose the next action: a playbook's steps in order, or what a language model answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.daemon.config import Config
    from perdure.daemon.planners.circuits import Circuits
    from perdure.daemon.planners.moves import Planner
    from perdure.daemon.tasks import Task
    from perdure.daemon.tools.model import ToolSpec
    from perdure.errors import Problem


def build_planner(
    task: Task, config: Config, *, circuits: Circuits | None = None, factors: Mapping[str, float] | None = None
) -> Planner:
    """The planner that the task asks for. `circuits` and `factors` (by model) are what earlier calls have taught about its
    providers. Raises PerdureError where it cannot work with this configuration."""
    if task.planner == "playbook":
        from perdure.daemon.planners.playbook import PlaybookPlanner

        return PlaybookPlanner(task)
    from perdure.daemon.planners.model import ModelPlanner
    from perdure.errors import Problems

    problems = check_planner(task, config)
    if problems or config.model is None:
        raise Problems("plan with", problems)
    return ModelPlanner(config.model, task, circuits=circuits, factors=factors)


def check_planner(task: Task, config: Config, tools: Mapping[str, ToolSpec] | None = None) -> list[Problem]:
    """Every mistake in a task that its planner can find without running: expressions, names, model, prices, sizes; and where
    `tools` are given, arguments that they would refuse."""
    if task.planner == "playbook":
        from perdure.daemon.planners.playbook_check import check_playbook

        return check_playbook(task, tools)
    from perdure.daemon.planners.model import check_model

    return check_model(task, config)
