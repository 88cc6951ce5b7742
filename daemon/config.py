"""`perdure.toml`: what it may say, with defaults such that an empty file is valid, and how it is read."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from perdure.daemon.layout import CONFIG_NAME
from perdure.daemon.mcp.settings import McpServer, check_server_name
from perdure.daemon.proofs import PostconditionEntry, postcondition_texts
from perdure.daemon.quantities import Duration, Size
from perdure.daemon.setting_types import CredentialName, Trusted, VariableName, WorkspacePath, ZoneName, machine_zone
from perdure.daemon.toml_positions import Place, positions
from perdure.daemon.validation import Path as KeyPath
from perdure.daemon.validation import Source, Strict, shown, validate
from perdure.errors import Problem, Problems
from perdure.state.events import EffectClass

CONFIG_BYTES_MAX: Final = 1_000_000

BUILT_IN_TOOLS: Final = (
    "list_files",
    "read_file",
    "search_files",
    "write_file",
    "append_file",
    "move_file",
    "delete_file",
    "run_command",
    "http_request",
    "notify",
    "recall",
    "remember",
    "undo",
    "follow_up",
)

ANSWERS_PER_CALL_MAX: Final = 16
_ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_ARGUMENT_USED = re.compile(r"\$\{[^}]*?\bargs\.([A-Za-z_][A-Za-z0-9_]*)")


class Files(Strict):
    """Where file tools may go: nothing outside these roots, neither through links nor through `..`."""

    read: tuple[WorkspacePath, ...] = (Path(),)
    write: tuple[WorkspacePath, ...] = (Path(),)


class Commands(Strict):
    """Limits of `run_command` and, where they name none of their own, of the operator's tools."""

    env: dict[VariableName, str] = Field(default_factory=dict)
    seconds_max: Duration = 60.0
    output_bytes_max: Size = 64_000
    memory_bytes_max: Size = 1_000_000_000
    sandbox: Literal["landlock", "none"] = "landlock"
    read: tuple[WorkspacePath, ...] = ()
    write: tuple[WorkspacePath, ...] = ()


class Http(Strict):
    """Limits of `http_request`; which hosts it may reach is for the policies alone.

    `secrets` maps the name of each secret that a request may carry to the hosts that may get it. A host name that resolves
    to a private address is refused unless it is one of `private_hosts`.
    """

    seconds_max: Duration = 30.0
    bytes_max: Size = 256_000
    secrets: dict[CredentialName, tuple[str, ...]] = Field(default_factory=dict)
    private_hosts: tuple[str, ...] = ()


