"""Where an argument's value came from. Pure: texts in, sources out.

A model cannot be asked where it has a value from, so its arguments are searched for in what it was shown: a value, or a
distinctive part of one (an address, a URL, a path, a longer word), that stands in a text counts as coming from there. One word that
everybody uses is no such part; several of them together are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

from perdure.daemon.ordinary_words import EVERYDAY_PROGRAMS, ORDINARY
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.tools.model import ToolSpec

Field = tuple[str, ...]

_NO_CHOICE = ORDINARY | EVERYDAY_PROGRAMS

_TRUST = {"instruction": 0, "person": 1, "config": 2, "memory": 4, "model": 6}
_VOUCHED_TRUST = 3  # what a tool returned in a field that the operator declared trusted
_TOOL_TRUST = 5

WORD_CHARACTERS_MIN = 6
WHOLE_CHARACTERS_MIN = 3  # a shorter value ("a", "22") stands everywhere by chance
PARTS_MAX = 2_000

TOKEN_CHARACTERS_MAX = 512  # the patterns below are tried on tokens of at most this length, so that none costs too much

_TOKEN = re.compile(r"[^\s\"'<>()\[\]{},;|]+")
_DISTINCTIVE = (
    re.compile(r"(?:\d{1,3}\.){3}\d{1,3}(?:/\d{1,2})?"),  # an IPv4 address or network
    re.compile(r"(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?:/\d{1,3})?"),  # an IPv6 address or network
    re.compile(r"[\w.+-]+@[\w.-]+\.\w+"),  # an e-mail address
    re.compile(r"(?<=://)[^/?#]+"),  # the host of a URL
    re.compile(r"[\w-]+(?:\.[\w-]+)+"),  # a host or file name
    re.compile(r"[\w.@%+~-]*(?:/[\w.@%+~-]+)+/?"),  # a path
)
_WORD = re.compile(rf"\w{{{WORD_CHARACTERS_MIN},}}")
_HOST = re.compile(r"(?:(?<=://)|(?<=@))[\w.-]+")
_LABEL = re.compile(r"[^\W_]{2,}")


@dataclass(frozen=True, slots=True)
class Said:
    """A text, and the sources that it was recorded to have. `proposed`: it is an argument, which was there before the result."""

    sources: tuple[str, ...]
    text: str
    proposed: bool = False


@dataclass(frozen=True, slots=True)
class Recalled:
    """A line of memory. `behind` gives what stood in the events that the line tells of; it is asked only where the line holds
    a value in question."""

    text: str
    behind: Callable[[], Sequence[Said]] = tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a planner was shown: the instruction, what memory recalled, (tool, text) for each text that a tool returned, and
    the same for each that stands in a field that the operator declared trusted."""

    instruction: str = ""
    recalled: Sequence[Recalled] = ()
    outputs: Sequence[tuple[str, str]] = field(default_factory=tuple)
    vouched: Sequence[tuple[str, str]] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value and its fields came from: `sources`, but for the `fields` of `tool` that are declared trusted. `parts` are
    what it was put together from, by name; a field that is none of them may be a field of any."""

    sources: tuple[str, ...]
    tool: str = ""
    fields: tuple[Field, ...] = ()
    parts: tuple[tuple[str, Origin], ...] = ()

    def of(self, used: Field) -> tuple[str, ...]:
        """The sources of one field, or of the value itself (no field)."""
        if self.parts:
            named = [part.of(used[1:]) for name, part in self.parts if used[:1] == (name,)]
            return by_trust(chain(self.sources, *(named or [part.of(used) for _, part in self.parts])))
        return vouched(self.tool) if any(used[: len(field)] == field for field in self.fields) else self.sources

    def within(self, used: Field) -> Origin:
        """The origin of one field, its own fields included: of what `for_each` goes over."""
        if self.parts:
            return Origin(self.of(used))
        inner = tuple(field[len(used) :] for field in self.fields if field[: len(used)] == used)
        return Origin(self.of(used), self.tool, tuple(field for field in inner if field))


def vouched(tool: str) -> tuple[str, ...]:
    """The source of what the operator declared trusted of a tool."""
    return (f"trusted:{tool}",)


def origin_of_result(spec: ToolSpec | None, tool: str) -> Origin:
    """The origin of what a call of the tool returned; of `recall`, see recollection.origin_of_recalled."""
    if spec is not None and spec.trusted:
        return Origin(vouched(tool))
    fields = tuple(tuple(field.split(".")) for field in spec.trusted_fields) if spec is not None else ()
    return Origin((f"tool:{tool}",), tool, fields)


def texts_by_trust(value: JSON, origin: Origin, at: Field = ()) -> Iterator[tuple[bool, str]]:
    """Each text, name and number in a result, with whether the operator vouches for it. A list is transparent: its elements
    have the list's fields."""
    is_vouched = origin.of(at)[0].startswith("trusted:")
    if isinstance(value, list):
        for element in value:
            yield from texts_by_trust(element, origin, at)
    elif isinstance(value, dict):
        for key, element in value.items():
            yield is_vouched, key
            yield from texts_by_trust(element, origin, (*at, key))
    else:
        yield from ((is_vouched, text) for text in leaves(value))


