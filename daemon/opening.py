"""Opening a workspace for work: the lock, the ledger, memory and tools, in the order that leaves nothing half-open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import structlog

from perdure.daemon.anchoring import journal_note, record_key, signer
from perdure.daemon.belonging import keep_to_workspace
from perdure.daemon.budget import WINDOW_US, Cap, Caps, Charge, Window
from perdure.daemon.clock import MICROSECONDS, Clock, Identifiers, SystemClock
from perdure.daemon.config import Allowance, Config
from perdure.daemon.layout import LEDGER
from perdure.daemon.learned import learn
from perdure.daemon.notifications import Notifier
from perdure.daemon.planners import build_planner
from perdure.daemon.recent import Recent
from perdure.daemon.runtime import Runtime
from perdure.daemon.scheduler import account_before_change
from perdure.daemon.secrets import redactor
from perdure.daemon.standing import Standing
from perdure.daemon.tasks import Task
from perdure.daemon.tools.registry import build_tools
from perdure.daemon.workspace import LoadedWorkspace
from perdure.memory import Memory
from perdure.state import projections
from perdure.state.events import AlarmRaised, ConfigurationLoaded, Draft, TaskLoaded, TaskRemoved
from perdure.state.ledger import Ledger, LedgerUnwritable
from perdure.state.ownership import Owner

if TYPE_CHECKING:
    from perdure.daemon.mcp.servers import Servers

SECONDS_BETWEEN = 5.0  # words about an upgrade that takes long
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedLedger:
    """The workspace's ledger, open for writing under its lock."""

    ledger: Ledger
    owner: Owner
    identifiers: Identifiers
    clock: Clock


@contextmanager
def own_ledger(
    config: Config, clock: Clock | None = None, *, adopt: bool = False, upgrading: Callable[[str], None] | None = None
) -> Iterator[OwnedLedger]:
    """Take the workspace's lock and open its ledger, making it on first use. Raises PerdureError naming the holder's pid
    where another process has the lock, and for a ledger of another workspace unless it is to be adopted.

    Bringing an older Perdure's ledger up to date takes a second for each 20,000 events or so: every few seconds the log, and
    `upgrading`, are told how far it is."""
    clock = clock or SystemClock()
    identifiers = Identifiers(clock.now)
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = Owner.acquire(config.state_dir)
    try:
        path = config.state_dir / LEDGER
        if not path.exists():
            Ledger.create(path, now=clock.now, workspace=identifiers.new()).close()
        sign = signer(config)
        ledger = Ledger.open(
            path, now=clock.now, fence=owner.fence, redact=redactor(config), sign=sign, announce=journal_note(),
            progress=_now_and_then(clock, upgrading),
        )  # fmt: skip
        try:
            keep_to_workspace(ledger, config, adopt=adopt)
            record_key(ledger, sign)
            yield OwnedLedger(ledger=ledger, owner=owner, identifiers=identifiers, clock=clock)
        finally:
            ledger.close()
    finally:
        owner.release()


def _now_and_then(clock: Clock, tell: Callable[[str], None] | None) -> Callable[[int, int], None]:
    """Told of each step of an upgrade, tells of the first, the last, and of one every few seconds."""
    said = [-SECONDS_BETWEEN]

    def progress(done: int, total: int) -> None:
        if clock.monotonic() - said[0] < SECONDS_BETWEEN and done < total:
            return
        said[0] = clock.monotonic()
        words = f"bringing the ledger up to date: {done:,} of {total:,} events"
        log.warning(words)
        if tell is not None:
            tell(words)

    return progress


@asynccontextmanager
async def open_runtime(owned: OwnedLedger, loaded: LoadedWorkspace) -> AsyncIterator[Runtime]:
    """Everything a session needs, on an owned ledger. The configuration in force is recorded where it changed."""
    config, ledger = loaded.config, owned.ledger
    notifier = Notifier(config, ledger, clock=owned.clock)
    found = ledger.reader.head().seq
    telling: set[asyncio.Task[object]] = set()
    memory = Memory.open(
        config.state_dir,
        ledger=ledger,
        now=owned.clock.now,
        embedding=config.memory.embedding,
        alarm=_alarm_from_any_thread(ledger, notifier, telling),
        keep_us=None if config.memory.keep is None else int(config.memory.keep * MICROSECONDS),
    )
    servers = open_servers(config, ledger, owned.clock)
    try:
        if any(task.planner == "model" for task in loaded.tasks.values()):
            await asyncio.to_thread(
                import_module, "scipy.optimize"
            )  # seconds on a busy machine: not in a session's time
        learned = learn(config, ledger, owned.clock.now)
        runtime = Runtime(
            config=config,
            clock=owned.clock,
            identifiers=owned.identifiers,
            ledger=ledger,
            memory=memory,
            tools=build_tools(
                config, memory=memory, notifier=notifier, servers=servers, ledger=ledger, now=owned.clock.now
            ),
            notifier=notifier,
            plan=lambda task: build_planner(task, config, circuits=learned.circuits, factors=learned.factors),
            redact=redactor(config),
            caps=workspace_caps(config, ledger, owned.clock),
            calibration=learned.calibration,
            circuits=learned.circuits,
            standing=standing_proofs(loaded, ledger),
            recent=Recent(ledger),
            drifts=learned.drifts,
            policies=loaded.policies,
            tasks=loaded.tasks,
            servers=servers,
            found=found,
        )
        ledger.commit(*configuration_events(ledger, loaded, owned.clock.now()))
        runtime.tasks = anchored(ledger, loaded.tasks)
        yield runtime
    finally:
        await servers.close()
        await memory.close()
        await asyncio.gather(*telling)