class Probe(Strict):
    """How to ask whether an action has happened: `happened` is CEL over `exit`, `stdout` and `stderr` of `command`."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    happened: str = "exit == 0"
    timeout: Duration = 10.0


class OperatorTool(Strict):
    """A tool of the operator's own: a program started with an argument list, never through a shell.

    `args` maps each argument to its JSON Schema (one with a `default` is optional); `${args.NAME}` in `command` and
    `probe.command` is replaced by its value. With `stdin = "args"` the program reads all arguments as one JSON object.
    `result = "json"` parses what it prints. Each condition of `verify` is looked at after a call that says it succeeded, with
    `${args.NAME}` and `${result}`; `verifier` is how often that look is right. `credentials` maps a secret's name to the
    variable that the program sees it in.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    description: str = ""
    args: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    paths: dict[str, Literal["read", "write"]] = Field(default_factory=dict)
    effect: EffectClass = "once"
    probe: Probe | None = None
    timeout: Duration | None = None
    stdin: Literal["none", "args"] = "none"
    result: Literal["text", "json"] = "text"
    env: dict[VariableName, str] = Field(default_factory=dict)
    credentials: dict[CredentialName, VariableName] = Field(default_factory=dict)
    network: bool = False
    read: tuple[WorkspacePath, ...] = ()
    write: tuple[WorkspacePath, ...] = ()
    trusted: Trusted = False
    output_bytes_max: Size | None = None
    memory_bytes_max: Size | None = None
    verify: tuple[PostconditionEntry, ...] = ()
    verifier: Annotated[float, Field(gt=0.5, lt=1)] | None = None

    @field_validator("args")
    @classmethod
    def _args_are_schemas(cls, args: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
        for name, schema in args.items():
            if _ARGUMENT_NAME.fullmatch(name) is None:
                raise ValueError(f"argument names of letters, digits and _, not {shown(name)}")
            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"a JSON Schema for the argument `{name}`: {error.message}") from None
        return args

    @model_validator(mode="after")
    def _parts_agree(self) -> OperatorTool:
        if self.effect == "probeable" and self.probe is None:
            raise ValueError('`probe = {command = [...]}`, because the effect is "probeable"')
        if self.effect != "probeable" and self.probe is not None:
            raise ValueError(f'`effect = "probeable"`, because there is a probe (found "{self.effect}")')
        commands = (*self.command, *(self.probe.command if self.probe else ()))
        texts = [text for entry in self.verify for text in postcondition_texts(entry.postcondition())]
        if any(entry.keep is not None or entry.unchanged is not None for entry in self.verify):
            raise ValueError("`keep` and `unchanged` only under a task's `postconditions`")
        used = {name for part in (*commands, *texts) for name in _ARGUMENT_USED.findall(part)}
        for name in sorted((used | set(self.paths)) - set(self.args)):
            raise ValueError(f"the argument `{name}` under `args`, because the command or `paths` uses it")
        return self


