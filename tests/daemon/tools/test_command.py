"""run_command: what will run is what was decided, confined, bounded, and honest about how it ended."""

import sys
from pathlib import Path

import pytest

from perdure.daemon.sandbox import landlock
from perdure.daemon.tools.model import ToolInterrupted, ToolRefused


def script(workspace, name, text, mode=0o755):
    path = workspace.path / name
    path.write_text(text)
    path.chmod(mode)
    return path


async def test_words_reach_the_program_as_they_are_and_no_shell_reads_them(workspace):
    result = await workspace.do("run_command", command=["printf", "%s|", "a b", "$HOME", "`id`", "; rm -rf /", "*"])
    assert result.value["stdout"] == "a b|$HOME|`id`|; rm -rf /|*|"


async def test_the_exit_code_and_the_last_words_are_the_error(workspace):
    result = await workspace.do("run_command", command=["ls", "no-such-file"])
    assert not result.ok
    assert result.value["exit"] == 2
    assert "exit 2" in result.error
    assert "no-such-file" in result.error


async def test_a_shell_only_where_a_script_is_given(workspace):
    prepared = workspace.prepare("run_command", script="echo a | tr a b")
    assert prepared.script == "echo a | tr a b"
    assert prepared.argv[1:] == ("-c", "echo a | tr a b")
    assert (await workspace.tools["run_command"].run(prepared, workspace.call())).value["stdout"] == "b\n"
    assert workspace.prepare("run_command", command=["echo", "a"]).script is None


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"command": ["ls"], "script": "ls"},
        {"command": []},
        {"command": "ls"},
        {"command": ["ls", 3]},
        {"command": ["ls"], "extra": 1},
        {"command": ["a\0b"]},
    ],
)
def test_malformed_calls_are_refused(workspace, args):
    with pytest.raises(ToolRefused):
        workspace.prepare("run_command", **args)


def test_a_program_that_is_not_there_is_refused_before_anything_is_asked(workspace):
    with pytest.raises(ToolRefused, match="no such program"):
        workspace.prepare("run_command", command=["no-such-program-anywhere"])


async def test_the_daemons_environment_does_not_reach_the_program(make_workspace, monkeypatch):
    monkeypatch.setenv("DAEMON_SECRET_THING", "hunter2")
    workspace = make_workspace('commands = {env = {COLOUR = "blue"}}')
    lines = (await workspace.do("run_command", command=["env"])).value["stdout"].splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert names == {"COLOUR", "HOME", "LANG", "PATH", "PERDURE_ACTION", "PERDURE_WORKSPACE", "TMPDIR"}
    assert f"PERDURE_ACTION={workspace.last}" in lines


async def test_each_call_has_a_private_temporary_directory_that_goes_with_it(workspace):
    result = await workspace.do("run_command", script='echo x > "$TMPDIR/x"; ls "$TMPDIR"; echo "$TMPDIR"')
    listed, place = result.value["stdout"].split()
    assert listed == "x"
    assert not Path(place).exists()


async def test_the_working_directory_lies_in_the_roots(workspace):
    assert (await workspace.do("run_command", command=["pwd"])).value["stdout"].strip() == str(workspace.path)
    assert (await workspace.do("run_command", command=["pwd"], cwd="inbox")).value["stdout"].strip() == str(
        workspace.path / "inbox"
    )
    for cwd in ("..", "state", "/etc", "inbox/none"):
        with pytest.raises(ToolRefused):
            workspace.prepare("run_command", command=["pwd"], cwd=cwd)


async def test_time_that_runs_out_leaves_the_outcome_unknown(workspace):
    with pytest.raises(ToolInterrupted, match=r"no end after 0\.3 s"):
        await workspace.do("run_command", command=["sleep", "100"], seconds=0.3)


async def test_a_flood_is_cut_and_the_error_shows_what_was_said_last(workspace):
    with pytest.raises(ToolInterrupted, match=r"bytes of output; it had said: (?s:.*)flood"):
        await workspace.do("run_command", command=["yes", "flood"])


