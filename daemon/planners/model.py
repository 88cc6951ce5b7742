"""The planner that asks a language model, any of those pydantic-ai speaks to, and believes nothing that it says unchecked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perdure.daemon import provenance
from perdure.daemon.clock import iso
from perdure.daemon.config import Config, ModelConfig
from perdure.daemon.planners import providers
from perdure.daemon.planners.answers import move_from
from perdure.daemon.planners.circuits import LEFT_ALONE
from perdure.daemon.planners.moves import Malformed, Move, Reply, Request, Usage, View
from perdure.daemon.planners.prices import price_usd
from perdure.daemon.planners.prompt import Prompt, compose, overhead
from perdure.daemon.recollection import ECHOING, RECALL, recalled_by_tool, recalled_lines
from perdure.daemon.tools.model import ToolSpec
from perdure.errors import PerdureError, Problem
from perdure.memory import tokens
from perdure.memory.factors import safe_factor
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.planners.circuits import Circuits
    from perdure.daemon.tasks import Task

FACTOR_MARGIN = 1.02  # a factor learned from a count that was higher than ours goes this much beyond it
FACTOR_MAX = 8.0


class ModelPlanner:
    """Proposes what the model of `[model]` answers; where its provider cannot be reached, what the fallback answers."""

    name = "model"

    def __init__(
        self,
        config: ModelConfig,
        task: Task,
        *,
        circuits: Circuits | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self._chain = tuple(_chain(config))
        self._task = task
        self._circuits = circuits
        self.model: str | None = _who(config)
        learned = [(factors or {}).get(_who(one), 1.0) for one in self._chain]
        self.factor = min(FACTOR_MAX, max(*(factor_of(one) for one in self._chain), *learned))
        self._composed: dict[int, tuple[Request, Prompt]] = {}
        self._gives: dict[str, int] = {}  # answers to one call, of who gave fewer than asked for

    def overhead(self, tools: Sequence[ToolSpec]) -> int:
        """Tokens of every call for schemas, rules and framing, times the factor."""
        return overhead(tools, self.factor)

    def request(self, view: View) -> Request:
        """The call that `propose` makes for this view. It covers the fallbacks: the largest of their prices and caps.
        `body` says `unpriced` where a price is not known (then `usd_max` counts it as 0). Raises PerdureError where the model's
        key is missing: nothing is reserved for a call that cannot be made."""
        first = self._chain[0]
        providers.check_key(first)
        prompt = self._compose(view)
        draws = min(view.draws, self._answers_max(first))
        prices = [price_usd(one, prompt.tokens, one.completion_tokens * draws) for one in self._chain]
        body: dict[str, JSON] = {
            "provider": first.provider,
            "model": first.name,
            "max_tokens": first.completion_tokens,
            "temperature": _temperature(first, view),
            "messages": prompt.messages(),
            "tools": prompt.tool_list(),
            "shortened": list(prompt.shortened),
            "dropped": prompt.dropped,
            "counted": prompt.counted,
        }
        if draws > 1:
            body["n"] = draws
        if None in prices:
            body["unpriced"] = True
        request = Request(
            model=_who(first),
            prompt_tokens=prompt.tokens,
            completion_cap=max(one.completion_tokens for one in self._chain) * draws,
            usd_max=max(price or 0.0 for price in prices),
            body=body,
            draws=draws,
        )
        self._composed[id(request)] = (request, prompt)
        return request

    async def propose(self, view: View, request: Request | None, seconds_max: float) -> Reply:
        """One answer as a move. Raises PerdureError only for the workspace's own mistakes (no key, no package, no file)."""
        if request is None:
            request = self.request(view)
        held = self._composed.pop(id(request), None)
        prompt = held[1] if held is not None else self._compose(view)
        nothing = Usage(input_tokens=0, output_tokens=0)
        reply = Reply(move=Malformed(reason="provider-failed", detail=""), usage=nothing, failed="failed")
        clock = asyncio.get_running_loop().time
        until = clock() + seconds_max
        for config in self._chain:
            left_alone = self._circuits.open_until(_who(config)) if self._circuits is not None else None
            if left_alone is not None:
                reply = _left_alone(_who(config), left_alone, reply)
                continue
            seconds = min(max(0.0, until - clock()), config.seconds_max)
            reply = await self._ask(config, view, prompt, seconds, min(request.draws, self._answers_max(config)))
            if self._circuits is not None:
                (self._circuits.failed if reply.failed else self._circuits.answered)(_who(config))
            if (
                reply.failed is None or reply.usage is None
            ):  # answered, or perhaps charged for: nothing is left for another
                break
        return reply

    def _compose(self, view: View) -> Prompt:
        return compose(view, factor=self.factor, tokens_max=self._task.bounds.context)

    async def _ask(self, config: ModelConfig, view: View, prompt: Prompt, seconds_max: float, draws: int) -> Reply:
        sampled = config.model_copy(update={"temperature": _temperature(config, view)})
        outcome = await providers.ask(sampled, prompt, config.completion_tokens, seconds_max, draws)
        who = _who(config)
        if outcome.answer is None:
            reason = "provider-timeout" if outcome.failed == "timeout" else "provider-failed"
            nothing = Usage(input_tokens=0, output_tokens=0) if outcome.unprocessed else None
            detail = f"{who}: {outcome.detail}"
            raw: JSON = {"asked": who, "error": outcome.detail, "unprocessed": outcome.unprocessed}
            failure = Malformed(reason=reason, detail=detail)
            return Reply(move=failure, usage=nothing, raw=raw, failed=outcome.failed or "failed")
        usage = outcome.usage
        self._learn(usage, prompt)
        if 1 + len(outcome.others) < draws:
            self._gives[_who(config)] = 1 + len(outcome.others)
        spent_in = usage.input_tokens if usage and usage.input_tokens is not None else prompt.tokens
        told_out = usage.output_tokens if usage else None
        spent_out = told_out if told_out is not None else config.completion_tokens * draws
        shown = _shown(self._task, view)
        moves: list[Move] = []
        for answer in (outcome.answer, *outcome.others):
            move = move_from(answer, prompt.tools, completion_cap=config.completion_tokens, shown=shown)
            if isinstance(move, Malformed):
                move = replace(move, detail=providers.without_key(config, move.detail))
            moves.append(move)
        return Reply(
            move=moves[0],
            others=moves[1:],
            usage=usage,
            usd=price_usd(config, spent_in, spent_out) or 0.0,
            raw=outcome.raw,
        )

    def _answers_max(self, config: ModelConfig) -> int:
        return min(config.answers_per_call, self._gives.get(_who(config), config.answers_per_call))

    def _learn(self, usage: Usage | None, prompt: Prompt) -> None:
        """A provider that counts more than was reserved raises the factor of the calls that follow."""
        if usage is None or usage.input_tokens is None or usage.input_tokens <= prompt.tokens or not prompt.counted:
            return
        self.factor = min(FACTOR_MAX, max(self.factor, usage.input_tokens / prompt.counted * FACTOR_MARGIN))