class Prices(Strict):
    """What a model costs, in USD per million tokens, where the price list does not know it."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class ModelConfig(Strict):
    """The model of `planner: model`. `key` names the environment variable or systemd credential that holds the API key.

    `provider` is `openai-compatible` (with `base_url`), `local` (a llama.cpp server that Perdure starts on loopback for
    `file`), or a provider's name such as `openai` or `anthropic`. `factor` is how much more the model's own count may be
    than ours (without it, what is safe for its family). `prices` overrides the price list. `answers_per_call` is how many
    draws of a vote one call may ask for (`n` of OpenAI's chat format), so that their common prompt is paid for once: 16 for
    `openai-compatible`, else 1.
    """

    provider: str = "openai-compatible"
    name: Annotated[str, Field(min_length=1)]
    base_url: str | None = None
    file: WorkspacePath | None = None
    key: CredentialName | None = None
    context_tokens: Annotated[int, Field(ge=256)] = 32_768
    completion_tokens: Annotated[int, Field(ge=16)] = 1024
    factor: Annotated[float, Field(ge=1.0, le=4.0)] | None = None
    seconds_max: Duration = 120.0
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    vote_temperature: Annotated[float, Field(gt=0, le=2)] = 0.7
    answers_per_call: Annotated[int, Field(ge=1, le=ANSWERS_PER_CALL_MAX)] = 1
    prices: Prices | None = None
    fallback: ModelConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _many_where_that_may_be(cls, told: object) -> object:
        if isinstance(told, dict) and told.get("provider", "openai-compatible") == "openai-compatible":
            return {"answers_per_call": ANSWERS_PER_CALL_MAX, **told}
        return told

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelConfig:
        if self.provider == "openai-compatible" and self.base_url is None:
            raise ValueError('`base_url`, because the provider is "openai-compatible"')
        if self.provider == "local" and self.file is None:
            raise ValueError('`file` (a GGUF model), because the provider is "local"')
        if self.base_url is not None and re.match(r"https?://[^\s/]+", self.base_url) is None:
            raise ValueError("a `base_url` that begins with http:// or https://")
        if self.answers_per_call > 1 and self.provider not in ("openai-compatible", "local"):
            raise ValueError(f'`answers_per_call = 1`, because the provider is "{self.provider}"')
        if self.completion_tokens >= self.context_tokens:
            raise ValueError(f"`completion_tokens` below `context_tokens` ({self.context_tokens})")
        return self


class SecretReference(Strict):
    """A value that stands in the environment or in a systemd credential."""

    secret: CredentialName


NotifyAbout = Literal["question", "alarm", "failed", "refused", "missed", "closed"]


class Notify(Strict):
    """How a person is reached besides the inbox file and the log. `command` gets the message as JSON on its standard
    input; `webhook` gets it as a POST. A webhook whose address is itself a secret is `{secret = "NAME"}`."""

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    webhook: str | SecretReference | None = None
    on: tuple[NotifyAbout, ...] = ("question", "alarm", "failed", "refused")
    timeout: Duration = 15.0


class Limits(Strict):
    """How much may happen at once; how many `follow_ups` one session may open, and how long a chain of them may be."""

    sessions: Annotated[int, Field(ge=1, le=64)] = 4
    follow_ups: Annotated[int, Field(ge=0, le=100)] = 3
    follow_up_depth: Annotated[int, Field(ge=0, le=100)] = 2


class Allowance(Strict):
    """Caps in any 60 minutes, 24 hours and 30 days; none where nothing is said."""

    tokens_per_hour: Annotated[int, Field(ge=1)] | None = None
    usd_per_hour: Annotated[float, Field(gt=0)] | None = None
    tokens_per_day: Annotated[int, Field(ge=1)] | None = None
    usd_per_day: Annotated[float, Field(gt=0)] | None = None
    tokens_per_month: Annotated[int, Field(ge=1)] | None = None
    usd_per_month: Annotated[float, Field(gt=0)] | None = None


class Budgets(Allowance):
    """Caps over all tasks together, and over single ones."""

    tasks: dict[str, Allowance] = Field(default_factory=dict)


class Confidence(Strict):
    """How sure Perdure is of what planners propose, before their record says more.

    `prior` is what a proposal of an unknown planner is worth: its own words can lower that, never raise it. With fewer than
    `cold_below` outcomes of a model, tool and task, its number is called a cold start. `verifier` is how often a check of an
    effect is right.
    """

    prior: Annotated[float, Field(gt=0, lt=1)] = 0.7
    cold_below: Annotated[int, Field(ge=1, le=10_000)] = 20
    verifier: Annotated[float, Field(gt=0.5, lt=1)] = 0.99


class Payloads(Strict):
    """How long requests to and replies from models are kept; the chain keeps their hashes for good."""

    keep: Duration = 90 * 86_400.0


class LedgerConfig(Strict):
    """`signing_key` names the credential (or environment variable) with the Ed25519 key that signs the ledger's anchor."""

    signing_key: CredentialName | None = None


class MemoryConfig(Strict):
    """How recall finds things (with the built-in embedding model, or by words alone), who writes summaries, and how long the
    text of what happened stays in memory: the ledger keeps it, and its summaries and facts stay."""

    embedding: Literal["minilm", "none"] = "minilm"
    summaries: Literal["extractive", "model"] = "extractive"
    # At the least longer than a month, which is summarised when it ends.
    keep: Annotated[Duration, Field(ge=40 * 86_400)] | None = None


class Config(Strict):
    """All of `perdure.toml`, checked, with every path absolute. `digest` is that of the file's bytes."""

    workspace: Path
    digest: str
    state_dir: Annotated[WorkspacePath, Field(alias="state")] = Path("state")
    timezone: ZoneName = Field(default_factory=machine_zone)
    files: Files = Field(default_factory=Files)
    commands: Commands = Field(default_factory=Commands)
    http: Http = Field(default_factory=Http)
    tools: dict[str, OperatorTool] = Field(default_factory=dict)
    mcp: dict[str, McpServer] = Field(default_factory=dict)
    model: ModelConfig | None = None
    notify: Notify = Field(default_factory=Notify)
    limits: Limits = Field(default_factory=Limits)
    budgets: Budgets = Field(default_factory=Budgets)
    confidence: Confidence = Field(default_factory=Confidence)
    payloads: Payloads = Field(default_factory=Payloads)
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)

    @field_validator("tools")
    @classmethod
    def _tool_names(cls, tools: dict[str, OperatorTool]) -> dict[str, OperatorTool]:
        for name in tools:
            if _NAME.fullmatch(name) is None:
                raise ValueError(f"tool names of small letters, digits and _, not {shown(name)}")
            if name in BUILT_IN_TOOLS:
                raise ValueError(f"a tool name other than `{name}`, which is built in")
        return tools

    @field_validator("mcp")
    @classmethod
    def _server_names(cls, mcp: dict[str, McpServer], info: ValidationInfo) -> dict[str, McpServer]:
        for name in mcp:
            check_server_name(name, frozenset(info.data.get("tools", {})))
        return mcp


