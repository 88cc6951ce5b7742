"""The way to a model: pydantic-ai's clients behind one call that never raises for what a provider does.

SDK retries are off (a retry that nobody reserved for could pass the budget); what is retried or handed to the fallback is
only what the provider cannot have charged for: refused connections, rate limits, overload, rejected requests."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from perdure.daemon import secrets
from perdure.daemon.config import ModelConfig
from perdure.daemon.planners import local_process
from perdure.daemon.planners.answers import Answer, CalledTool
from perdure.daemon.planners.moves import Usage
from perdure.daemon.planners.prompt import Prompt
from perdure.errors import PerdureError
from perdure.state.events import JSON

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters

RESPONSE_BYTES_MAX = 8_000_000
CONNECT_SECONDS_MAX = 10.0
PAUSES_SECONDS = (0.5, 2.0)  # before the second and the third attempt, where the provider names no pause
RETRY_AFTER_SECONDS_MAX = 20.0  # who asks for a longer pause is asked again by a later session, or not at all
DETAIL_CHARACTERS_MAX = 500
RAW_CHARACTERS_MAX = 100_000
BAD_REQUEST = (400, 422)
TOKENS_MAX = 2**40  # a provider that claims more is not believed

DEFAULT_KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
NO_KEY = "none"  # the OpenAI client insists on a key, and without one would send the environment's to any base_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One call's end. `failed` None: `answer` is there, and `others` where several were asked for and given. `unprocessed`: the
    provider cannot have charged for it. `detail` holds no secret."""

    answer: Answer | None = None
    others: tuple[Answer, ...] = ()
    usage: Usage | None = None
    raw: JSON = None
    failed: Literal["timeout", "failed"] | None = None
    detail: str = ""
    unprocessed: bool = False


async def ask(config: ModelConfig, prompt: Prompt, completion_cap: int, seconds_max: float, draws: int = 1) -> Outcome:
    """`draws` independent answers (or fewer: not every server gives several), each of up to `completion_cap` tokens, within
    `seconds_max` in all. Raises PerdureError only for the workspace's own mistakes (no key, no package, no model file)."""
    key = _key(config)
    await asyncio.to_thread(_load, config.provider)  # no part of the call: nothing would have been sent, yet paid for
    outcome = Outcome(failed="timeout", detail=f"no answer within {seconds_max:g} s")
    try:
        async with asyncio.timeout(seconds_max):
            async with _opened(config, key) as (model, client):
                client.answers_max = draws
                outcome = await _ask_with_retries(model, config, prompt, completion_cap, seconds_max, draws)
                others = [
                    await _ask_once(model, config, prompt, completion_cap, seconds_max, draws) for _ in client.held
                ]
                outcome = _together([outcome, *(other for other, _ in others)])
    except TimeoutError:
        pass
    return replace(
        outcome,
        raw=_redacted(outcome.raw, _held_secrets(config)),
        detail=without_key(config, outcome.detail)[:DETAIL_CHARACTERS_MAX],
    )


def without_key(config: ModelConfig, text: str) -> str:
    """The text with the provider's key, should it stand there, replaced by its name."""
    return secrets.redact(text, _held_secrets(config))


async def _ask_with_retries(
    model: Model, config: ModelConfig, prompt: Prompt, completion_cap: int, seconds_max: float, draws: int
) -> Outcome:
    for pause in PAUSES_SECONDS:
        outcome, wait = await _ask_once(model, config, prompt, completion_cap, seconds_max, draws)
        if wait is None or wait > RETRY_AFTER_SECONDS_MAX:
            return outcome
        await asyncio.sleep(wait if wait > 0 else pause)
    outcome, _ = await _ask_once(model, config, prompt, completion_cap, seconds_max, draws)
    return outcome


def _more(config: ModelConfig, prompt: Prompt, draws: int) -> dict[str, Any] | None:
    """What the request says besides: how many answers, and to the local server the form that an answer must have (it takes
    `tool_choice` for a wish, and a small model would only talk)."""
    more: dict[str, Any] = {"n": draws} if draws > 1 else {}
    if config.provider == "local":
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": dict(tool.schema)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in prompt.tools
        ]
        more["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": {"anyOf": calls}}}
    return more or None


