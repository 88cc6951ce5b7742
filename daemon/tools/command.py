"""run_command: one program with its arguments, confined and bounded; a shell only where `script` text is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from perdure.daemon.tools import schemas
from perdure.daemon.tools.digests import action_digest
from perdure.daemon.tools.executables import Executed, executed_by, executed_by_shell, search_path
from perdure.daemon.tools.model import Call, Prepared, Result, ToolRefused, ToolSpec
from perdure.daemon.tools.named_files import elsewhere, where_files_lead
from perdure.daemon.tools.running import Limits, Runner, outcome
from perdure.state.events import JSON

_SHELLS = (Path("/bin/bash"), Path("/bin/sh"))
_WORDS_MAX = 1_000

RUN_COMMAND = ToolSpec(
    name="run_command",
    description=(
        "Run a program. `command` is a list of words: the program, then its arguments; no shell reads it. Pass `script` "
        "instead, a script, only where pipes or the like are needed. There is no network and no terminal."
    ),
    args_schema=schemas.args(
        command={
            "type": "array",
            "items": {"type": "string", "maxLength": 131_000},
            "minItems": 1,
            "maxItems": _WORDS_MAX,
            "description": "The program and its arguments",
        },
        script=schemas.text("A shell script instead of `command`", minLength=1, maxLength=131_000),
        cwd=schemas.path("The working directory; default: the workspace"),
        seconds={"type": "number", "description": "Ended after so many seconds", "exclusiveMinimum": 0},
    ),
    effect="once",
    paths={"cwd": "read"},
)


@dataclass(frozen=True, slots=True)
class RunCommand:
    """Arbitrary programs: nothing is known of their effects, so the class is `once`."""

    runner: Runner
    spec: ToolSpec = RUN_COMMAND

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        cwd = self._cwd(args)
        argv, executed = self._executed(args, cwd)
        environment = self.runner.base_environment()
        paths = {"cwd": (str(cwd),)} if "cwd" in args else {}
        script = str(args["script"]) if "script" in args else None
        named = where_files_lead(argv, script, cwd=cwd, home=self.runner.config.commands.env.get("HOME"))
        links = elsewhere(named, cwd)
        return Prepared(
            spec=self.spec,
            args=args,
            paths=paths,
            cwd=str(cwd),
            argv=argv,
            script=script,
            named=named,
            executed=executed.files,
            sandboxed=self.runner.confines(network=False),
            digest=action_digest(
                self.spec,
                args,
                paths=paths,
                cwd=str(cwd),
                environment=environment,
                argv=argv,
                executed=executed.files,
                also={"links": links} if links else None,
            ),
        )

    async def run(self, prepared: Prepared, call: Call) -> Result:
        assert prepared.cwd is not None
        cwd = Path(prepared.cwd)
        argv, executed = self._executed(prepared.args, cwd)
        ended = await self.runner.run(
            argv, executed, self.runner.base_environment(), self._limits(prepared.args), call, cwd=cwd
        )
        return outcome(prepared, ended)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None

    def _cwd(self, args: Mapping[str, JSON]) -> Path:
        roots = self.runner.roots
        if "cwd" not in args:
            return roots.workspace
        text = str(args["cwd"])
        try:
            path = roots.resolve(text, "read")
        except ToolRefused:
            path = replace(roots, read=(*roots.write, *roots.read)).resolve(text, "read")
        if not path.is_dir():
            raise ToolRefused("run in", text, "there is no such directory", "Leave cwd out to run in the workspace")
        return path

    def _executed(self, args: Mapping[str, JSON], cwd: Path) -> tuple[tuple[str, ...], Executed]:
        command, script = args.get("command"), args.get("script")
        where = search_path(self.runner.base_environment())
        if (command is None) == (script is None):
            raise ToolRefused(
                "run", "the command", "there must be either `command` or `script`", "Pass `command`, a list of words"
            )
        if isinstance(command, list):
            argv = tuple(str(word) for word in command)
            return argv, executed_by(argv, search_path=where, cwd=cwd)
        shell = next((shell for shell in _SHELLS if shell.is_file()), _SHELLS[-1])
        return (str(shell), "-c", str(script)), executed_by_shell(shell, str(script), search_path=where, cwd=cwd)

    def _limits(self, args: Mapping[str, JSON]) -> Limits:
        commands = self.runner.config.commands
        asked = args.get("seconds")
        seconds = float(asked) if isinstance(asked, (int, float)) else commands.seconds_max
        return Limits(
            seconds_max=min(seconds, commands.seconds_max),
            output_bytes_max=commands.output_bytes_max,
            memory_bytes_max=commands.memory_bytes_max,
            network=False,
        )
