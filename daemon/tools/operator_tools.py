"""The operator's own tools, `[tools.NAME]` in perdure.toml: a program with an argument template, never a shell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel

from perdure.daemon.config import OperatorTool
from perdure.daemon.secrets import credential
from perdure.daemon.setting_types import trust_of
from perdure.daemon.tools.arguments import unknown_formats
from perdure.daemon.tools.digests import action_digest
from perdure.daemon.tools.executables import Executed, executed_by, search_path
from perdure.daemon.tools.model import Call, Prepared, Result, ToolRefused, ToolSpec
from perdure.daemon.tools.running import Limits, Runner, outcome, streams
from perdure.errors import PerdureError
from perdure.state.events import JSON

_USE = re.compile(r"\$\$\{|\$\{args\.([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)  # $${ stands for ${ itself
_PROBE_TYPES = {"exit": cel.Type.INT, "stdout": cel.Type.STRING, "stderr": cel.Type.STRING}

Happened = Callable[[int, str, str], bool | None]


def operator_spec(name: str, tool: OperatorTool) -> ToolSpec:
    """What others know of the tool. An argument without a default is required."""
    required = [argument for argument, schema in tool.args.items() if "default" not in schema]
    return ToolSpec(
        name=name,
        description=tool.description or f"The operator's own tool {name}: {tool.command[0]}",
        args_schema={"type": "object", "properties": tool.args, "required": required, "additionalProperties": False},
        effect=tool.effect,
        source="operator",
        **trust_of(tool.trusted),
        probeable=tool.probe is not None,
        paths=tool.paths,
    )


def operator_tool_problems(tool: OperatorTool) -> list[tuple[str, str]]:
    """What is wrong with a tool beyond its syntax, as (found, expected)."""
    problems = []
    for template in (tool.command, *((tool.probe.command,) if tool.probe else ())):
        if "${" in template[0]:
            problems.append((repr(template[0]), "a program that no argument chooses"))
        problems += [
            (repr(part), "${args.NAME} ($${ stands for ${ itself)") for part in template if "${" in _USE.sub("", part)
        ]
    problems += [
        (
            f'format = "{name}"',
            "a format that Perdure checks: cidr, date, date-time, email, hostname, ipv4, ipv6, uri, uuid",
        )
        for name in unknown_formats(tool.args)
    ]
    if tool.probe is not None:
        try:
            _happened(tool.probe.happened)
        except ValueError as error:
            problems.append(
                (f"happened = {tool.probe.happened!r}", f"a CEL condition over exit, stdout and stderr: {error}")
            )
    return problems


@dataclass(frozen=True, slots=True)
class Operated:
    """One operator tool at work."""

    spec: ToolSpec
    tool: OperatorTool
    runner: Runner

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        whole = self._with_defaults(args)
        paths = {
            name: (str(self.runner.roots.resolve(str(whole[name]), use)),)
            for name, use in self.tool.paths.items()
            if whole.get(name)
        }
        argv, executed = self._command(self.tool.command, whole, paths)
        environment = self.runner.base_environment(self.tool.env)
        cwd = str(self.runner.roots.workspace)
        return Prepared(
            spec=self.spec,
            args=whole,
            paths=paths,
            cwd=cwd,
            argv=argv,
            executed=executed.files,
            sandboxed=self.runner.confines(network=self.tool.network),
            digest=action_digest(
                self.spec,
                whole,
                paths=paths,
                cwd=cwd,
                environment=environment,
                argv=argv,
                executed=executed.files,
                also={
                    "credentials": dict(self.tool.credentials),
                    "stdin": self.tool.stdin,
                    "network": self.tool.network,
                },
            ),
        )

    async def run(self, prepared: Prepared, call: Call) -> Result:
        try:
            credentials = {variable: credential(name) for name, variable in self.tool.credentials.items()}
        except PerdureError as error:
            return Result(ok=False, value=None, error=str(error))
        argv, executed = self._command(self.tool.command, prepared.args, prepared.paths)
        environment = {**self.runner.base_environment(self.tool.env), **credentials}
        stdin = json.dumps(dict(prepared.args), ensure_ascii=False).encode() if self.tool.stdin == "args" else b""
        seconds = self.tool.timeout or self.runner.config.commands.seconds_max
        ended = await self.runner.run(
            argv, executed, environment, self._limits(seconds), call, cwd=self.runner.roots.workspace, stdin=stdin
        )
        result = outcome(prepared, ended)
        if self.tool.result == "json" and result.ok:
            return _parsed(argv[0], ended.stdout.text, truncated=ended.stdout.truncated)
        return result

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        probe = self.tool.probe
        if probe is None:
            return None
        try:
            argv, executed = self._command(probe.command, prepared.args, prepared.paths)
            credentials = {variable: credential(name) for name, variable in self.tool.credentials.items()}
            environment = {**self.runner.base_environment(self.tool.env), **credentials}
            ended = await self.runner.run(
                argv, executed, environment, self._limits(probe.timeout), call, cwd=self.runner.roots.workspace
            )
        except PerdureError:  # the probe's program or credential is gone: it has told nothing
            return None
        if ended.exit is None:
            return None
        said = streams(ended)
        return _happened(probe.happened)(ended.exit, str(said["stdout"]), str(said["stderr"]))

    def _with_defaults(self, args: Mapping[str, JSON]) -> dict[str, JSON]:
        defaults: dict[str, Any] = {
            name: schema["default"] for name, schema in self.tool.args.items() if "default" in schema
        }
        return {**defaults, **args}

    def _command(
        self, template: Sequence[str], args: Mapping[str, JSON], paths: Mapping[str, tuple[str, ...]]
    ) -> tuple[tuple[str, ...], Executed]:
        values = {**args, **{name: resolved[0] for name, resolved in paths.items()}}
        argv = tuple(_filled(template, index, values) for index in range(len(template)))
        where = search_path(self.runner.base_environment(self.tool.env))
        return argv, executed_by(argv, search_path=where, cwd=self.runner.roots.workspace)

    def _limits(self, seconds: float) -> Limits:
        tool, commands = self.tool, self.runner.config.commands
        return Limits(
            seconds_max=seconds,
            output_bytes_max=tool.output_bytes_max or commands.output_bytes_max,
            memory_bytes_max=tool.memory_bytes_max or commands.memory_bytes_max,
            network=tool.network,
            read=tool.read,
            write=tool.write,
        )


def _filled(template: Sequence[str], index: int, values: Mapping[str, JSON]) -> str:
    """One word of the command with its arguments in place. A text may not turn its word into an option: it would say
    something to the program that the operator did not write."""
    part = template[index]
    filled = _USE.sub(lambda use: _text(values[use[1]]) if use[1] else "${", part)
    first = _USE.match(part)
    if (
        first
        and first[1]
        and filled.startswith("-")
        and "--" not in template[:index]
        and not isinstance(values[first[1]], (int, float))
    ):
        raise ToolRefused(
            "pass",
            f"args.{first[1]}",
            f"{filled[:80]!r} begins with - and would be read as an option",
            'Put "--" before it in the tool\'s command, if the program understands that',
        )
    return filled


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(program: str, text: str, *, truncated: bool) -> Result:
    try:
        return Result(ok=True, value=json.loads(text, parse_constant=_no_constant))
    except ValueError as error:
        why = "it was more than the tool may print" if truncated else str(error)
        return Result(
            ok=False, value={"stdout": text}, error=f"{program} did not print JSON: {why}", truncated=truncated
        )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _happened(expression: str) -> Happened:
    """The probe's condition. Raises ValueError where it does not compile."""
    try:
        compiled = cel.NewEnv(variables=_PROBE_TYPES).compile(expression)
    except Exception as error:  # noqa: BLE001 - the library raises RuntimeError and others
        raise ValueError(str(error).strip().splitlines()[0]) from None

    def happened(exit: int, stdout: str, stderr: str) -> bool | None:
        # The library cuts texts at the first NUL.
        data = {"exit": exit, "stdout": stdout.replace("\0", "\ufffd"), "stderr": stderr.replace("\0", "\ufffd")}
        try:
            value = compiled.eval(data=data).value()
        except Exception:  # noqa: BLE001 - an expression that fails has told nothing
            return None
        return value if isinstance(value, bool) else None

    return happened
