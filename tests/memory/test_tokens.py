"""Counting is exact, offline, and costs no more on hostile text than on any other."""

import hashlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import PerdureError
from perdure.memory import tokens


@pytest.mark.parametrize("encoding", sorted(tokens.ENCODINGS))
def test_counts_as_tiktoken_does(encoding):
    text = "Failed password for root from 203.0.113.7 port 22\nçé 日本語 <|endoftext|> 🙂\t\t  x"
    assert tokens.count(text, encoding) == len(tokens.encoder(encoding).encode_ordinary(text))


@settings(max_examples=200)
@given(st.text(max_size=600))
def test_ordinary_text_is_counted_exactly(text):
    assert tokens.count(text) == len(tokens.encoder("o200k_base").encode_ordinary(text))


@pytest.mark.parametrize("run", [" " * 256, "\u3000\n" * 128, "a" * 2_048, "\x1c" * 2_048, "é1\x1f!" * 512])
def test_no_long_run_is_overlooked_wherever_it_begins(run):
    for before in (*range(130), *range(1_000, 1_050), 2_047, 2_048):
        text = ("word " * 500)[: before - before % 5] + "b c d"[: before % 5] + run + " end"
        assert tokens._LONG_RUN.search(text)
        assert tokens._may_have_long_run(text)
    assert not tokens._may_have_long_run("word " * 5_000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([" ", "\n", "\t ", "a", "!", "Ж", "e\u0301", "\x1c", "\r\n", "中", "1", "ab1-"]), st.integers(1, 1_500)),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_long_runs_are_never_counted_below_tiktoken(parts):
    text = "".join(unit * times for unit, times in parts)
    assert tokens.count(text) >= len(tokens.encoder("o200k_base").encode_ordinary(text))


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000,
        "\n" * 1_000_000,
        "\t \n" * 300_000,
        "a" * 1_000_000,
        ("!" * 1_000 + "\x1c") * 1_000,
        "e\u0301\u0301" * 300_000,
        "\u200b" * 1_000_000,
        "<|endoftext|><|fim_prefix|>" * 20_000,
        "\ud800" * 10_000,
        "\x00" * 1_000_000,
    ],
    ids=[
        "blanks",
        "newlines",
        "mixed blanks",
        "one word",
        "unit separators",
        "accents",
        "zero width",
        "special",
        "surrogates",
        "nul",
    ],
)
def test_hostile_text_is_counted(text):
    assert 0 < tokens.count(text) <= len(text.encode("utf-8", "surrogatepass"))


def test_special_tokens_are_plain_text():
    assert tokens.count("<|endoftext|>") > 1


def test_the_table_is_seeded_whole_and_a_damaged_one_is_replaced(tmp_path):
    assert tokens.seed("cl100k_base", tmp_path) == tmp_path
    (table,) = [path for path in tmp_path.iterdir() if path.is_file()]
    good = table.read_bytes()
    assert hashlib.sha256(good).hexdigest() == tokens.ENCODINGS["cl100k_base"]
    table.write_bytes(good[:-1])
    tokens.seed("cl100k_base", tmp_path)
    assert table.read_bytes() == good


def test_a_cache_that_cannot_be_written_does_not_stop_counting(tmp_path):
    (tmp_path / "file").write_text("in the way")
    used = tokens.seed("cl100k_base", tmp_path / "file" / "cache")
    assert used != tmp_path / "file" / "cache"
    assert any(used.iterdir())


def test_the_environment_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    tokens.encoder.cache_clear()
    tokens.count("x")
    assert "TIKTOKEN_CACHE_DIR" not in os.environ


def test_an_unknown_encoding_says_which_there_are():
    with pytest.raises(PerdureError, match="o200k_base, cl100k_base"):
        tokens.count("x", "p50k_base")
