"""The operator's own tools: words filled in, never a shell, arguments checked, probes asked."""

import json

import pytest

from perdure.daemon.config import load_config
from perdure.daemon.tools.model import ToolInterrupted, ToolRefused
from perdure.daemon.tools.registry import tool_specs
from perdure.errors import Problems

BLOCK = """
[tools.block_ip]
command = ["./block.sh", "{ ${args.ip} }", "${args.ip}", "${args.days}"]
args = {ip = {type = "string", format = "ipv4"}, days = {type = "integer", default = 7}}
effect = "probeable"
probe = {command = ["grep", "-qx", "--", "${args.ip}", "blocked.txt"], happened = "exit == 0"}
read = ["block.sh"]
"""


@pytest.fixture
def blocking(make_workspace):
    workspace = make_workspace(BLOCK)
    script = workspace.path / "block.sh"
    script.write_text('#!/bin/sh\necho "$2" >> inbox/../reports/blocked.txt; printf "%s|" "$@"\n')
    script.chmod(0o755)
    (workspace.path / "blocked.txt").symlink_to("reports/blocked.txt")
    return workspace


async def test_arguments_fill_words_whole_and_embedded_with_defaults(blocking):
    result = await blocking.do("block_ip", ip="192.0.2.7")
    assert result.ok, result
    assert result.value["stdout"] == "{ 192.0.2.7 }|192.0.2.7|7|"


async def test_the_probe_tells_whether_it_happened(blocking):
    (blocking.path / "reports/blocked.txt").touch()
    assert await blocking.happened("block_ip", ip="192.0.2.7") is False
    await blocking.do("block_ip", ip="192.0.2.7")
    assert await blocking.happened("block_ip", ip="192.0.2.7") is True
    assert await blocking.happened("block_ip", ip="192.0.2.8") is False


@pytest.mark.parametrize(
    "ip",
    [
        "192.0.2.7; rm -rf /",
        "192.0.2",
        "300.1.1.1",
        "::1",
        "192.0.2.7 }",
        "0x7f.1",
        " 192.0.2.7",
        "192.0.2.7\n",
        "",
        3,
        None,
        ["192.0.2.7"],
        "١٩٢.0.2.7",
    ],
)
def test_what_is_no_address_is_refused_by_its_format(blocking, ip):
    with pytest.raises(ToolRefused):
        blocking.prepare("block_ip", ip=ip)


def test_unknown_and_missing_arguments_are_named(blocking):
    with pytest.raises(ToolRefused, match="unknown: port"):
        blocking.prepare("block_ip", ip="192.0.2.7", port=22)
    with pytest.raises(ToolRefused, match="missing: ip"):
        blocking.prepare("block_ip")


def tool(command, **more):
    keys = {"command": command, "args": {"x": {"type": "string"}}, "effect": "read", **more}
    return "[tools.t]\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in keys.items())


def _toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


async def test_a_value_is_one_word_whatever_is_in_it(make_workspace):
    workspace = make_workspace(tool(["printf", "%s|", "${args.x}", "a${args.x}b"]))
    for value in ("a b", "$(id)", "`id`", "'; id #", "a\nb", "*", "${args.x}", "\\"):
        assert (await workspace.do("t", x=value)).value["stdout"] == f"{value}|a{value}b|"


async def test_a_value_cannot_become_an_option(make_workspace):
    workspace = make_workspace(tool(["cat", "${args.x}"]))
    with pytest.raises(ToolRefused, match="read as an option"):
        workspace.prepare("t", x="--help")


async def test_after_two_dashes_it_may_begin_with_one(make_workspace):
    workspace = make_workspace(tool(["printf", "--", "%s", "${args.x}"]))
    assert (await workspace.do("t", x="--help")).value["stdout"] == "--help"


async def test_all_arguments_as_json_on_standard_input_and_json_back(make_workspace):
    args = {"x": {"type": "array", "items": {"type": "integer"}}, "y": {"type": "object", "default": {"a": [1]}}}
    workspace = make_workspace(tool(["cat"], stdin="args", result="json", args=args))
    assert (await workspace.do("t", x=[1, 2])).value == {"x": [1, 2], "y": {"a": [1]}}


@pytest.mark.parametrize("printed", ["", "not json", "{", "NaN", '{"a": Infinity}'])
async def test_what_is_no_json_fails_and_says_so(make_workspace, printed):
    workspace = make_workspace(tool(["printf", "%s", "${args.x}"], result="json"))
    result = await workspace.do("t", x=printed)
    assert not result.ok
    assert "did not print JSON" in result.error


