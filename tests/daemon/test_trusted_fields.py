"""Trust by field, from perdure.toml to the decision: what an untrusted field chose is for a person, the rest goes on."""

from __future__ import annotations

import json

import pytest
from tests.daemon.stage import CONFIG, Stage, events

from perdure.daemon.config import load_config
from perdure.daemon.tools.operator_tools import operator_spec
from perdure.errors import Problems

SCAN = """
import json
print(json.dumps({"count": 41, "worst": {"host": "evil.example", "url": "http://evil.example/in"},
                  "report": {"path": "reports/scan.md", "text": "41 attempts from 203.0.113.9"},
                  "status": {"url": "http://status.example/41"},
                  "hosts": [{"name": "evil.example", "id": 7}]}))
"""
TOOL = (
    CONFIG
    + """
[files]
read = ["."]
write = ["reports"]
[tools.scan]
command = ["python3", "scan.py"]
result = "json"
effect = "read"
trusted = ["count", "report.path", "status", "hosts.id"]
"""
)
POLICY = """
version: 1
use: [egress, workspace-writer]
rules:
  - {name: scanning, tools: [scan, read_file], decide: auto}
  - {name: anywhere, tools: [http_request], method: {in: [GET]}, decide: auto}
"""


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path / "workspace")
    stage.write("perdure.toml", TOOL)
    stage.write("policies/policy.yaml", POLICY)
    stage.write("scan.py", SCAN)
    return stage


def steps(*more: str) -> str:
    return "  - {do: scan, save: found}\n" + "".join(f"  - {step}\n" for step in more)


async def decided(stage, *more):
    """What was decided about the last step of the playbook, and the provenance that was recorded of its arguments."""
    stage.playbook("watch", steps(*more), tools="scan, read_file, http_request, write_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "watch", dry_run=True)
        proposed, judged = events(runtime, "action.proposed")[-1], events(runtime, "action.decided")[-1]
        payload = runtime.ledger.reader.payload(proposed.seq)
        return judged.body["decision"], payload["provenance"], [rule["name"] for rule in judged.body["rules"]]


async def test_an_address_that_an_untrusted_field_chose_is_for_a_person(stage):
    decision, provenance, rules = await decided(stage, '{do: http_request, args: {url: "${found.worst.url}"}}')
    assert decision == "escalate"
    assert provenance["url"] == ["tool:scan"]
    assert "addresses that untrusted content chose" in rules


@pytest.mark.parametrize(
    ("url", "sources"),
    [
        ("${found.status.url}", ["trusted:scan"]),
        ("http://status.example/${found.count}", ["instruction", "trusted:scan"]),
        ("http://status.example/${found.hosts[0].id}", ["instruction", "trusted:scan"]),
    ],
)
async def test_a_value_out_of_a_trusted_field_needs_no_question(stage, url, sources):
    decision, provenance, rules = await decided(stage, f'{{do: http_request, args: {{url: "{url}"}}}}')
    assert provenance["url"] == sources
    assert decision == "auto", rules


@pytest.mark.parametrize(
    "url",
    [
        "http://${found.worst.host}/${found.count}",
        "http://${found.hosts[0].name}/",
        "http://${string(found.hosts[found.count - 41].name)}/",
        "http://x.example/${found.map(key, key)[0]}",
        "http://x.example/${size(found)}",
    ],
)
async def test_the_least_trusted_part_of_an_address_counts(stage, url):
    decision, provenance, _ = await decided(stage, f'{{do: http_request, args: {{url: "{url}"}}}}')
    assert "tool:scan" in provenance["url"]
    assert decision == "escalate"


async def test_the_items_of_a_list_keep_their_fields(stage):
    step = '{do: http_request, for_each: "${found.hosts}", args: {url: "http://status.example/${item.%s}"}}'
    assert (await decided(stage, step % "id"))[:2] == (
        "auto",
        {"url": ["instruction", "trusted:scan"]},
    )
    decision, provenance, _ = await decided(stage, step % "name")
    assert (decision, provenance["url"]) == ("escalate", ["instruction", "tool:scan"])


async def test_a_report_about_untrusted_content_needs_no_question_and_its_path_does(stage):
    fine = '{do: write_file, args: {path: "${found.report.path}", text: "${found.report.text}"}}'
    decision, provenance, rules = await decided(stage, fine)
    assert decision == "auto", rules
    assert provenance == {"path": ["trusted:scan"], "text": ["tool:scan"]}
    stage.write("inbox.log", "reports/theirs.md")
    read = "{do: read_file, args: {path: inbox.log}, save: log}"
    plain = '{do: write_file, args: {path: reports/mine.md, text: "${log.text}"}}'
    assert (await decided(stage, read, plain))[0] == "auto"
    theirs = '{do: write_file, args: {path: "${log.text}", text: x}}'
    assert (await decided(stage, read, theirs))[0] == "escalate"


async def test_a_tool_that_is_trusted_as_a_whole_chooses_freely(stage):
    stage.write(
        "perdure.toml", TOOL.replace('trusted = ["count", "report.path", "status", "hosts.id"]', "trusted = true")
    )
    decision, provenance, _ = await decided(stage, '{do: http_request, args: {url: "${found.worst.url}"}}')
    assert (decision, provenance["url"]) == ("auto", ["trusted:scan"])


@pytest.mark.parametrize("trusted", ['["count", "a..b"]', '["$.count"]', '[""]', '"count"', "[1]", '["a[0]"]'])
def test_fields_that_are_no_names_are_refused(stage, trusted):
    stage.write("perdure.toml", TOOL.replace('["count", "report.path", "status", "hosts.id"]', trusted))
    with pytest.raises(Problems, match=r"perdure.toml:\d+:\d+"):
        load_config(stage.directory)


def test_the_specification_says_which_fields(stage):
    config = load_config(stage.directory)
    spec = operator_spec("scan", config.tools["scan"])
    assert not spec.trusted
    assert spec.trusted_fields == ("count", "report.path", "status", "hosts.id")


def test_people_see_which_fields_are_trusted_and_where_a_value_came_from(stage):
    from click.testing import CliRunner

    from perdure.daemon.cli.app import perdure

    def said(*words):
        outcome = CliRunner().invoke(perdure, ["-w", str(stage.directory), *words])
        assert not outcome.exception or isinstance(outcome.exception, SystemExit), outcome.exception
        return outcome.output

    assert "untrusted but for count, report.path, status, hosts.id" in said("tools", "scan")
    assert json.loads(said("tools", "scan", "--json"))["tools"][0]["trusted"] == [
        "count",
        "report.path",
        "status",
        "hosts.id",
    ]
