"""What run_command and the operator's tools share: preparing a program, and running it in its sandbox."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perdure.daemon.config import Config
from perdure.daemon.sandbox import landlock
from perdure.daemon.sandbox.grants import Grants, root_grants, system_grants
from perdure.daemon.sandbox.programs import Ended, Orders, confinement_available, run_program
from perdure.daemon.tools.executables import DEFAULT_PATH, Executed, prefixes
from perdure.daemon.tools.model import Call, Prepared, Result, ToolInterrupted, ToolRefused
from perdure.daemon.tools.roots import Roots
from perdure.state.events import JSON

_SAID_MAX = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one program and what it may reach beyond the declared roots."""

    seconds_max: float
    output_bytes_max: int
    memory_bytes_max: int
    network: bool
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs the programs of one workspace."""

    config: Config
    roots: Roots

    def confines(self, *, network: bool) -> bool:
        """Whether a program started now would be confined."""
        return self.config.commands.sandbox == "landlock" and confinement_available(network=network)

    def base_environment(self, own: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of programs: what the configuration says, and a PATH and locale where it says none. The daemon's
        own environment is never passed on."""
        return {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", **self.config.commands.env, **(own or {})}

    async def run(
        self,
        argv: tuple[str, ...],
        executed: Executed,
        environment: Mapping[str, str],
        limits: Limits,
        call: Call,
        *,
        cwd: Path,
        stdin: bytes = b"",
    ) -> Ended:
        """Run the program with a private, empty directory as TMPDIR (and HOME, unless configured), removed afterwards."""
        scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="perdure-"))
        try:
            orders = Orders(
                program=str(executed.program),
                argv=argv,
                env={"HOME": str(scratch), **environment, "TMPDIR": str(scratch)},
                cwd=str(cwd),
                grants=self.grants(executed, limits, scratch) if self.confines(network=limits.network) else None,
                network=limits.network,
                stdin=stdin,
                seconds_max=min(limits.seconds_max, call.seconds_max),
                output_bytes_max=limits.output_bytes_max,
                memory_bytes_max=limits.memory_bytes_max,
            )
            return await run_program(orders, state_dir=self.config.state_dir, action=call.action)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def grants(self, executed: Executed, limits: Limits, scratch: Path) -> Grants:
        """Which paths a program started with these limits may use."""
        roots, commands = self.roots, self.config.commands
        for file in executed.files:
            if any(Path(file).is_relative_to(hidden) for hidden in roots.hidden):
                raise ToolRefused("run", file, "it lies in Perdure's own state", "Move it elsewhere")
        never = (*roots.hidden, self.config.workspace)
        system = system_grants(network=limits.network)
        declared = root_grants(
            (*(Path(path) for path, rights in system if rights == landlock.RUN), *prefixes(executed, never=never)),
            (),
            hidden=roots.hidden,
            kept=roots.kept,
        )
        own = root_grants(
            (*roots.read, *roots.write, *commands.read, *commands.write, *limits.read, *limits.write),
            (*roots.write, *commands.write, *limits.write),
            hidden=roots.hidden,
            kept=roots.kept,
        )
        return (
            *((path, rights) for path, rights in system if rights != landlock.RUN),
            *declared,
            *own,
            *((file, landlock.READ_FILE | landlock.EXECUTE) for file in executed.files),
            (str(scratch), landlock.WRITE),
        )


def outcome(prepared: Prepared, ended: Ended) -> Result:
    """The result of a program that ended. Raises ToolInterrupted where it was cut off after it may have had effects."""
    program = prepared.argv[0] if prepared.argv else prepared.spec.name
    if ended.refused is not None:
        return Result(ok=False, value=None, error=f"{program} could not be started: {ended.refused}")
    if ended.cut is not None:
        if (prepared.effect or prepared.spec.effect) == "read":
            return Result(ok=False, value=streams(ended), error=f"{program} was ended: {ended.cut}", truncated=True)
        said = (ended.stderr.text.strip() or ended.stdout.text.strip())[-_SAID_MAX:]
        raise ToolInterrupted(
            "finish",
            program,
            ended.cut + (f"; it had said: {said}" if said else ""),
            "What it did until then is not known",
        )
    truncated = ended.stdout.truncated or ended.stderr.truncated
    if ended.exit == 0:
        return Result(ok=True, value=streams(ended), truncated=truncated)
    how = f"exit {ended.exit}" if ended.exit is not None else f"killed by signal {ended.signal}"
    said = ended.stderr.text.strip()[-_SAID_MAX:]
    return Result(
        ok=False, value=streams(ended), error=f"{program}: {how}" + (f": {said}" if said else ""), truncated=truncated
    )


def streams(ended: Ended) -> dict[str, JSON]:
    """What people and planners see of a program's end."""
    value: dict[str, JSON] = {"exit": ended.exit, "stdout": ended.stdout.text, "stderr": ended.stderr.text}
    if ended.signal is not None:
        value["signal"] = ended.signal
    return value