def _alarm_from_any_thread(
    ledger: Ledger, notifier: Notifier, telling: set[asyncio.Task[object]]
) -> Callable[[str, str], None]:
    """An alarm that memory may raise from its own threads; the event is written, and a person told, in the loop's. `telling`
    holds what still tells: the loop itself holds tasks only weakly."""
    loop = asyncio.get_running_loop()
    raised: set[tuple[str, str]] = set()

    def record(code: str, words: str) -> None:
        if (code, words) in raised:  # loud once: what lasts is said at the next start
            return
        raised.add((code, words))
        with suppress(LedgerUnwritable):
            ledger.commit(AlarmRaised(code=code, payload={"text": words}))
        task: asyncio.Task[object] = loop.create_task(
            notifier.notify(code, code.replace("-", " "), words, kind="alarm")
        )
        telling.add(task)
        task.add_done_callback(telling.discard)

    def alarm(code: str, words: str) -> None:
        with suppress(RuntimeError):  # the loop has ended: the process is going
            loop.call_soon_threadsafe(record, code, words)

    return alarm


def standing_proofs(loaded: LoadedWorkspace, ledger: Ledger) -> Standing:
    """What earlier sessions proved and later ones look at again; the ledger is read only where a task keeps something."""
    standing = Standing()
    if any(condition.keep is not None for task in loaded.tasks.values() for condition in task.postconditions):
        standing.feed(ledger.reader.events(types=("postcondition.checked",)))
    ledger.subscribe(standing.feed)
    return standing


def open_servers(config: Config, ledger: Ledger, clock: Clock) -> Servers:
    """The workspace's MCP servers, none of them started yet."""
    from perdure.daemon.mcp.servers import Servers

    return Servers(config, ledger, clock)


def configuration_events(ledger: Ledger, loaded: LoadedWorkspace, now: int) -> list[Draft]:
    """Events for what differs from the configuration that the ledger last saw in force; before them, those for what schedules
    that are in force no longer made due."""
    held = projections.configuration(ledger.reader)
    drafts: list[Draft] = []
    now_in_force = {
        "config": ("sha256:" + loaded.config.digest.removeprefix("sha256:"), {"perdure.toml": loaded.config.digest}),
        "policies": (loaded.policies.digest, dict(loaded.policies.files)),
    }
    for kind, (digest, files) in now_in_force.items():
        if held.get(kind) != digest:
            drafts.append(ConfigurationLoaded(kind=kind, digest=digest, files=files))
    known = {row.task: row for row in projections.tasks(ledger.reader) if row.removed_at is None}
    for task in loaded.tasks.values():
        row = known.pop(task.name, None)
        if row is not None:
            drafts += account_before_change(ledger.reader, row, task, now)
        if row is None or row.digest != task.digest or row.timezone != task.timezone:
            drafts.append(
                TaskLoaded(
                    task=task.name,
                    digest=task.digest,
                    schedule=task.schedule.text if task.schedule is not None else None,
                    timezone=task.timezone,
                    payload={"text": task.text},
                )
            )
    for row in known.values():
        drafts += [*account_before_change(ledger.reader, row, None, now), TaskRemoved(task=row.task)]
    return drafts


def workspace_caps(config: Config, ledger: Ledger, clock: Clock) -> Caps:
    """The caps of `[budgets]`, with what the ledger says was spent before this start."""
    budgets = config.budgets
    caps = _caps(budgets, None)
    for task, allowance in budgets.tasks.items():
        caps += _caps(allowance, task)
    since = clock.now() - WINDOW_US["month"]
    calls = projections.calls_since(ledger.reader, since)
    history = [Charge(at=call.at, task=call.task, tokens=call.tokens, usd=call.usd) for call in calls]
    return Caps(caps, now=clock.now, history=history)


def _caps(allowance: Allowance, task: str | None) -> list[Cap]:
    """The caps of one table, shortest window first."""
    windows: tuple[tuple[Window, int | None, float | None], ...] = (
        ("hour", allowance.tokens_per_hour, allowance.usd_per_hour),
        ("day", allowance.tokens_per_day, allowance.usd_per_day),
        ("month", allowance.tokens_per_month, allowance.usd_per_month),
    )
    return [
        Cap(window=window, task=task, tokens=tokens, usd=usd)
        for window, tokens, usd in windows
        if tokens is not None or usd is not None
    ]


def anchored(ledger: Ledger, tasks: Mapping[str, Task]) -> dict[str, Task]:
    """The tasks with their periods counting from when each was first loaded."""
    first = {row.task: row.first_loaded for row in projections.tasks(ledger.reader)}
    return {name: task.anchored(first[name]) for name, task in tasks.items()}
