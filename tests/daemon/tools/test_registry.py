"""All tools are there, closed, and checked alike; notify, recall and remember."""

from dataclasses import dataclass

import pytest
from jsonschema import Draft202012Validator

from perdure.daemon.config import BUILT_IN_TOOLS
from perdure.daemon.tools.arguments import Arguments
from perdure.daemon.tools.model import ToolRefused


def test_every_built_in_tool_is_there_and_its_schema_is_closed(workspace):
    assert set(workspace.tools) == set(BUILT_IN_TOOLS)
    for name, tool in workspace.tools.items():
        spec = tool.spec
        assert spec.name == name
        assert spec.description.endswith(".")
        Draft202012Validator.check_schema(spec.args_schema)
        assert spec.args_schema["additionalProperties"] is False
        assert set(spec.paths) | set(spec.free_text) <= set(spec.args_schema["properties"])
        assert spec.probeable == (spec.effect == "probeable")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"path": "a", "text": "b\0c"}, "NUL"),
        ({"path": "a", "text": "\ud800"}, "UTF-8"),
        ({"path": "a", "text": "x" * 2_100_000}, "bytes long"),
        ({"path": "a"}, "missing: text"),
        ({}, r"missing: path, text(?!.*missing)"),
        ({"path": "", "text": "x"}, "path"),
        ({"path": "a", "text": 2**60}, r"beyond 2\^53"),
        ({"path": ["a"], "text": "x"}, "path must be string"),
        ({"path": "a", "text": "x", "mode": 1}, "unknown: mode"),
        ({"path": "a", "text": float("nan")}, "write_file"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_words(workspace, value, said):
    with pytest.raises(ToolRefused, match=said):
        workspace.prepare("write_file", **value)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("ipv4", "192.0.2.1", "192.0.2.256"), ("ipv6", "2001:db8::1", "2001:db8::1%eth0"), ("cidr", "10.0.0.0/8", "10.0.0.1/8"), ("date", "2026-11-22", "2026-11-31"),
        ("date-time", "2026-11-22T10:00:00Z", "2026-11-22T10:00:00"), ("hostname", "a-b.example.org", "-a.example.org"), ("email", "a@b.c", "a b@c"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"), ("uri", "https://example.org/", "example"),
    ],
)  # fmt: skip
def test_formats_are_enforced(name, good, bad):
    arguments = Arguments("t", {"type": "object", "properties": {"x": {"type": "string", "format": name}}}, {})
    arguments.check({"x": good})
    with pytest.raises(ToolRefused, match=f"format {name}"):
        arguments.check({"x": bad})


async def test_notify_says_where_it_got_through(workspace):
    result = await workspace.do("notify", text="the disk is nearly full\nreally")
    assert result.value == {"delivered": ["inbox", "log"], "failed": {}}
    (inbox, _) = workspace.ledger.reader.events(types=("notification.sent",))
    assert inbox.body["about"] == workspace.last


async def test_notify_fails_when_a_configured_channel_does(make_workspace):
    workspace = make_workspace('notify = {command = ["/bin/false"]}')
    result = await workspace.do("notify", text="x")
    assert not result.ok
    assert result.value["delivered"] == ["inbox", "log"]
    assert "command" in result.error


@dataclass
class Fact:
    subject: str
    attribute: str
    value: str
    valid_from: int
    valid_to: int | None
    source: str
    standing: str
    speaker: str = "agent"


@dataclass
class Record:
    text: str
    source: str
    at: int
    untrusted: bool = True
    standing: str | None = "disputed"


class Memory:
    def __init__(self):
        self.asked = []

    async def facts(self, scope, *, subject=None, attribute=None, current=True, limit=10):
        self.asked.append((scope, subject, attribute, current, limit))
        return [
            Fact("a", "b", "old", 0, 5_000_000, "#1", "superseded"),
            Fact("a", "b", "new", 5_000_000, None, "#2", "current"),
        ]

    async def recall(self, scope, query, limit):
        self.asked.append((scope, query, limit))
        return [Record("it was so", "#3", 1_000_000)]


async def test_recall_shows_facts_newest_first_and_records(make_workspace):
    memory = Memory()
    workspace = make_workspace(memory=memory)
    value = (await workspace.do("recall", subject="a", query="how was it?", limit=3)).value
    assert [fact["value"] for fact in value["facts"]] == ["new", "old"]
    assert value["facts"][1]["valid_to"] == "1970-01-01T00:00:05Z"
    assert [(fact["standing"], fact["said_by"]) for fact in value["facts"]] == [
        ("current", "agent"),
        ("superseded", "agent"),
    ]
    assert value["records"] == [
        {"text": "it was so", "at": "1970-01-01T00:00:01Z", "source": "#3", "untrusted": True, "standing": "disputed"}
    ]
    assert memory.asked == [("workspace", "a", None, False, 3), ("workspace", "how was it?", 3)]


async def test_recall_finds_nothing_without_failing(workspace):
    assert (await workspace.do("recall", query="x")).value == {"facts": [], "records": []}


async def test_remember_returns_the_fact_that_its_outcome_records(workspace):
    fact = {"subject": "web1", "attribute": "address", "value": "192.0.2.1"}
    assert (await workspace.do("remember", **fact)).value == fact


@pytest.mark.parametrize(
    ("part", "said"), [("subject", " "), ("value", ""), ("value", "x" * 4_001), ("attribute", "x" * 401)]
)
async def test_what_memory_would_not_keep_is_refused_and_not_cut(workspace, part, said):
    fact = {"subject": "web1", "attribute": "address", "value": "192.0.2.1", part: said}
    with pytest.raises(ToolRefused):
        await workspace.do("remember", **fact)