async def _ask_once(
    model: Model, config: ModelConfig, prompt: Prompt, completion_cap: int, seconds_max: float, draws: int
) -> tuple[Outcome, float | None]:
    """The outcome, and how long to wait before another attempt (0: as the schedule says; None: do not try again)."""
    from pydantic_ai import exceptions
    from pydantic_ai.direct import model_request
    from pydantic_ai.settings import ModelSettings

    settings = ModelSettings(
        max_tokens=completion_cap,
        temperature=config.temperature,
        timeout=seconds_max,
        max_retries=0,
        tool_choice="required",
        parallel_tool_calls=False,
        extra_body=_more(config, prompt, draws),
    )
    try:
        response = await model_request(
            model, _messages(prompt), model_settings=settings, model_request_parameters=_parameters(prompt)
        )
    except (exceptions.ModelTimeoutError, exceptions.ModelRequestTimeout) as error:
        return Outcome(failed="timeout", detail=_words(error)), None
    except (exceptions.ModelRateLimitError, exceptions.ModelUnavailableError) as error:
        wait = error.retry_after if error.retry_after is not None and error.retry_after > 0 else 0.0
        return Outcome(failed="failed", detail=_words(error), unprocessed=True), wait
    except (exceptions.ModelRequestRejectedError, exceptions.ModelQuotaExceededError) as error:
        if draws > 1 and getattr(error, "status_code", None) in BAD_REQUEST:  # for `n`, perhaps, which not all know
            return await _ask_once(model, config, prompt, completion_cap, seconds_max, 1)
        return Outcome(failed="failed", detail=_words(error), unprocessed=True), None
    except exceptions.ModelConnectionError as error:
        refused = _never_connected(error)
        return Outcome(failed="failed", detail=_words(error), unprocessed=refused), 0.0 if refused else None
    except TimeoutError as error:
        return Outcome(failed="timeout", detail=_words(error)), None
    except exceptions.UnexpectedModelBehavior as error:
        return Outcome(failed="failed", detail=_misshapen(error)), None
    except IndexError:  # pydantic-ai takes the first choice unseen
        return Outcome(failed="failed", detail="the answer holds no choices: neither a tool call nor text"), None
    except Exception as error:  # noqa: BLE001  # a hostile answer breaks clients in ways of its own; none may end the daemon
        return Outcome(failed="failed", detail=_words(error)), None
    return _outcome(response, formed=config.provider == "local"), None


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """One call that gave several answers. Each of them says what all took; what could not be read is no answer, and takes none
    of the others along."""
    read = next((one for one in outcomes if one.answer is not None), None)
    if read is None or len(outcomes) == 1:
        return outcomes[0]
    nothing = Answer(text="", calls=(), cut=False)
    first, *others = (one.answer or nothing for one in outcomes)
    raws: list[dict[str, JSON]] = [one.raw if isinstance(one.raw, dict) else {"error": one.detail} for one in outcomes]
    raw: JSON = {**raws[0], "others": [*raws[1:]]}
    return replace(read, answer=first, others=tuple(others), raw=raw)


