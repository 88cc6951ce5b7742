"""From what a model answered to a move: a proposal within the offered tools and their schemas, the end, or Malformed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from perdure.daemon import provenance
from perdure.daemon.planners.moves import Finish, Malformed, Move, Proposal
from perdure.daemon.planners.prompt import FINISH, OfferedTool
from perdure.daemon.planners.saved import bounded_saved
from perdure.state.events import JSON

CONFIDENCE_PRIOR = 0.7  # what a proposal is worth whose model does not say how sure it is
SAYS_CHARACTERS_MAX = 2_000
SHOWN_CHARACTERS = 200
SAID_CHARACTERS_MAX = 20_000  # of an answer that is no move, for its sources: no more than a detail quotes of it
CHARACTERS_PER_TOKEN_MAX = 16  # no model gets more out of a token on average; more text than that ignored its cap
DEPTH_MAX = 32
INTEGER_MAX = 2**53 - 1  # beyond it JSON numbers do not survive every reader (RFC 8785)


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A tool call as the model wrote it: `args` is its JSON text, or what a provider's client already parsed."""

    tool: str
    args: str | Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, provider-neutral. `cut` says that the answer ended because its cap on tokens was reached."""

    text: str
    calls: Sequence[CalledTool]
    cut: bool


def move_from(answer: Answer, tools: Sequence[OfferedTool], *, completion_cap: int, shown: provenance.Shown) -> Move:
    """The first tool call as a Proposal or Finish; anything else as Malformed with what to tell the model. Never raises."""
    try:
        return _move(answer, {tool.name: tool for tool in tools}, completion_cap, shown)
    except _Refused as refused:
        said = (answer.text, *(f"{call.tool} {call.args}" for call in answer.calls[:1]))
        return Malformed(
            reason=refused.reason,
            detail=refused.detail,
            provenance=provenance.of_words((text[:SAID_CHARACTERS_MAX] for text in said), shown),
        )


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def _move(answer: Answer, tools: Mapping[str, OfferedTool], completion_cap: int, shown: provenance.Shown) -> Move:
    text = answer.text.strip()
    if not answer.calls:
        if answer.cut:
            raise _Refused("too-long", f"the answer reached its {completion_cap} tokens without a tool call")
        if not text:
            raise _Refused("empty", "the answer is empty; call one tool")
        raise _Refused("garbage", f"the answer is text without a tool call; it begins: {_shown(text)}")
    call = answer.calls[0]
    tool = tools.get(call.tool)
    if tool is None:
        raise _Refused(
            "unknown-tool", f"no tool {_shown(call.tool)} is offered; offered are {', '.join(sorted(tools))}"
        )
    args = _arguments(call, completion_cap, cut=answer.cut)
    confidence = _confidence(args.pop(tool.confidence_key, None)) if tool.name != FINISH else 1.0
    _check_schema(tool, args)
    says = _bounded(text)
    if len(answer.calls) > 1:
        ignored = len(answer.calls) - 1
        says = f"{says}\n({ignored} more tool call{'s' if ignored > 1 else ''} in the same answer ignored)".strip()
    if tool.name == FINISH:
        return _finish(args, says, shown)
    return Proposal(
        tool=tool.name,
        args=args,
        provenance=provenance.of_model(args, shown),
        confidence=confidence,
        says=says,
    )


def _finish(args: Mapping[str, JSON], says: str, shown: provenance.Shown) -> Finish:
    told, given = args.get("says"), args.get("saved")
    saved, cut = bounded_saved(given if isinstance(given, dict) else {})
    words = "\n".join(part for part in (told if isinstance(told, str) else "", says) if part)
    if cut:
        words += f"\n(shortened for the next session: {', '.join(cut)})"
    words = _bounded(words)
    traced = provenance.of_words((words, *provenance.leaves(dict(saved))), shown)
    return Finish(says=words, saved=saved, provenance=traced)


def _arguments(call: CalledTool, completion_cap: int, *, cut: bool) -> dict[str, JSON]:
    raw = call.args
    if raw is None or raw == "":
        return {}
    if isinstance(raw, str):
        if len(raw) > CHARACTERS_PER_TOKEN_MAX * completion_cap:
            raise _Refused(
                "too-long",
                f"the arguments of {call.tool} have {len(raw)} characters; the cap is {completion_cap} tokens",
            )
        try:
            raw = json.loads(raw, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            if cut:
                raise _Refused(
                    "too-long", f"the arguments of {call.tool} were cut off at {completion_cap} tokens"
                ) from None
            why = "they are nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise _Refused("bad-arguments", f"the arguments of {call.tool} are not valid JSON: {_shown(why)}") from None
    if not isinstance(raw, Mapping):
        raise _Refused("bad-arguments", f"the arguments of {call.tool} are not a JSON object")
    _check_values(call.tool, raw, DEPTH_MAX)
    return dict(raw)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_values(tool: str, value: Any, depth: int) -> None:
    """Refuse what the ledger could not hold exactly: deep nesting, huge numbers, broken characters, NUL."""
    if depth == 0:
        raise _Refused("bad-arguments", f"the arguments of {tool} are nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise _Refused("bad-arguments", f"the arguments of {tool} hold a character that no text may hold")
    elif isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise _Refused("bad-arguments", f"the arguments of {tool} hold a number that is too large")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124  # NaN is not itself
            raise _Refused("bad-arguments", f"the arguments of {tool} hold a number that JSON cannot hold")
    elif isinstance(value, Mapping):
        for key, element in value.items():
            _check_values(tool, key, depth)
            _check_values(tool, element, depth - 1)
    elif isinstance(value, list):
        for element in value:
            _check_values(tool, element, depth - 1)


def _check_schema(tool: OfferedTool, args: Mapping[str, JSON]) -> None:
    schema = dict(tool.schema)
    if tool.name != FINISH:
        schema["properties"] = {key: sub for key, sub in schema["properties"].items() if key != tool.confidence_key}
    error: ValidationError | None = best_match(Draft202012Validator(schema).iter_errors(dict(args)))
    if error is not None:
        place = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in error.absolute_path)
        raise _Refused("bad-arguments", f"{tool.name}{place}: {_shown(error.message)}")


def _confidence(value: Any) -> float:
    """What the model says of itself, where it is a number from 0 to 1; else the prior."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return CONFIDENCE_PRIOR


def _bounded(text: str) -> str:
    return text if len(text) <= SAYS_CHARACTERS_MAX else text[:SAYS_CHARACTERS_MAX] + "…"


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + "…")