def by_trust(sources: Iterable[str]) -> tuple[str, ...]:
    """The sources without repetition, most trusted first: instruction, person, config, fields that are declared trusted, memory,
    tools, model."""
    return tuple(sorted(set(sources), key=lambda source: (_trust(source), source)))


def _trust(source: str) -> int:
    return _VOUCHED_TRUST if source.startswith("trusted:") else _TRUST.get(source, _TOOL_TRUST)


def of_model(args: Mapping[str, JSON], shown: Shown) -> dict[str, tuple[str, ...]]:
    """The sources of each argument that a model proposed: always `model`, and every text that it can have it from; of what
    memory showed, `memory` and what that came from."""
    lookup = _Lookup(shown)
    return {name: by_trust({"model"}.union(*map(lookup.sources, choices(value)))) for name, value in args.items()}


def choices(value: JSON) -> Iterator[str]:
    """What of an argument somebody can have chosen: each text and number in it, and of a list of words all of them in a row,
    where its first may be the name of an everyday program, which chooses nothing."""
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        if len(value) > 1:
            yield " ".join(map(str, value))
        yield from leaves(value[1:] if value[0] in EVERYDAY_PROGRAMS else value)
    else:
        yield from leaves(value)


def of_words(texts: Iterable[str], shown: Shown) -> dict[str, list[str]]:
    """For what a model said and nobody decides on, but memory may show again: the telling parts of it that stand in what it was
    shown, by source."""
    lookup = _Lookup(shown)
    found: dict[str, dict[str, None]] = {}
    for text in texts:
        for part in distinctive_parts(text):
            if part not in lookup.instruction:
                for source in lookup.sources(part):
                    found.setdefault(source, {})[part] = None
    return {source: list(parts) for source, parts in sorted(found.items())}