def _formed_call(text: str) -> CalledTool | None:
    try:
        call = json.loads(text)
        return CalledTool(str(call["name"]), call["arguments"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _outcome(response: ModelResponse, *, formed: bool) -> Outcome:
    from pydantic_ai.messages import TextPart, ToolCallPart

    texts = [part.content for part in response.parts if isinstance(part, TextPart)]
    calls = [CalledTool(part.tool_name, part.args) for part in response.parts if isinstance(part, ToolCallPart)]
    if formed and not calls and (call := _formed_call("".join(texts))) is not None:
        texts, calls = [], [call]
    usage = Usage(input_tokens=_told(response.usage.input_tokens), output_tokens=_told(response.usage.output_tokens))
    raw: dict[str, JSON] = {
        "model": _held(str(response.model_name)),
        "finish_reason": response.finish_reason,
        "text": _held("".join(texts)),
        "calls": [{"tool": _held(call.tool), "arguments": _held(_as_text(call.args))} for call in calls[:20]],
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
    }
    answer = Answer(text="".join(texts), calls=calls, cut=response.finish_reason == "length")
    return Outcome(answer=answer, usage=usage, raw=raw)


# -- messages -----------------------------------------------------------------------------------------------------------


def _messages(prompt: Prompt) -> list[ModelMessage]:
    from pydantic_ai import messages as wire

    history: list[ModelMessage] = [
        wire.ModelRequest(parts=[wire.SystemPromptPart(prompt.system), wire.UserPromptPart(prompt.user)])
    ]
    for turn in prompt.turns:
        history.append(wire.ModelResponse(parts=[wire.ToolCallPart(turn.tool, turn.args, turn.call)]))
        history.append(wire.ModelRequest(parts=[wire.ToolReturnPart(turn.tool, turn.result, turn.call)]))
    if prompt.rejected is not None:
        last = history[-1]
        if isinstance(last, wire.ModelRequest):
            history[-1] = wire.ModelRequest(parts=[*last.parts, wire.UserPromptPart(prompt.rejected)])
    return history


def _parameters(prompt: Prompt) -> ModelRequestParameters:
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.tools import ToolDefinition

    return ModelRequestParameters(
        function_tools=[
            # strict schemas would make every optional argument required
            ToolDefinition(
                name=tool.name, description=tool.description, parameters_json_schema=dict(tool.schema), strict=False
            )
            for tool in prompt.tools
        ]
    )


def _load(provider: str) -> None:
    """Load the client's modules, which takes seconds the first time on a small or busy machine."""
    from pydantic_ai import direct  # noqa: F401 — loaded for those who import it later
    from pydantic_ai.models import infer_model  # noqa: F401 — as above

    if provider in ("openai-compatible", "local"):
        from openai.resources.chat import chat  # noqa: F401 — the SDK itself loads both at the first request
        from openai.resources.chat.completions import completions  # noqa: F401 — as above
        from pydantic_ai.models import openai  # noqa: F401 — as above
        from pydantic_ai.providers import openai_compatible  # noqa: F401 — as above
    else:
        provider_class(provider)


# -- clients ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _opened(config: ModelConfig, key: str | None) -> AsyncIterator[tuple[Model, Any]]:
    """The model behind a client of its own, closed afterwards: nothing is shared between event loops or sessions."""
    from pydantic_ai.models import infer_model

    async with _bounded_client() as client:
        if config.provider in ("openai-compatible", "local"):
            base_url = config.base_url
            if config.provider == "local":
                assert config.file is not None
                room = config.context_tokens + (config.answers_per_call - 1) * config.completion_tokens
                base_url = await local_process.endpoint(config.file, room, config.answers_per_call)
            yield _compatible(config.name, str(base_url), key, client), client
        else:
            provider = _provider(config, key, client)
            yield infer_model(f"{config.provider}:{config.name}", provider_factory=lambda _: provider), client


def _compatible(name: str, base_url: str, key: str | None, client: Any) -> Model:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.profiles import merge_profile
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    provider = OpenAICompatibleProvider(
        "openai-compatible", base_url=base_url, api_key=key or NO_KEY, http_client=client
    )
    # `max_tokens` is the cap that every compatible server knows; `max_completion_tokens` is OpenAI's own
    profile = merge_profile(
        provider.model_profile(name), OpenAIModelProfile(openai_chat_supports_max_completion_tokens=False)
    )
    return OpenAIChatModel(name, provider=provider, profile=profile)


def _provider(config: ModelConfig, key: str | None, client: Any) -> Any:
    kind = provider_class(config.provider)
    accepted = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {"api_key": key, "base_url": config.base_url, "http_client": client}
    return kind(**{name: value for name, value in options.items() if name in accepted and value is not None})


def provider_class(provider: str) -> Any:
    """pydantic-ai's provider of that name. Raises PerdureError naming the package to install, or the name as unknown."""
    from pydantic_ai.providers import infer_provider_class

    try:
        return infer_provider_class(provider)
    except ImportError:
        hint = f'Install it: pip install "pydantic-ai-slim[{provider.split(":", maxsplit=1)[0]}]"'
        raise PerdureError("use the provider", provider, "its package is not installed", hint) from None
    except ValueError:
        hint = "Use openai-compatible with a base_url, local, openai, anthropic, or another provider of pydantic-ai"
        raise PerdureError("use the provider", provider, "there is no such provider", hint) from None


def local_server_installed() -> bool:
    """Whether the extra `perdure[local]` is there."""
    return importlib.util.find_spec("xllamacpp") is not None


@asynccontextmanager
async def _bounded_client() -> AsyncIterator[Any]:
    """An HTTP client that stops reading an answer that is too large to be one. Of a body with several answers, up to
    `answers_max`, it gives the first; the others are `held`, and the same request asked again gets them one by one."""
    import httpx2

    class BoundedClient(httpx2.AsyncClient):
        answers_max = 1
        held: tuple[bytes, ...] = ()

        async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
            if self.held:
                content, *rest = self.held
                self.held = tuple(rest)
                return httpx2.Response(
                    200, headers={"content-type": "application/json"}, content=content, request=request
                )
            response = await super().send(request, stream=True, **options)
            body = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > RESPONSE_BYTES_MAX:
                        raise httpx2.ReadError(f"the answer is larger than {RESPONSE_BYTES_MAX} bytes", request=request)
            finally:
                await response.aclose()
            headers = [
                (name, value)
                for name, value in response.headers.multi_items()
                if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
            ]
            content = bytes(body)
            if self.answers_max > 1 and response.is_success:
                content, *rest = _one_by_one(content, self.answers_max)
                self.held = tuple(rest)
            return httpx2.Response(response.status_code, headers=headers, content=content, request=request)

    async with BoundedClient(timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS_MAX)) as client:
        yield client


def _one_by_one(body: bytes, answers_max: int) -> list[bytes]:
    """A chat completion as one for each of its answers; what is none stays as it is."""
    try:
        whole = json.loads(body)
        return [json.dumps({**whole, "choices": [choice]}).encode() for choice in whole["choices"][:answers_max]] or [
            body
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [body]


def check_key(config: ModelConfig) -> None:
    """Raises PerdureError where the model's API key is to be had nowhere."""
    _key(config)


def _key(config: ModelConfig) -> str | None:
    name = _key_name(config)
    return None if name is None else secrets.credential(name)


def _key_name(config: ModelConfig) -> str | None:
    return config.key or DEFAULT_KEYS.get(config.provider)


def _held_secrets(config: ModelConfig) -> dict[str, str]:
    name = _key_name(config)
    return {} if name is None else {name: secrets.credential(name)}


# -- words --------------------------------------------------------------------------------------------------------------


def _never_connected(error: BaseException) -> bool:
    import httpx2

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not error and (reason := " ".join(str(cause).split())) and reason not in text:
        text = f"{text} ({type(cause).__name__}: {reason})"
    return text


def _misshapen(error: BaseException) -> str:
    """What is wrong with an answer that is none of the API's, without the client's own words about its classes."""
    from pydantic import ValidationError

    wrong = error.__cause__
    if not isinstance(wrong, ValidationError):
        return _words(error)
    found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong.errors(include_url=False)[:3]]
    return f"the answer is not what the API promises: {'; '.join(found)}"


def _told(count: int) -> int | None:
    return count if 0 < count <= TOKENS_MAX else None


def _as_text(args: str | Mapping[str, Any] | None) -> str:
    return args if isinstance(args, str) else repr(args)


def _held(text: str) -> str:
    """A text as the ledger can hold it."""
    return text[:RAW_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def _redacted(value: JSON, held: Mapping[str, str]) -> JSON:
    if isinstance(value, str):
        return secrets.redact(value, held)
    if isinstance(value, list):
        return [_redacted(element, held) for element in value]
    if isinstance(value, dict):
        return {key: _redacted(element, held) for key, element in value.items()}
    return value
