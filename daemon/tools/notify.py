"""notify: tell a person something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perdure.daemon.notifications import Notifier
from perdure.daemon.tools import schemas
from perdure.daemon.tools.digests import prepare
from perdure.daemon.tools.model import Call, Prepared, Result, ToolSpec
from perdure.state.events import JSON

NOTIFY = ToolSpec(
    name="notify",
    description="Tell the person who looks after this machine something that they should know.",
    args_schema=schemas.args(
        "text",
        text=schemas.text("What to say", minLength=1, maxLength=10_000),
        title=schemas.text("One line that says what it is about", minLength=1, maxLength=200),
    ),
    effect="idempotent",  # said twice is no harm, and each channel gets the action's id to tell by
    free_text=("title", "text"),
)


@dataclass(frozen=True, slots=True)
class Notify:
    """Goes over every channel; fails where one of those that the operator configured did not take it."""

    notifier: Notifier
    spec: ToolSpec = NOTIFY

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return prepare(self.spec, args)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        text = str(prepared.args["text"])
        title = str(prepared.args.get("title") or text.splitlines()[0])
        outcomes = await self.notifier.notify(call.action, title, text, key=call.action)
        failed = {channel: error for channel, error in outcomes.items() if error}
        value: JSON = {"delivered": [*sorted(set(outcomes) - set(failed))], "failed": {**failed}}
        error = "; ".join(f"{channel}: {why}" for channel, why in failed.items()) or None
        return Result(ok=not failed, value=value, error=error)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None
