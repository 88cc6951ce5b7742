"""list_files, read_file and search_files on real files."""

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.daemon.tools.model import ToolRefused
from perdure.daemon.tools.reading import _whole_characters


async def test_paging_returns_every_byte_once_and_the_hash_of_the_whole(workspace):
    text = "".join(f"{number} größer\n" for number in range(500))
    (workspace.path / "inbox/a.log").write_text(text)
    seen, offset = "", 0
    while offset is not None:
        value = (await workspace.do("read_file", path="inbox/a.log", offset=offset, limit=101)).value
        seen += value["text"]
        assert value["sha256"] == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        offset = value["next_offset"]
    assert seen == text


async def test_a_negative_offset_reads_the_end(workspace):
    (workspace.path / "inbox/a.log").write_text("first\nlast\n")
    assert (await workspace.do("read_file", path="inbox/a.log", offset=-5)).value["text"] == "last\n"
    assert (await workspace.do("read_file", path="inbox/a.log", offset=-500)).value["text"] == "first\nlast\n"


async def test_binary_comes_as_base64_and_foreign_bytes_are_counted(workspace):
    (workspace.path / "inbox/a.bin").write_bytes(b"\x7fELF\0\1\2")
    assert (await workspace.do("read_file", path="inbox/a.bin")).value["base64"] == "f0VMRgABAg=="
    (workspace.path / "inbox/latin.log").write_bytes("grün\n".encode("latin-1"))
    value = (await workspace.do("read_file", path="inbox/latin.log")).value
    assert value["text"] == "gr\ufffdn\n"
    assert value["replaced_bytes"] == 1


@given(text=st.text(min_size=1, max_size=20), cut=st.integers(1, 60))
def test_a_page_never_ends_inside_a_character(text, cut):
    data = text.encode("utf-8", "ignore")[:cut]
    whole = _whole_characters(data)
    assert data.startswith(whole)
    assert len(data) - len(whole) < 4
    if len(data) > 3:
        whole.decode()


async def test_a_file_that_is_not_there_is_refused_with_a_hint(workspace):
    with pytest.raises(ToolRefused, match="list_files"):
        await workspace.do("read_file", path="inbox/none.log")


async def test_listing_is_sorted_bounded_and_says_what_it_left_out(workspace):
    for number in range(30):
        (workspace.path / f"inbox/{number:02}.log").write_text("x" * number)
    (workspace.path / "inbox/away").symlink_to("/etc")
    value = (await workspace.do("list_files", path="inbox", limit=10)).value
    assert [entry["path"] for entry in value["files"]] == [f"inbox/{number:02}.log" for number in range(10)]
    assert value["files"][3]["size"] == 3
    assert value["left_out"] == 21
    logs = (await workspace.do("list_files", path="inbox", pattern="2*.log")).value["files"]
    assert len(logs) == 10
    everything = (await workspace.do("list_files", path="inbox", recursive=True)).value["files"]
    assert [entry["type"] for entry in everything if entry["path"] == "inbox/away"] == ["link"]
    assert not [entry for entry in everything if entry["path"].startswith("inbox/away/")]


async def test_searching_finds_lines_with_numbers_across_files(workspace):
    (workspace.path / "inbox/a.log").write_text("ok\nFailed password for root\nok\n")
    (workspace.path / "inbox/b.txt").write_text("failed PASSWORD for x\n")
    (workspace.path / "inbox/c.bin").write_bytes(b"\0Failed password\n")
    value = (await workspace.do("search_files", path="inbox", text="failed password", ignore_case=True)).value
    assert [(match["path"], match["line"]) for match in value["matches"]] == [("inbox/a.log", 2), ("inbox/b.txt", 1)]
    only = (await workspace.do("search_files", path="inbox", text="password", pattern="*.log")).value
    assert len(only["matches"]) == 1
    regex = (await workspace.do("search_files", path="inbox", text=r"^Failed \w+ for (root|admin)$", regex=True)).value
    assert [match["line"] for match in regex["matches"]] == [2]


async def test_searching_stops_at_its_limit_and_says_so(workspace):
    (workspace.path / "inbox/a.log").write_text("x\n" * 1000)
    result = await workspace.do("search_files", path="inbox/a.log", text="x", limit=7)
    assert len(result.value["matches"]) == 7
    assert result.truncated
    assert result.value["cut"] == "stopped at the limit of lines"


async def test_literal_text_is_not_a_pattern(workspace):
    (workspace.path / "inbox/a.log").write_text("a.b\naxb\n")
    assert len((await workspace.do("search_files", path="inbox", text="a.b")).value["matches"]) == 1


async def test_an_evil_pattern_costs_linear_time(workspace):
    """`^(a+)+$` on 28 characters takes a backtracking engine 21 s; here 40,000 lines of 60 are nothing."""
    (workspace.path / "inbox/a.log").write_text(("a" * 60 + "!\n") * 40_000)
    result = await workspace.do("search_files", path="inbox", text="^(a+)+$", regex=True)
    assert result.value["matches"] == []
    assert result.value["cut"] is None


async def test_a_broken_pattern_is_refused_with_the_reason(workspace):
    with pytest.raises(ToolRefused, match=r"missing \)"):
        await workspace.do("search_files", path="inbox", text="(a", regex=True)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=20), max_size=10
    ),
    needle=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), min_size=1, max_size=3),
)
async def test_literal_search_agrees_with_python(workspace, lines, needle):
    (workspace.path / "inbox/a.log").write_text("".join(line + "\n" for line in lines))
    found = (await workspace.do("search_files", path="inbox/a.log", text=needle)).value["matches"]
    assert [match["line"] for match in found] == [number for number, line in enumerate(lines, 1) if needle in line]