def test_a_call_cannot_ask_for_more_time_than_the_configuration_gives(make_workspace):
    workspace = make_workspace('commands = {seconds_max = "2s"}')
    tool = workspace.tools["run_command"].tool
    assert tool._limits({"seconds": 1000}).seconds_max == 2.0
    assert tool._limits({}).seconds_max == 2.0


@pytest.mark.parametrize(
    "command",
    [
        ["./job.sh"],
        ["inbox/../job.sh"],
        ["sh", "job.sh"],
        ["env", "A=1", "sh", "job.sh"],
        ["nice", "-n", "5", "./job.sh"],
        ["timeout", "5", "bash", "-x", "job.sh"],
        ["bash", "job.sh", "argument"],
    ],
)
async def test_a_script_changed_after_it_was_decided_does_not_run(workspace, command):
    script(workspace, "job.sh", "#!/bin/sh\necho good\n")
    prepared = workspace.prepare("run_command", command=command)
    assert str(workspace.path / "job.sh") in prepared.executed
    assert (await workspace.tools["run_command"].run(prepared, workspace.call())).value["stdout"] == "good\n"
    script(workspace, "job.sh", "#!/bin/sh\necho evil\n")
    result = await workspace.tools["run_command"].run(prepared, workspace.call())
    assert not result.ok
    assert "job.sh changed" in result.error


@pytest.mark.parametrize("text", ["./job.sh", "cat x; sh job.sh", "true && ./job.sh | cat"])
async def test_scripts_that_a_shell_text_names_are_bound_too(workspace, text):
    script(workspace, "job.sh", "#!/bin/sh\necho good\n")
    assert str(workspace.path / "job.sh") in workspace.prepare("run_command", script=text).executed


async def test_a_program_whose_link_was_swapped_does_not_run(workspace):
    (workspace.path / "tool").symlink_to("/bin/echo")
    prepared = workspace.prepare("run_command", command=["./tool", "x"])
    (workspace.path / "tool").unlink()
    (workspace.path / "tool").symlink_to("/bin/cat")
    assert not (await workspace.tools["run_command"].run(prepared, workspace.call())).ok


def test_the_interpreter_of_a_script_is_part_of_the_digest(workspace):
    script(workspace, "job.py", f"#!{sys.executable}\nprint(1)\n")
    executed = workspace.prepare("run_command", command=["./job.py"]).executed
    assert {str(Path(sys.executable).resolve()), str(workspace.path / "job.py")} <= set(executed)


def test_data_files_are_not_bound(workspace):
    (workspace.path / "inbox/a.log").write_text("x")
    assert (
        str(workspace.path / "inbox/a.log")
        not in workspace.prepare("run_command", command=["cat", "inbox/a.log"]).executed
    )


def test_the_digest_changes_with_everything_that_counts(make_workspace):
    workspace = make_workspace()
    base = workspace.prepare("run_command", command=["ls", "a"]).digest
    assert workspace.prepare("run_command", command=["ls", "a"]).digest == base
    assert workspace.prepare("run_command", command=["ls", "b"]).digest != base
    assert workspace.prepare("run_command", command=["ls", "a"], cwd="inbox").digest != base


def test_the_digest_binds_the_environment(make_workspace):
    digests = set()
    for colour in ("red", "blue"):
        digests.add(
            make_workspace(f'commands = {{env = {{C = "{colour}"}}}}').prepare("run_command", command=["ls"]).digest
        )
    assert len(digests) == 2


@pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")
async def test_commands_are_sandboxed_and_say_when_they_are_not(make_workspace):
    workspace = make_workspace()
    assert workspace.prepare("run_command", command=["ls"]).sandboxed
    result = await workspace.do("run_command", command=["cat", "state/control.token"])
    assert not result.ok
    assert "the-token" not in str(result)
    unconfined = make_workspace('commands = {sandbox = "none"}')
    assert not unconfined.prepare("run_command", command=["ls"]).sandboxed


@pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")
async def test_commands_write_only_under_write_roots(make_workspace):
    workspace = make_workspace('files = {read = ["."], write = ["reports"]}')
    assert (await workspace.do("run_command", script="echo x > reports/x")).ok
    for place in ("inbox/x", "perdure.toml", "policies/x", "tasks/x", "state/x", "STOP"):
        assert not (await workspace.do("run_command", script=f"echo x > {place}")).ok, place
    assert (workspace.path / "reports/x").read_text() == "x\n"


@pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")
async def test_the_cli_cannot_answer_a_question_from_inside_a_tool(workspace):
    """The whole program, the socket's token and all: it finds neither the token nor a ledger that it may open."""
    result = await workspace.do(
        "run_command", command=[sys.executable, "-m", "perdure.daemon.cli", "approve", "01ARZ3NDEKTSV4RRFFQ69G5FAV"]
    )
    assert not result.ok
    assert "the-token" not in str(result)


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="these tests do not run in a virtual environment")
async def test_programs_in_a_virtual_environment_find_their_packages(workspace):
    result = await workspace.do("run_command", command=[sys.executable, "-c", "import httpx; print(httpx.__name__)"])
    assert result.value["stdout"] == "httpx\n", result


async def test_a_file_that_a_command_names_is_resolved_and_looked_at_again_before_it_runs(workspace):
    inside, secret, link = workspace.path / "inside", workspace.path / "secret", workspace.path / "link"
    inside.write_text("fine")
    secret.write_text("secret")
    link.symlink_to(inside)
    prepared = workspace.prepare("run_command", command=["cat", "link"])
    assert prepared.named == {"link": (str(inside),)}
    again = workspace.prepare("run_command", command=["cat", "link"])
    assert again.digest == prepared.digest
    link.unlink()
    link.symlink_to(secret)
    assert workspace.prepare("run_command", command=["cat", "link"]).digest != prepared.digest, (
        "an approval is of where it led"
    )
    result = await workspace.tools["run_command"].run(prepared, workspace.call())
    assert not result.ok
    assert "where 'link' leads has changed since it was decided" in result.error
    assert (await workspace.do("run_command", command=["cat", "link"])).value["stdout"] == "secret"


async def test_what_a_glob_finds_is_looked_up_as_the_shell_does(workspace):
    for name in ("a.log", "b.log", ".hidden.log"):
        (workspace.path / name).write_text(name)
    (workspace.path / "c.log").symlink_to("/etc/hostname")
    prepared = workspace.prepare("run_command", script='cat *.log nothing* "quoted*"')
    root = str(workspace.path)
    assert prepared.named == {
        "*.log": (str(Path("/etc/hostname").resolve()), f"{root}/a.log", f"{root}/b.log"),
        "nothing*": (f"{root}/nothing*",),
        "quoted*": (f"{root}/quoted*",),
    }
    (workspace.path / "d.log").write_text("new")
    again = workspace.prepare("run_command", script='cat *.log nothing* "quoted*"')
    assert again.digest == prepared.digest, "a person who approved the glob approved what it finds"
    result = await workspace.tools["run_command"].run(prepared, workspace.call())
    assert "where '*.log' leads has changed" in result.error, "but the policies have not seen the new file"


def test_a_home_directory_that_is_made_for_the_program_is_not_known_before(make_workspace):
    assert make_workspace().prepare("run_command", script="cat ~/x").named == {}


def test_a_configured_home_directory_is_known(make_workspace):
    workspace = make_workspace('[commands]\nenv = {HOME = "/srv/home"}\n')
    assert workspace.prepare("run_command", script="cat ~/x ~root/y").named == {
        "~/x": ("/srv/home/x",),
        "~root/y": ("/root/y",),
    }