_FILLED_IN: Final = ("workspace", "digest")


def load_config(workspace: Path) -> Config:
    """The configuration of `workspace`. Raises Problems with every mistake and its place; nothing is loaded then."""
    workspace = workspace.resolve()
    content, problems = _read(workspace / CONFIG_NAME)
    if problems:
        raise Problems("load", problems)
    config, problems = check_config(content, workspace)
    if config is None:
        raise Problems("load", problems)
    return config


def _read(path: Path) -> tuple[bytes, list[Problem]]:
    """The bytes of the file at `path`, or the problem that keeps us from them."""
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        found = "no such file" if path.parent.is_dir() else f"no directory {path.parent}"
        return b"", [Problem(path.name, 0, 0, found, f"a workspace; `perdure init {path.parent}` makes one")]
    except OSError as error:
        return b"", [Problem(path.name, 0, 0, str(error.strerror), "a file that this user can read")]
    if len(content) > CONFIG_BYTES_MAX:
        return b"", [Problem(path.name, 0, 0, "a larger file", f"at most {CONFIG_BYTES_MAX} bytes")]
    return content, []


def check_config(content: bytes, workspace: Path) -> tuple[Config | None, list[Problem]]:
    """The configuration that `content` is, or all its problems. `workspace` is absolute."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        return None, [Problem(CONFIG_NAME, line, column, f"the byte 0x{content[error.start]:02x}", "text in UTF-8")]
    source = Source(CONFIG_NAME, text)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return None, [_syntax_problem(source, error)]
    except RecursionError:
        return None, [Problem(CONFIG_NAME, 0, 0, "values nested too deep", "a configuration")]
    places = positions(text)
    problems = [
        source.problem(places[(name,)].key, f"the unknown key `{name}`", "a setting of Perdure")
        for name in _FILLED_IN
        if name in data
    ]
    for name in ("files", "commands", "http", "notify"):  # so that the defaults of sections with paths are resolved too
        data.setdefault(name, {})
    data |= {"workspace": str(workspace), "digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    config, more = validate(
        Config, data, source, _place_in(places), context={"workspace": workspace}, hidden=_FILLED_IN
    )
    problems += more
    return (None, problems) if problems else (config, [])


def _place_in(places: Mapping[KeyPath, Place]) -> Any:
    """A function from a path to its place; a path that is not in the file has the place of what holds it."""

    def place(path: KeyPath, key: bool) -> tuple[int, int]:
        found = None
        for depth in range(len(path), 0, -1):
            # pydantic puts the names of a union's members into the path: they stand in no file
            found = places.get(path[:depth])
            if found is not None:
                return found.key if key or depth < len(path) else found.value
        return (0, 0)

    return place


def _syntax_problem(source: Source, error: tomllib.TOMLDecodeError) -> Problem:
    message = str(error)
    place = re.search(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if place is None:
        return source.problem((0, 0), message, "TOML")
    what = message[: place.start()]
    if place[1] is None:
        line = max(len(source.lines), 1)
        return source.problem(
            (line, len(source.lines[-1]) + 1 if source.lines else 1), "the end of the file", f"TOML: {what}"
        )
    position = (int(place[1]), int(place[2]))
    line_text = source.lines[position[0] - 1] if position[0] <= len(source.lines) else ""
    rest = line_text[position[1] - 1 :].strip()
    return source.problem(position, shown(rest) if rest else "the end of the line", f"TOML: {what}")
