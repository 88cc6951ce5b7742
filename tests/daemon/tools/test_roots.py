"""No file tool leaves the declared roots, reads Perdure's state, or writes what governs Perdure."""

import ctypes
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.daemon.tools.model import ToolRefused
from perdure.daemon.tools.roots import declared_roots


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "/etc/passwd",
        "reports/../../outside.txt",
        "/proc/self/root/etc/passwd",
        "reports/link/x",
        "/dev/null",
        "..",
        "/",
    ],
)
@pytest.mark.parametrize("tool", ["read_file", "write_file", "append_file", "delete_file"])
def test_paths_out_of_the_roots_are_refused(workspace, tool, path):
    (workspace.path / "reports/link").symlink_to("/etc")
    args = {"path": path} | ({"text": "x"} if tool in {"write_file", "append_file"} else {})
    with pytest.raises(ToolRefused, match=r"outside the declared roots|governs Perdure") as refused:
        workspace.prepare(tool, **args)
    assert refused.value.hint


@pytest.mark.parametrize(
    "path",
    [
        "state",
        "state/control.token",
        "state/ledger.db",
        "inbox/../state/ledger.db",
        "state/undo/x",
        "inbox/to-state/control.token",
    ],
)
@pytest.mark.parametrize("tool", ["read_file", "list_files", "search_files", "write_file", "delete_file"])
def test_the_state_is_neither_read_nor_written(workspace, tool, path):
    (workspace.path / "inbox/to-state").symlink_to(workspace.config.state_dir)
    args = {"path": path} | ({"text": "x"} if tool in {"write_file", "search_files"} else {})
    with pytest.raises(ToolRefused, match="own state"):
        workspace.prepare(tool, **args)


@pytest.mark.parametrize(
    "path", ["perdure.toml", "policies/loose.yaml", "tasks/mine.md", "STOP", "policies/deep/er/x.yaml"]
)
@pytest.mark.parametrize("tool", ["write_file", "append_file", "delete_file", "move_file"])
def test_what_governs_perdure_is_never_written(workspace, tool, path):
    args = {
        "write_file": {"path": path, "text": "x"},
        "append_file": {"path": path, "text": "x"},
        "delete_file": {"path": path},
        "move_file": {"from": "inbox/x", "to": path},
    }[tool]
    with pytest.raises(ToolRefused, match="governs Perdure"):
        workspace.prepare(tool, **args)
    if tool == "move_file":
        with pytest.raises(ToolRefused, match="governs Perdure"):
            workspace.prepare(tool, **{"from": path, "to": "inbox/x"})


def test_perdures_own_installation_is_never_written_even_inside_a_root(make_workspace):
    import perdure.daemon.tools.roots as module

    workspace = make_workspace('files = {read = ["/"], write = ["/"]}')
    with pytest.raises(ToolRefused, match="governs Perdure"):
        workspace.prepare("write_file", path=str(Path(module.__file__).resolve()), text="x")


async def test_a_policy_file_can_be_read(workspace):
    (workspace.path / "policies/p.yaml").write_text("version: 1\n")
    assert (await workspace.do("read_file", path="policies/p.yaml")).value["text"] == "version: 1\n"


async def test_state_is_passed_over_when_everything_is_listed_or_searched(workspace):
    listed = await workspace.do("list_files", recursive=True)
    assert not [entry for entry in listed.value["files"] if entry["path"].startswith("state")]
    found = await workspace.do("search_files", text="the-token-that-answers-questions")
    assert found.value["matches"] == []


async def test_a_hard_link_to_the_state_is_not_read(workspace):
    os.link(workspace.config.state_dir / "control.token", workspace.path / "inbox/innocent.txt")
    with pytest.raises(ToolRefused, match="hard link"):
        await workspace.do("read_file", path="inbox/innocent.txt")


async def test_a_write_does_not_go_through_a_hard_link_to_the_outside(workspace, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("untouched")
    os.link(outside, workspace.path / "inbox/linked.txt")
    assert (await workspace.do("write_file", path="inbox/linked.txt", text="new")).ok
    appended = workspace.path / "inbox/linked2.txt"
    os.link(outside, appended)
    result = await workspace.do("append_file", path="inbox/linked2.txt", text="new")
    assert not result.ok
    assert "hard link" in result.error
    assert outside.read_text() == "untouched"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_what_is_no_regular_file_is_refused_without_waiting(workspace, make):
    make(workspace.path / "inbox/odd")
    with pytest.raises(ToolRefused, match="not a regular file"):
        await workspace.do("read_file", path="inbox/odd")


async def test_a_link_swapped_in_between_deciding_and_doing_is_caught(workspace, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    prepared = workspace.prepare("write_file", path="reports/day/today.md", text="x")
    (workspace.path / "reports/day").symlink_to(outside)
    result = await workspace.tools["write_file"].run(prepared, workspace.call())
    assert not result.ok
    assert list(outside.iterdir()) == []


async def test_a_racing_attacker_never_gets_a_write_out_of_the_roots(workspace, tmp_path):
    """A thread swaps a directory for a link to the outside and back, as fast as it can, while files are written."""
    outside, inside = tmp_path / "outside", workspace.path / "reports/day"
    outside.mkdir()
    inside.mkdir()
    link = workspace.path / "reports/link"
    link.symlink_to(outside)
    stop = threading.Event()
    libc = ctypes.CDLL(None)

    def swap():
        while not stop.is_set():  # at one stroke: AT_FDCWD, RENAME_EXCHANGE
            assert libc.renameat2(-100, bytes(inside), -100, bytes(link), 2) == 0

    attacker = threading.Thread(target=swap)
    attacker.start()
    outcomes = set()
    try:
        for number in range(150):
            try:
                result = await workspace.do("write_file", path=f"reports/day/{number}.txt", text="x")
                outcomes.add(result.ok)
            except ToolRefused:
                outcomes.add("refused")
    finally:
        stop.set()
        attacker.join()
    assert list(outside.iterdir()) == []
    assert outcomes & {True, "refused"}


_PARTS = st.sampled_from(
    [
        "..",
        ".",
        "",
        "inbox",
        "reports",
        "state",
        "STATE",
        "link",
        "loop",
        "policies",
        "perdure.toml",
        "etc",
        "x",
        "ü",
        "...",
        " ",
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(_PARTS, min_size=1, max_size=8), absolute=st.booleans())
def test_whatever_resolves_lies_in_a_root_and_outside_of_what_is_excluded(tmp_path_factory, parts, absolute):
    path = tmp_path_factory.getbasetemp() / "fixed"
    if not path.exists():
        for name in ("state", "inbox", "reports", "policies", "outside"):
            (path / name).mkdir(parents=True)
        (path / "perdure.toml").write_text('files = {read = ["inbox", "reports", "."], write = ["inbox", "reports"]}')
        (path / "inbox/link").symlink_to("../../outside")
        (path / "reports/link").symlink_to("../state")
        (path / "inbox/loop").symlink_to("loop")
    from perdure.daemon.config import load_config

    roots = declared_roots(load_config(path))
    text = ("/" if absolute else "") + "/".join(parts)
    for use in ("read", "write"):
        try:
            resolved = roots.resolve(text, use)
        except ToolRefused:
            continue
        assert resolved == Path(os.path.realpath(path / text))
        assert any(resolved.is_relative_to(root) for root in (roots.read if use == "read" else roots.write))
        assert not resolved.is_relative_to(path / "state")
        if use == "write":
            assert resolved.is_relative_to(path / "inbox") or resolved.is_relative_to(path / "reports")
