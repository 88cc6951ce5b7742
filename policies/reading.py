"""From a YAML tree to a policy file: every key known, every value of its type, every mistake with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from perdure.policies.documents import Complaints, Listing, Node, Place, Scalar, Table, nearest, plain
from perdure.policies.model import Decided
from perdure.policies.node_reading import NodeReader, or_words
from perdure.policies.rules import (
    ArgumentPattern,
    Equals,
    Glob,
    InlineTest,
    OneOf,
    OnExpiry,
    PolicyFile,
    Require,
    Rule,
    Sources,
    Under,
)

RULES_MAX = 5_000
CONDITION_CHARACTERS_MAX = 4_000
SECONDS_MAX = 366 * 86_400

FILE_KEYS = ("version", "use", "shadow", "rules", "tests")
RULE_KEYS = (
    "name",
    "tools",
    "path",
    "host",
    "method",
    "program",
    "args",
    "provenance",
    "when",
    "decide",
    "require",
    "expires",
    "on_expiry",
    "shadow",
)
TEST_KEYS = ("name", "tool", "args", "given", "provenance", "expect", "by")
REQUIRE_KEYS = ("votes", "confidence", "session_confidence", "max_per_hour")
DECISIONS: tuple[str, ...] = get_args(Decided)
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

_DURATION = re.compile(r"(?:[0-9]{1,6}[smhdw])+")


def duration_seconds(text: str) -> int | None:
    """`90s`, `15m`, `12h`, `1h30m`, `7d`, `2w` in seconds; None where it is none of these, or longer than a year."""
    if not _DURATION.fullmatch(text):
        return None
    seconds = sum(int(number) * UNITS[unit] for number, unit in re.findall(r"([0-9]+)([smhdw])", text))
    return seconds if 0 < seconds <= SECONDS_MAX else None


def read_policy(root: Node, complaints: Complaints) -> PolicyFile | None:
    """The policy file that `root` holds. Whatever is wrong is added to `complaints`; then the result must not be used."""
    return _Reader(complaints).policy(root)


class _Reader(NodeReader):
    # -- the file -----------------------------------------------------------------------------------------------------

    def policy(self, root: Node) -> PolicyFile | None:
        table = self.table(root, "a mapping with `version: 1` and `rules:`", FILE_KEYS)
        if table is None:
            return None
        version = table.entries.get("version")
        if version is None and "version" not in table.keys:
            self.complaints.add(table.place, "no `version`", "`version: 1` at the top")
        elif not (isinstance(version, Scalar) and version.value == 1 and type(version.value) is int):
            self.wrong(version, table.keys["version"], "1, the only version there is")
        uses = self.names(table, "use")
        if "rules" not in table.entries and not uses:
            self.complaints.add(
                table.place, "no `rules`", "`rules:` with a list of rules, or `use:` with library files"
            )
        shadow = self.boolean(table, "shadow")
        rules = self.each(table, "rules", lambda node: self.rule(node, shadow))
        if len(rules) > RULES_MAX:
            self.complaints.add(table.keys["rules"], f"{len(rules):,} rules", f"at most {RULES_MAX:,} in a file")
        seen: dict[str, int] = {}
        for rule in rules:
            if rule.name in seen:
                place = Place(*rule.places.get("name", (rule.line, 1)))
                self.complaints.add(
                    place, f"the name {rule.name!r} a second time", f"a name of its own (line {seen[rule.name]} has it)"
                )
            seen.setdefault(rule.name, rule.line)
        return PolicyFile(
            file=self.file,
            rules=tuple(rules),
            tests=tuple(self.each(table, "tests", self.test)),
            uses=uses,
            shadow=shadow,
            places=_places(table),
        )

    def rule(self, node: Node, shadow: bool) -> Rule | None:
        table = self.table(node, "a rule: a mapping with `name`, `tools` and `decide` or `require`", RULE_KEYS)
        if table is None:
            return None
        name = self.text(table, "name", required="a name, by which people will know the rule")
        tools = self.names(table, "tools", required='the tools it is about, for example [write_file] or ["*"]')
        decide = self.choice(table, "decide", DECISIONS)
        require = self.require(table)
        if decide is None and require is None and not {"decide", "require"} & table.keys.keys():
            self.complaints.add(
                table.place,
                "a rule that neither decides nor requires",
                f"`decide:` with {or_words(DECISIONS)}, or `require:`",
            )
        expires, on_expiry = self.expiry(table, decide)
        return Rule(
            name=name or "",
            file=self.file,
            line=table.place.line,
            tools=tools,
            under=self.within(table, "path", "under"),
            hosts=self.within(table, "host", "in"),
            methods=tuple(method.upper() for method in self.within(table, "method", "in")),
            programs=self.within(table, "program", "in"),
            args=self.arguments(table),
            provenance=self.provenance(table),
            when=self.condition(table),
            decide=decide,  # type: ignore[arg-type]  # choice() lets only these words through
            require=require,
            expires_seconds=expires,
            on_expiry=on_expiry,
            shadow=self.boolean(table, "shadow") or shadow,
            places=_places(table),
        )

    def expiry(self, table: Table, decide: str | None) -> tuple[int | None, OnExpiry | None]:
        seconds = None
        if "expires" in table.keys:
            text = self.text(table, "expires")
            seconds = duration_seconds(text) if text is not None else None
            if text is not None and seconds is None:
                self.wrong(
                    table.entries.get("expires"),
                    table.keys["expires"],
                    "a duration such as 30m, 12h, 7d or 1h30m, at most a year",
                )
        word = self.choice(table, "on_expiry", ("deny", "approve"))
        for key in ("expires", "on_expiry"):
            if key in table.keys and decide in {"auto", "deny"}:
                self.complaints.add(
                    table.keys[key],
                    f"`{key}` in a rule that decides {decide}",
                    "it only where a question is asked (decide: escalate)",
                )
        return seconds, "approve" if word == "approve" else "deny" if word == "deny" else None

    # -- matchers -----------------------------------------------------------------------------------------------------

    def within(self, table: Table, key: str, word: str) -> tuple[str, ...]:
        """`path: {under: …}`, `host: {in: […]}` and their like."""
        if key not in table.keys:
            return ()
        inner = self.table(table.entries.get(key), f"`{key}: {{{word}: …}}`", (word,), table.keys[key])
        if inner is None:
            return ()
        found = self.names(inner, word, required=f"what `{key}` is compared with")
        if key == "path":
            self.directories(inner, word, found)
        for program in found if key == "program" else ():
            if "/" in program.partition(" ")[0] and not program.startswith("/"):
                self.complaints.add(
                    inner.keys[word],
                    f"the program {program!r}",
                    "a name, or an absolute path (whose directory would it be relative to?)",
                )
        return found

    def directories(self, table: Table, word: str, found: Sequence[str]) -> None:
        for directory in found:
            if directory.startswith("~"):
                self.complaints.add(
                    table.keys[word],
                    f"{directory!r}",
                    "an absolute path, or one relative to the workspace (`~` is whose home?)",
                )
            elif any("**" in part and part != "**" for part in directory.split("/")):
                self.complaints.add(
                    table.keys[word],
                    f"{directory!r}",
                    "`**` as a whole component, such as `**/.git` (in a name, one `*` is enough)",
                )
            elif directory.endswith("/**"):
                self.complaints.add(
                    table.keys[word],
                    f"{directory!r}",
                    f"{directory.removesuffix('/**')!r}: `under` covers everything below it",
                )

    def arguments(self, table: Table) -> Mapping[str, ArgumentPattern]:
        inner = self.optional_table(
            table, "args", "`args: {NAME: value}`, or {in: […]}, {glob: …}, {under: …} as the value"
        )
        patterns: dict[str, ArgumentPattern] = {}
        for name, node in (inner.entries if inner else {}).items():
            pattern = self.argument(node)
            if pattern is not None:
                patterns[name] = pattern
        return patterns

    def argument(self, node: Node) -> ArgumentPattern | None:
        if not isinstance(node, Table):
            if isinstance(node, Listing):
                self.wrong(node, node.place, "one value, or {in: […]} for several")
                return None
            if node.value is None:
                self.wrong(node, node.place, 'a value; for an argument that was not given write `when: "!given.NAME"`')
                return None
            return Equals(node.value)
        table = self.table(node, "", ("in", "glob", "under"))
        if table is None:
            return None
        if len(table.entries) != 1:
            self.complaints.add(
                table.place, f"{len(table.entries)} comparisons", "exactly one of `in`, `glob`, `under`"
            )
            return None
        if "in" in table.entries:
            values = table.entries["in"]
            if (
                not isinstance(values, Listing)
                or not values.items
                or not all(isinstance(item, Scalar) for item in values.items)
            ):
                self.wrong(values, values.place, "a list of values")
                return None
            return OneOf(tuple(plain(item) for item in values.items))
        if "glob" in table.entries:
            text = self.text(table, "glob")
            return Glob(text) if text is not None else None
        found = self.names(table, "under")
        self.directories(table, "under", found)
        return Under(found) if found else None

    def provenance(self, table: Table) -> Mapping[str, Sources]:
        inner = self.optional_table(table, "provenance", '`provenance: {ARGUMENT: {any: ["tool:*"]}}`')
        found: dict[str, Sources] = {}
        for name, node in (inner.entries if inner else {}).items():
            sources = self.table(node, '`{any: ["tool:*"]}` or `{all: [instruction, config]}`', ("any", "all"))
            if sources is None:
                continue
            if len(sources.entries) != 1:
                self.complaints.add(sources.place, "not one comparison", "exactly one of `any`, `all`")
                continue
            quantifier = next(iter(sources.entries))
            globs = self.names(sources, quantifier)
            for glob in globs:
                if not _is_source(glob):
                    known = "instruction, person, config, memory, model, tool:NAME, trusted:NAME (globs as in tool:*), unknown"
                    self.complaints.add(
                        sources.keys[quantifier], f"the source {glob!r}", f"one of {known}{nearest(glob, SOURCES)}"
                    )
            found[name] = Sources("any" if quantifier == "any" else "all", globs)
        return found

    def condition(self, table: Table) -> str | None:
        if "when" not in table.keys:
            return None
        node = table.entries.get("when")
        expected = "a condition in quotes, for example \"args.ip.startsWith('10.')\""
        if not isinstance(node, Scalar) or not isinstance(node.value, str) or not node.value.strip():
            if isinstance(node, Scalar) and isinstance(node.value, bool):
                expected = "a condition; leave `when` out for a rule that always holds"
            self.wrong(node, table.keys["when"], expected)
            return None
        if len(node.value) > CONDITION_CHARACTERS_MAX:
            self.complaints.add(
                node.place, f"a condition of {len(node.value):,} characters", f"at most {CONDITION_CHARACTERS_MAX:,}"
            )
            return None
        return node.value

    def require(self, table: Table) -> Require | None:
        inner = self.optional_table(
            table,
            "require",
            "`require: {votes: {ahead_by: 3, max: 15}, confidence: 0.9, max_per_hour: 20}`",
            REQUIRE_KEYS,
        )
        if inner is None:
            return None
        if not inner.entries:
            self.complaints.add(inner.place, "an empty `require`", f"at least one of {or_words(REQUIRE_KEYS)}")
        votes = self.optional_table(inner, "votes", "`votes: {ahead_by: 3, max: 15}`", ("ahead_by", "max", "texts"))
        ahead = most = 0
        texts = False
        if votes is not None:
            ahead = self.number(votes, "ahead_by", 1, 100, required=True)
            most = self.number(votes, "max", 1, 1_000, required=True)
            texts = self.boolean(votes, "texts")
            if ahead and most and most < ahead:
                self.complaints.add(
                    votes.keys["max"], f"at most {most} votes", f"at least {ahead}, or it can never be {ahead} ahead"
                )
        per_hour = self.number(inner, "max_per_hour", 0, 1_000_000) if "max_per_hour" in inner.keys else None
        return Require(
            votes_ahead_by=ahead,
            votes_max=most,
            votes_texts=texts,
            confidence=self.share(inner, "confidence"),
            session_confidence=self.share(inner, "session_confidence"),
            max_per_hour=per_hour,
        )

    def share(self, table: Table, key: str) -> float:
        """A number above 0 and up to 1; 0 where the table does not have it."""
        if key not in table.keys:
            return 0.0
        node = table.entries.get(key)
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            self.wrong(node, table.keys[key], "a number above 0 and up to 1")
            return 0.0
        return float(value)

    # -- tests --------------------------------------------------------------------------------------------------------

    def test(self, node: Node) -> InlineTest | None:
        table = self.table(node, "a test: {tool: …, args: {…}, given: {…}, expect: …}", TEST_KEYS)
        if table is None:
            return None
        tool = self.text(table, "tool", required="the tool that is asked for")
        expect = self.choice(table, "expect", DECISIONS, required=True)
        args = self.optional_table(table, "args", "a mapping of arguments")
        given = self.optional_table(table, "given", "a mapping of facts, for example {confidence: 0.5}")
        sources = self.optional_table(table, "provenance", "a mapping of arguments to lists of sources")
        if tool is None or expect is None:
            return None
        return InlineTest(
            name=self.text(table, "name") or "",
            line=table.place.line,
            column=table.place.column,
            tool=tool,
            args=_plain_table(args),
            given=_plain_table(given),
            provenance={} if sources is None else {name: self.names(sources, name) for name in sources.entries},
            expect=expect,  # type: ignore[arg-type]  # choice() lets only these words through
            by=self.text(table, "by"),
            places=_places(table) | (_places(given, "given.") if given else {}),
        )


SOURCES = ("instruction", "person", "config", "memory", "model", "unknown", "tool:*", "trusted:*")


def _is_source(glob: str) -> bool:
    return glob in SOURCES or glob.startswith(("tool:", "trusted:")) or glob == "*"


def _places(table: Table, prefix: str = "") -> dict[str, tuple[int, int]]:
    """Where each key's value stands; inner tables are reached with dots."""
    found: dict[str, tuple[int, int]] = {}
    for name, node in table.entries.items():
        found[prefix + name] = (node.place.line, node.place.column)
        if isinstance(node, Table):
            found |= {f"{prefix}{name}.{inner}": (at.line, at.column) for inner, at in node.keys.items()}
    return found


def _plain_table(table: Table | None) -> Mapping[str, Any]:
    return {name: plain(node) for name, node in table.entries.items()} if table else {}