def parts_by_source(args: Mapping[str, JSON], sources: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The texts of arguments by the sources that each argument has."""
    found: dict[str, list[str]] = {}
    for name, value in args.items():
        for source in sources.get(name, ()):
            found.setdefault(source, []).extend(leaves(value))
    return found


class _Lookup:
    """Looks values up in what a planner was shown."""

    def __init__(self, shown: Shown) -> None:
        self.instruction = shown.instruction.casefold()
        self._recalled = [(line.text.casefold(), line.behind) for line in shown.recalled]
        self._texts = [(vouched(tool)[0], text.casefold()) for tool, text in shown.vouched]
        self._texts += [(f"tool:{tool}", text.casefold()) for tool, text in shown.outputs]

    def sources(self, value: str) -> set[str]:
        """Every source that the value, or a telling part of it, can come from, besides the model itself."""
        whole = value.casefold().strip()
        found = {"instruction"} if _stands_in(whole, self.instruction) else set()
        # what the instruction says itself does not become a tool's choice because a tool repeats it
        parts = [part for part in distinctive_parts(whole) if part not in self.instruction]
        telling = [part for part in parts if part == whole or part not in _NO_CHOICE]
        together = _put_together(whole, self.instruction)

        def in_text(text: str) -> bool:
            return (
                _stands_in(whole, text)
                or any(part in text for part in telling)
                or any(sum(map(_word_in(text), words)) >= needed for needed, words in together)
            )

        found.update(source for source, text in self._texts if source not in found and in_text(text))
        for line, behind in self._recalled:
            if in_text(line):
                found.update(("memory",), *(each.sources for each in _telling(whole, in_text, behind())))
        return found


def _telling(whole: str, in_text: Callable[[str], bool], said: Sequence[Said]) -> Sequence[Said]:
    """Of what stands behind a line, that which the value can come from. An argument as it was proposed then does not become
    the tool's choice because the tool's answer repeats it. A line may show its event in other words or shortened: where
    nothing fits, it can be any of it."""
    again = [each for each in said if each.proposed and each.text.casefold().strip() == whole]
    return again or [each for each in said if in_text(each.text.casefold())] or said


def distinctive_parts(text: str) -> list[str]:
    """Parts of a text that hardly stand elsewhere by chance: URLs, addresses, paths, names with dots, longer words."""
    folded = text.casefold()
    parts: dict[str, None] = {}
    for token in _TOKEN.finditer(folded):
        if len(token[0]) > TOKEN_CHARACTERS_MAX:
            continue
        whole = token[0].rstrip(".:!?")
        found = [match[0] for pattern in _DISTINCTIVE for match in pattern.finditer(whole)]
        if found:
            parts.update(dict.fromkeys([whole, *(part for part in found if len(part) > WHOLE_CHARACTERS_MIN)]))
        if len(parts) >= PARTS_MAX:
            return list(parts)[:PARTS_MAX]
    parts.update(dict.fromkeys(match[0] for match in islice(_WORD.finditer(folded), PARTS_MAX)))
    return list(parts)[:PARTS_MAX]


def _put_together(text: str, instruction: str) -> list[tuple[int, set[str]]]:
    """Words that choose nothing one by one, but do where so many of them stand in a text ("status dot example dot org"): all of a
    host's, and two ordinary ones of one path or name."""
    hosts = [set(_LABEL.findall(host)) for host in _HOST.findall(text[:PARTS_MAX]) if host not in instruction]
    names = [
        {word for word in _WORD.findall(token[0].replace("_", " ")) if word in _NO_CHOICE and word not in instruction}
        for token in islice(_TOKEN.finditer(text), PARTS_MAX)
        if len(token[0]) <= TOKEN_CHARACTERS_MAX
    ]
    groups = [(len(words), words) for words in hosts] + [(2, words) for words in names]
    return [(needed, words) for needed, words in groups if len(words) > 1]


def _word_in(text: str) -> Callable[[str], bool]:
    return lambda word: word in text and re.search(rf"(?<![^\W_]){word}(?![^\W_])", text) is not None


def _stands_in(value: str, text: str) -> bool:
    """Whether a whole value stands in a text; a short one only as a word of its own."""
    if len(value) < WHOLE_CHARACTERS_MIN:
        return False
    if len(value) >= WORD_CHARACTERS_MIN:
        return value in text
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def leaves(value: JSON) -> Iterator[str]:
    """Each text, name and number in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int | float):
        yield str(value)
    elif isinstance(value, list):
        for element in value:
            yield from leaves(element)
    elif isinstance(value, dict):
        for key, element in value.items():
            yield key
            yield from leaves(element)