async def test_a_failing_program_fails_even_when_it_prints_json(make_workspace):
    workspace = make_workspace(tool(["sh", "-c", "echo 1; exit 4"], result="json"))
    result = await workspace.do("t", x="")
    assert not result.ok
    assert "exit 4" in result.error


async def test_credentials_come_as_variables_and_stand_in_no_record(make_workspace, monkeypatch):
    monkeypatch.setenv("UPSTREAM_KEY", "s3cr3t-value")
    workspace = make_workspace(tool(["sh", "-c", 'printf %s "$${#KEY}"'], credentials={"UPSTREAM_KEY": "KEY"}))
    prepared = workspace.prepare("t", x="a")
    assert "s3cr3t-value" not in str(prepared)
    assert (await workspace.tools["t"].run(prepared, workspace.call())).value["stdout"] == str(len("s3cr3t-value"))


async def test_a_proposal_that_holds_a_secret_is_refused_without_repeating_it(make_workspace, monkeypatch):
    monkeypatch.setenv("UPSTREAM_KEY", "s3cr3t-value")
    workspace = make_workspace(tool(["true"], credentials={"UPSTREAM_KEY": "KEY"}))
    for name, args in (("t", {"x": "my s3cr3t-value"}), ("write_file", {"path": "reports/x", "text": "s3cr3t-value"})):
        with pytest.raises(ToolRefused, match="UPSTREAM_KEY") as refused:
            workspace.prepare(name, **args)
        assert "s3cr3t-value" not in str(refused.value)


async def test_a_missing_credential_fails_before_anything_runs(make_workspace):
    workspace = make_workspace(tool(["true"], credentials={"NO_SUCH_KEY": "KEY"}))
    result = await workspace.do("t", x="")
    assert not result.ok
    assert "NO_SUCH_KEY" in result.error


async def test_a_reading_tool_that_is_cut_off_has_failed_and_any_other_is_unknown(make_workspace):
    workspace = make_workspace(
        tool(["sleep", "100"], timeout="300ms")
        + "\n"
        + tool(["sleep", "100"], timeout="300ms", effect="once").replace("tools.t", "tools.u")
    )
    result = await workspace.do("t", x="")
    assert not result.ok
    assert "no end after 0.3 s" in result.error
    with pytest.raises(ToolInterrupted):
        await workspace.do("u", x="")


async def test_path_arguments_are_resolved_and_kept_in_the_roots(make_workspace):
    workspace = make_workspace(tool(["cat", "${args.x}"], paths={"x": "read"}))
    (workspace.path / "inbox/a").write_text("content")
    (workspace.path / "inbox/b").symlink_to("a")
    prepared = workspace.prepare("t", x="inbox/b")
    assert prepared.paths == {"x": (str(workspace.path / "inbox/a"),)}
    assert (await workspace.tools["t"].run(prepared, workspace.call())).value["stdout"] == "content"
    with pytest.raises(ToolRefused, match="own state"):
        workspace.prepare("t", x="state/control.token")


@pytest.mark.parametrize("happened", ["exit == 0 && stdout.contains('yes')", "stderr == ''", "size(stdout) > 0"])
async def test_probe_conditions_are_cel_over_exit_and_output(make_workspace, happened):
    workspace = make_workspace(
        tool(["true"], effect="probeable", probe={"command": ["echo", "yes"], "happened": happened})
    )
    assert await workspace.happened("t", x="") is True


async def test_a_probe_that_cannot_tell_says_none(make_workspace):
    probe = {"command": ["sleep", "100"], "timeout": "200ms"}
    workspace = make_workspace(tool(["true"], effect="probeable", probe=probe))
    assert await workspace.happened("t", x="") is None


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (tool(["true"], effect="probeable", probe={"command": ["true"], "happened": "exit == 'a'"}), "CEL condition"),
        (tool(["true"], effect="probeable", probe={"command": ["true"], "happened": "exitt == 0"}), "CEL condition"),
        (tool(["${args.x}"]), "no argument chooses"),
        (tool(["echo", "${args.x + 'a'}"]), "stands for"),
        (tool(["true"], args={"x": {"type": "string", "format": "ip-address"}}), "format"),
    ],
)
def test_tools_that_cannot_work_are_problems_at_load(make_workspace, tmp_path, toml, said):
    workspace = make_workspace()
    (workspace.path / "perdure.toml").write_text(toml)
    with pytest.raises(Problems, match=said):
        tool_specs(load_config(workspace.path))
