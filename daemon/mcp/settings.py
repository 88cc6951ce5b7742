"""`[mcp.NAME]` of perdure.toml: how a server is started or reached, and what the operator says of its tools."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator, model_validator

from perdure.daemon.quantities import Duration, Size
from perdure.daemon.setting_types import CredentialName, Trusted, VariableName, WorkspacePath
from perdure.daemon.validation import Strict, shown
from perdure.state.events import EffectClass

SEPARATOR: Final = "__"  # between a server's name and its tool's; no built-in tool has it in its name
SERVER_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*", re.ASCII)
SERVER_NAME_CHARACTERS_MAX: Final = 24
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_OURS = frozenset({"host", "content-length", "content-type", "accept", "mcp-session-id", "mcp-protocol-version"})


class McpProbe(Strict):
    """Another tool of the same server that says whether an action has happened: `expect` is CEL over `ok`, `text`,
    `structured` and `args`. `args` may use `${args.NAME}` of the action."""

    tool: str
    args: dict[str, JsonValue] = Field(default_factory=dict)
    expect: str
    timeout: Duration = 10.0


class McpTool(Strict):
    """What the operator says of one tool. Nothing that the server claims about itself counts.

    `idempotency_key` names the argument that takes Perdure's key for the action; planners do not see it then.
    """

    effect: EffectClass = "once"
    trusted: Trusted = False
    paths: dict[str, Literal["read", "write"]] = Field(default_factory=dict)
    free_text: tuple[str, ...] = ()
    probe: McpProbe | None = None
    idempotency_key: str | None = None
    timeout: Duration | None = None
    enabled: bool = True

    @model_validator(mode="after")
    def _parts_agree(self) -> McpTool:
        if self.effect == "probeable" and self.probe is None:
            raise ValueError('`probe = {tool = "...", expect = "..."}`, because the effect is "probeable"')
        return self


class SecretHeader(Strict):
    """A header whose value is a secret, after `prefix`."""

    secret: CredentialName
    prefix: str = ""


class McpServer(Strict):
    """An MCP server: a program that speaks over its standard input and output, or a streamable HTTP `url`.

    The program gets `env`, its `credentials` (secret to variable), a PATH and a locale, and nothing else. `timeout` bounds a
    call, `start_timeout` the start. Of a result the planner sees `result_bytes_max`; the ledger keeps `kept_bytes_max`; a
    server that sends a message longer than `message_bytes_max` is ended.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    url: str | None = None
    env: dict[VariableName, str] = Field(default_factory=dict)
    credentials: dict[CredentialName, VariableName] = Field(default_factory=dict)
    headers: dict[str, str | SecretHeader] = Field(default_factory=dict)
    tools: dict[str, McpTool] = Field(default_factory=dict)
    sandbox: Literal["landlock", "none"] = "landlock"
    network: bool = False
    read: tuple[WorkspacePath, ...] = ()
    write: tuple[WorkspacePath, ...] = ()
    memory_bytes_max: Size = 4_000_000_000
    timeout: Duration = 60.0
    start_timeout: Duration = 30.0
    result_bytes_max: Size = 16_000
    kept_bytes_max: Annotated[Size, Field(le=2_000_000)] = 1_000_000
    message_bytes_max: Size = 8_000_000
    stderr_bytes_max: Size = 256_000

    @field_validator("headers")
    @classmethod
    def _header_names(cls, headers: dict[str, str | SecretHeader]) -> dict[str, str | SecretHeader]:
        for name, value in headers.items():
            if _HEADER_NAME.fullmatch(name) is None or name.lower() in _OURS:
                raise ValueError(f"a header of your own, not {shown(name)}")
            text = value if isinstance(value, str) else value.prefix
            if not text.isprintable():
                raise ValueError(f"a printable value for the header {name}")
        return headers

    @model_validator(mode="after")
    def _parts_agree(self) -> McpServer:
        if (self.command is None) == (self.url is None):
            raise ValueError("either `command` or `url`")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
                raise ValueError("a `url` that begins with http:// or https:// and holds no password")
            for name in ("env", "credentials", "read", "write", "network"):
                if getattr(self, name):
                    raise ValueError(f"no `{name}` beside `url`: nothing is started here")
        elif self.headers:
            raise ValueError("no `headers` beside `command`; a program takes `env` and `credentials`")
        for name, tool in self.tools.items():
            probe = tool.probe
            if probe is None:
                continue
            asked = self.tools.get(probe.tool)
            if asked is None or asked.effect != "read" or probe.tool == name:
                raise ValueError(
                    f'`tools.{probe.tool}` with `effect = "read"`, because `{name}` is probed with it (a probe changes nothing)'
                )
        return self


def check_server_name(name: str, operator_tools: frozenset[str]) -> None:
    """Raises ValueError where the name of a server could make its tools' names somebody else's."""
    if SERVER_NAME.fullmatch(name) is None or len(name) > SERVER_NAME_CHARACTERS_MAX:
        expected = f"server names of at most {SERVER_NAME_CHARACTERS_MAX} small letters, digits and single _"
        raise ValueError(f"{expected}, not {shown(name)}")
    taken = sorted(tool for tool in operator_tools if tool.startswith(name + SEPARATOR))
    if taken:
        raise ValueError(
            f"a server name other than `{name}`: its tools are called {name}{SEPARATOR}…, as your tool `{taken[0]}` is"
        )
