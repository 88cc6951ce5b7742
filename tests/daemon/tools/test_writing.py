"""Changes are atomic, restorable, safe to repeat, and can be asked whether they happened."""

import json
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.daemon.tools.model import ToolInterrupted, ToolRefused
from perdure.daemon.tools.versions import sha256


def everything(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_writing_makes_directories_and_reports_the_hash(workspace):
    result = await workspace.do("write_file", path="reports/2026/11/today.md", text="größer\n")
    assert result.value == {
        "path": "reports/2026/11/today.md",
        "bytes": 9,
        "sha256": sha256("größer\n".encode()),
        "replaced": False,
    }
    assert result.undo
    assert (workspace.path / "reports/2026/11/today.md").read_text() == "größer\n"


async def test_the_old_permissions_stay(workspace):
    path = workspace.path / "reports/run.sh"
    path.write_text("old")
    path.chmod(0o750)
    await workspace.do("write_file", path="reports/run.sh", text="new")
    assert path.stat().st_mode & 0o777 == 0o750


async def test_no_temporary_file_is_left_by_a_failed_write(workspace):
    (workspace.path / "reports/x").mkdir()
    result = await workspace.tools["write_file"].run(
        workspace.prepare("write_file", path="reports/x", text="y"), workspace.call()
    )
    assert not result.ok
    assert [path.name for path in (workspace.path / "reports").iterdir()] == ["x"]


async def test_the_old_content_lies_in_the_stash_before_the_new_is_there(workspace):
    (workspace.path / "reports/a").write_text("old")
    await workspace.do("write_file", action="A1", path="reports/a", text="new")
    stash = workspace.config.state_dir / "undo/A1"
    manifest = json.loads((stash / "manifest.json").read_text())
    (change,) = manifest["changes"]
    assert change["before"]["sha256"] == sha256(b"old")
    assert change["after"] == sha256(b"new")
    assert (stash / change["file"]).read_bytes() == b"old"
    assert stash.stat().st_mode & 0o077 == 0


async def test_a_second_attempt_of_a_write_keeps_the_first_ones_stash(workspace):
    (workspace.path / "reports/a").write_text("old")
    await workspace.do("write_file", action="A1", path="reports/a", text="new")
    assert (await workspace.do("write_file", action="A1", attempt=2, path="reports/a", text="new")).ok
    assert (await workspace.tools["undo"].run(workspace.prepare("undo", action="A1"), workspace.call("A2"))).ok
    assert (workspace.path / "reports/a").read_text() == "old"


async def test_a_second_attempt_does_not_run_over_what_somebody_else_wrote(workspace):
    (workspace.path / "reports/a").write_text("old")
    await workspace.do("write_file", action="A1", path="reports/a", text="new")
    (workspace.path / "reports/a").write_text("theirs")
    result = await workspace.do("write_file", action="A1", attempt=2, path="reports/a", text="new")
    assert not result.ok
    assert "somebody else" in result.error
    assert (workspace.path / "reports/a").read_text() == "theirs"


async def test_appending_in_place_and_the_probe_tells(workspace):
    path = workspace.path / "reports/a.log"
    path.write_text("one\n")
    inode = path.stat().st_ino
    assert await workspace.happened("append_file", action="A1", path="reports/a.log", text="two\n") is False
    await workspace.do("append_file", action="A1", path="reports/a.log", text="two\n")
    assert path.read_text() == "one\ntwo\n"
    assert path.stat().st_ino == inode
    assert await workspace.happened("append_file", path="reports/a.log", text="two\n") is True
    path.write_text("one\ntwo\nthree, by another\n")
    assert await workspace.happened("append_file", path="reports/a.log", text="two\n") is True
    path.write_text("rewritten")
    assert await workspace.happened("append_file", path="reports/a.log", text="two\n") is None


@pytest.mark.parametrize("written", ["", "t", "two", "two\n"])
async def test_an_append_torn_anywhere_is_completed_once_by_the_next_attempt(workspace, written):
    path = workspace.path / "reports/a.log"
    path.write_text("one\n")
    await workspace.do("append_file", action="A1", path="reports/a.log", text="two\n")
    path.write_text("one\n" + written)  # as a kill in the middle of the write would leave it
    happened = await workspace.happened("append_file", action="A1", path="reports/a.log", text="two\n")
    assert happened is {"": False, "two\n": True}.get(written)
    assert (await workspace.do("append_file", action="A1", attempt=2, path="reports/a.log", text="two\n")).ok
    assert path.read_text() == "one\ntwo\n"


async def test_appending_makes_a_missing_file_and_undo_takes_it_away(workspace):
    await workspace.do("append_file", action="A1", path="reports/new.log", text="x\n")
    assert (workspace.path / "reports/new.log").read_text() == "x\n"
    assert (await workspace.tools["undo"].run(workspace.prepare("undo", action="A1"), workspace.call())).ok
    assert not (workspace.path / "reports/new.log").exists()


async def test_moving_refuses_to_overwrite_unless_told_to(workspace):
    (workspace.path / "inbox/a").write_text("a")
    (workspace.path / "reports/b").write_text("b")
    refused = await workspace.do("move_file", **{"from": "inbox/a", "to": "reports/b"})
    assert "overwrite" in refused.error
    moved = {"from": "inbox/a", "to": "reports/b", "overwrite": True}
    assert (await workspace.do("move_file", action="A1", **moved)).ok
    assert everything(workspace.path / "reports") == {"b": b"a"}
    assert await workspace.happened("move_file", action="A1", **moved) is True
    assert (
        await workspace.do("move_file", action="A1", attempt=2, **moved)
    ).ok  # again under the same key: nothing to do
    assert (await workspace.tools["undo"].run(workspace.prepare("undo", action="A1"), workspace.call())).ok
    assert (workspace.path / "inbox/a").read_text() == "a"
    assert (workspace.path / "reports/b").read_text() == "b"
    assert await workspace.happened("move_file", action="A1", **moved) is False


async def test_moving_to_another_file_system(make_workspace, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        other = Path(elsewhere)
        if other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm and the temporary directory are one file system here")
        workspace = make_workspace(f'files = {{read = ["."], write = [".", "{other}"]}}')
        (workspace.path / "inbox/a").write_text("a")
        assert (await workspace.do("move_file", **{"from": "inbox/a", "to": f"{other}/a"})).ok
        assert everything(workspace.path / "inbox") == {}
        assert everything(other) == {"a": b"a"}


async def test_deleting_and_its_probe(workspace):
    (workspace.path / "inbox/a").write_text("a")
    assert (await workspace.do("delete_file", action="A1", path="inbox/a")).ok
    assert await workspace.happened("delete_file", path="inbox/a") is True
    missing = await workspace.do("delete_file", path="inbox/a")
    assert not missing.ok
    assert "no such file" in missing.error
    assert (await workspace.tools["undo"].run(workspace.prepare("undo", action="A1"), workspace.call())).ok
    assert await workspace.happened("delete_file", action="A1", path="inbox/a") is False


async def test_undo_refuses_when_the_file_changed_since_and_says_how_to_force_it(workspace):
    path = workspace.path / "reports/a"
    path.write_text("old")
    await workspace.do("write_file", action="A1", path="reports/a", text="new")
    path.write_text("newer, by a person")
    undo = workspace.tools["undo"]
    refused = await undo.run(workspace.prepare("undo", action="A1"), workspace.call("A2"))
    assert not refused.ok
    assert "changed since" in refused.error
    assert "--force" in refused.error
    assert path.read_text() == "newer, by a person"
    assert (await undo.run(workspace.prepare("undo", action="A1", force=True), workspace.call("A3"))).ok
    assert path.read_text() == "old"
    assert (
        await undo.run(workspace.prepare("undo", action="A3"), workspace.call("A4"))
    ).ok  # and the undo can be undone
    assert path.read_text() == "newer, by a person"


async def test_undo_of_what_never_was_is_refused(workspace):
    with pytest.raises(ToolRefused, match="nothing of it is stashed"):
        workspace.prepare("undo", action="A99")
    with pytest.raises(ToolRefused):
        workspace.prepare("undo", action="../../etc")


async def test_undo_of_an_append_that_was_rewritten_is_refused_even_when_forced(workspace):
    path = workspace.path / "reports/a"
    path.write_text("old\n")
    await workspace.do("append_file", action="A1", path="reports/a", text="more\n")
    path.write_text("quite different")
    result = await workspace.tools["undo"].run(workspace.prepare("undo", action="A1", force=True), workspace.call("A2"))
    assert "no longer begins" in result.error
    assert path.read_text() == "quite different"


_NAMES = st.sampled_from(["reports/a", "reports/b", "reports/deep/c"])
_TEXTS = st.text("ab\n", max_size=6)
_STEPS = st.one_of(
    st.tuples(st.just("write_file"), st.fixed_dictionaries({"path": _NAMES, "text": _TEXTS})),
    st.tuples(st.just("append_file"), st.fixed_dictionaries({"path": _NAMES, "text": _TEXTS})),
    st.tuples(st.just("delete_file"), st.fixed_dictionaries({"path": _NAMES})),
    st.tuples(st.just("move_file"), st.fixed_dictionaries({"from": _NAMES, "to": _NAMES, "overwrite": st.booleans()})),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEPS, max_size=8))
async def test_undoing_backwards_restores_every_earlier_state(workspace, steps):
    reports = workspace.path / "reports"
    for path in reports.rglob("*"):
        if path.is_file():
            path.unlink()
    done = []
    for tool, args in steps:
        before = everything(reports)
        result = await workspace.do(tool, **args)
        if result.ok:
            done.append((workspace.last, before))
        else:
            assert everything(reports) == before
    for action, before in reversed(done):
        result = await workspace.tools["undo"].run(workspace.prepare("undo", action=action), workspace.call())
        assert result.ok, result.error
        assert everything(reports) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, which only root can mount."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", place], check=True)


async def test_a_full_disk_fails_the_write_and_leaves_the_file_as_it_was(make_workspace, small_disk):
    workspace = make_workspace(f'files = {{read = ["{small_disk}"], write = ["{small_disk}"]}}')
    (small_disk / "a").write_text("old")
    (small_disk / "log").write_text("old\n")
    big = "x" * 400_000
    written = await workspace.do("write_file", path=f"{small_disk}/a", text=big)
    appended = await workspace.do("append_file", path=f"{small_disk}/log", text=big)
    for result in (written, appended):
        assert not result.ok
        assert "No space left" in result.error
    assert everything(small_disk) == {"a": b"old", "log": b"old\n"}


async def test_an_undo_directory_that_cannot_be_written_stops_the_change_itself(workspace):
    (workspace.config.state_dir / "undo").write_text("in the way")
    (workspace.path / "reports/a").write_text("old")
    with pytest.raises(ToolInterrupted):
        await workspace.do("write_file", path="reports/a", text="new")
    assert (workspace.path / "reports/a").read_text() == "old"