def factor_of(config: ModelConfig) -> float:
    """What our counts are multiplied with at the least: what the operator says, or else what is safe for the model's family."""
    return config.factor if config.factor is not None else safe_factor(config.name)


def _who(config: ModelConfig) -> str:
    return f"{config.provider}:{config.name}"


def _temperature(config: ModelConfig, view: View) -> float:
    """Votes are worth something only if the draws could differ."""
    return max(config.temperature, config.vote_temperature) if view.draw else config.temperature


def _left_alone(who: str, until: int, before: Reply) -> Reply:
    """The answer of a model whose circuit is open: it was not asked and cost nothing."""
    told = before.move.detail if isinstance(before.move, Malformed) else ""
    detail = "; ".join(part for part in (told, f"{who} {LEFT_ALONE} {iso(until)}") if part)
    failure = Malformed(reason="provider-failed", detail=detail)
    return Reply(move=failure, usage=before.usage, raw={"asked": who, "left_alone_until": until}, failed="failed")


def check_model(task: Task, config: Config) -> list[Problem]:
    """What keeps a task with `planner: model` from running with this configuration; empty when nothing does."""
    where = str(task.path)
    if config.model is None:
        return [Problem(where, 0, 0, "planner: model, but no [model] in perdure.toml", "a [model] that says which one")]
    problems: list[Problem] = []
    bounds = task.bounds
    for model in _chain(config.model):
        who = f"{model.provider}:{model.name}"
        problems += _provider_problems(where, model)
        if bounds.context + model.completion_tokens > model.context_tokens:
            found = f"context {bounds.context} + completion_tokens {model.completion_tokens} for {who}"
            problems.append(Problem(where, 0, 0, found, f"at most its context_tokens, {model.context_tokens}"))
        if price_usd(model, 1, 1) is None:
            found = f"a bound of {bounds.cost_usd:g} USD on {who}, whose price is not known"
            expected = (
                "`prices = {input = USD, output = USD}` per million tokens in [model] (0 and 0 if it costs nothing)"
            )
            problems.append(Problem(where, 0, 0, found, expected))
    needed = tokens.charged(tokens.count(task.instruction), max(factor_of(one) for one in _chain(config.model)))
    if needed > bounds.context:
        found = f"an instruction of {needed} tokens"
        problems.append(Problem(where, 0, 0, found, f"one that fits the bound on one call, context: {bounds.context}"))
    return problems


def _provider_problems(where: str, model: ModelConfig) -> list[Problem]:
    if model.provider == "openai-compatible":
        return []
    if model.provider == "local":
        if not providers.local_server_installed():
            found = "provider local, but the package xllamacpp is not installed"
            return [Problem(where, 0, 0, found, 'the extra: pip install "perdure[local]"')]
        if model.file is None or not model.file.is_file():
            return [
                Problem(where, 0, 0, f"no model file {model.file}", "a GGUF file; `make local-model` gets a small one")
            ]
        return []
    try:
        providers.provider_class(model.provider)
    except PerdureError as error:
        return [Problem(where, 0, 0, f"provider {model.provider!r}: {error.cause}", error.hint)]
    return []


def _chain(config: ModelConfig) -> Iterator[ModelConfig]:
    """The model and its fallbacks, in the order configured."""
    one: ModelConfig | None = config
    while one is not None:
        yield one
        one = one.fallback


def _shown(task: Task, view: View) -> provenance.Shown:
    specs = {spec.name: spec for spec in view.tools}
    texts: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    recalled = list(recalled_lines(view.context, view.behind))
    for taken in view.taken:
        tool = taken.proposal.tool
        if tool in ECHOING:
            continue
        if tool == RECALL:
            recalled += recalled_by_tool(taken.result, view.behind)
            continue
        origin = provenance.origin_of_result(specs.get(tool), tool)
        for is_vouched, text in provenance.texts_by_trust(taken.result, origin):
            texts[is_vouched].append((tool, text))
    return provenance.Shown(instruction=task.instruction, recalled=recalled, outputs=texts[False], vouched=texts[True])
