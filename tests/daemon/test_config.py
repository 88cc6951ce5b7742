"""perdure.toml: an empty one is valid, and every mistake is named with its place, all of them at once."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.daemon.config import Config, check_config, load_config
from perdure.daemon.quantities import duration_seconds, duration_text, size_bytes
from perdure.daemon.secrets import credential, redacted, redactor
from perdure.daemon.toml_positions import positions
from perdure.errors import PerdureError, Problem, Problems


def checked(text: str, workspace: Path = Path("/srv/ws")) -> tuple[Config | None, list[Problem]]:
    return check_config(text.encode(), workspace)


def only(text: str) -> Problem:
    config, problems = checked(text)
    assert config is None
    assert len(problems) == 1, problems
    return problems[0]


def test_empty_file_is_valid(tmp_path: Path) -> None:
    (tmp_path / "perdure.toml").write_text("# nothing yet\n")
    config = load_config(tmp_path)
    assert config.files.read == config.files.write == (tmp_path.resolve(),)
    assert config.state_dir == tmp_path.resolve() / "state"
    assert (config.limits.sessions, config.payloads.keep, config.memory.embedding) == (4, 90 * 86_400, "minilm")
    assert (config.commands.sandbox, config.model, config.tools) == ("landlock", None, {})
    assert config.digest.startswith("sha256:")


def test_paths_are_the_workspace_s_and_state_may_lie_elsewhere() -> None:
    config, _ = checked('state = "/var/lib/perdure"\nfiles.read = ["logs", "/var/log"]\nfiles.write = ["a/../reports"]')
    assert config is not None
    assert config.state_dir == Path("/var/lib/perdure").resolve()
    assert config.files.read == (Path("/srv/ws/logs"), Path("/var/log").resolve())
    assert config.files.write == (Path("/srv/ws/reports"),)


def test_design_s_own_tool_loads() -> None:
    config, problems = checked("""
[tools.block_ip]
command = ["/usr/sbin/nft", "add", "element", "inet", "filter", "blocked", "{ ${args.ip} }"]
args = {ip = {type = "string", format = "ipv4"}}
effect = "probeable"
probe = {command = ["/usr/sbin/nft", "get", "element", "inet", "filter", "blocked", "{ ${args.ip} }"], happened = "exit == 0"}
timeout = "10s"
credentials = {}
""")
    assert not problems
    assert config is not None
    assert config.tools["block_ip"].timeout == 10
    assert "block_ip" in config.tools


def test_all_mistakes_are_reported_at_once_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "perdure.toml").write_text("""timezon = "UTC"
[files]
read = [".", 3]
[tools.block_ip]
command = ["nft", "${args.ip}"]
efect = "probeable"
effect = "probable"
timeout = "10 s"
[limits]
sessions = 0
""")
    with pytest.raises(Problems) as raised:
        load_config(tmp_path)
    assert raised.value.exit_code == 2
    assert [(each.line, each.column) for each in raised.value.problems] == [
        (1, 1), (3, 14), (6, 1), (7, 10), (8, 11), (10, 12),
    ]  # fmt: skip
    text = str(raised.value)
    assert "perdure.toml:1:1: found the unknown key `timezon`; expected `timezone`, the nearest known" in text
    assert "the unknown key `efect`; expected `effect`" in text
    assert 'found "10 s"; expected a duration such as "10s"' in text
    assert '    timeout = "10 s"\n              ^' in text


@pytest.mark.parametrize(
    ("text", "place", "found", "expected"),
    [
        ("[a", (1, 3), "the end of the file", "TOML"),
        ("timezone = \n", (1, 12), "the end of the line", "TOML"),
        ('a = 1\na = "b"', (2, 8), "the end of the file", "TOML: Cannot overwrite a value"),
        ('timezone = "Mars/Olympus"', (1, 12), '"Mars/Olympus"', "IANA"),
        ('timezone = "../../etc/passwd"', (1, 12), "passwd", "IANA"),
        ('workspace = "/elsewhere"', (1, 1), "unknown key `workspace`", "a setting"),
        ("notify = 3", (1, 10), "3", "a table"),
        ("limits.sessions = true", (1, 19), "true", "a whole number"),
        ("limits.sessions = 4.5", (1, 19), "4.5", "a whole number"),
        ("budgets.usd_per_day = inf", (1, 23), "", "finite"),
        ("payloads.keep = 2026-01-01", (1, 17), "2026-01-01", "a duration"),
        ('commands.memory_bytes_max = "1 zebibyte"', (1, 29), "zebibyte", "a size"),
        ('tools.read_file.command = ["x"]', (1, 1), "read_file", "other than `read_file`"),
        ('tools."a b".command = ["x"]', (1, 1), "a b", "tool names"),
        ("tools.x.command = []", (1, 19), "[]", "at least 1"),
        ('tools.x.command = ["x", "${args.ip}"]', (1, 1), "${args.ip}", "argument `ip`"),
        ('tools.x = {command = ["x"], effect = "probeable"}', (1, 11), "probeable", "`probe = "),
        ('tools.x = {command = ["x"], args = {a = {type = "text"}}}', (1, 36), "text", "JSON Schema"),
        ("tools.x = {}", (1, 1), "no `command` here", "the key `command`"),
        ('model = {name = "m"}', (1, 9), "m", "`base_url`"),
        ('model = {name = "m", provider = "local"}', (1, 9), "m", "`file`"),
        ('model = {name = "m", provider = "openai", completion_tokens = 40000}', (1, 9), "m", "below `context_tokens`"),
        ('notify.on = ["fire"]', (1, 14), '"fire"', "'question'"),
    ],
)
def test_mistake_and_its_place(text: str, place: tuple[int, int], found: str, expected: str) -> None:
    problem = only(text)
    assert (problem.line, problem.column) == place
    assert found in problem.found
    assert expected in problem.expected


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(Problems, match="perdure init"):
        load_config(tmp_path)
    with pytest.raises(Problems, match="no directory"):
        load_config(tmp_path / "nowhere")


def test_bytes_that_are_no_text_have_a_place() -> None:
    _, problems = check_config(b"# one\n# two \xff\n", Path("/srv/ws"))
    assert [(each.line, each.column, each.found) for each in problems] == [(2, 7, "the byte 0xff")]


@pytest.mark.parametrize(
    "where",
    [
        'model = {{name = "m", provider = "openai", key = "{}"}}',
        'notify.webhook = {{secret = "{}"}}',
        'ledger.signing_key = "{}"',
    ],
)
@pytest.mark.parametrize("secret", ["sk-proj-abcdef0123456789", "ghp_0123456789abcdef0123456789abcdef0123", "a" * 60])
def test_secret_written_into_the_file_is_refused_and_not_repeated(where: str, secret: str) -> None:
    problem = only(where.format(secret))
    assert "not the secret itself" in problem.expected
    assert secret not in str(problem)


def test_long_name_in_capitals_is_a_name() -> None:
    name = "THE_KEY_OF_THE_MODEL_SERVICE_OF_THE_SECOND_DATA_CENTRE"
    config, _ = checked(f'model = {{name = "m", provider = "openai", key = "{name}"}}')
    assert config is not None
    assert config.model is not None
    assert config.model.key == name


# -- positions ----------------------------------------------------------------------------------------------------------

KEYS = st.text("abcXYZ_-. #='\"\\\n\té☃", max_size=6)
VALUES = st.recursive(
    st.integers(-99, 99) | st.booleans() | st.text("ab '\"\\\n#[]{}=,\té", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {toml(each)}" for key, each in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[ # a, comment]\n" + ",\n".join(toml(each) for each in value) + " ]" if value else "[]"
    if isinstance(value, str) and "'" not in value and "\n" not in value and "\t" not in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_every_key_has_its_place(document: dict[str, object]) -> None:
    """Whatever the strings, comments and nesting: the text at a key's place begins with that key."""
    text = "".join(
        f"  {json.dumps(key, ensure_ascii=False)}  =  {toml(value)}  # end\n" for key, value in document.items()
    )
    assert tomllib.loads(text) == document
    places, lines = positions(text), text.split("\n")

    def check(path: tuple[str | int, ...], value: object) -> None:
        place = places[path]
        key = path[-1]
        if isinstance(key, str):
            assert lines[place.key[0] - 1][place.key[1] - 1 :].startswith(json.dumps(key, ensure_ascii=False))
        assert lines[place.value[0] - 1][place.value[1] - 1 :].startswith(toml(value).split("\n")[0])
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, each in children:
            check((*path, name), each)

    for key, value in document.items():
        check((key,), value)


def test_places_in_tables_and_arrays_of_tables() -> None:
    text = "[[x]]\nk = \"\"\"\n[no]\n\"\"\"\n[[x]]\n[x.y]\nz.a = 1\n[\"q.r\"]\nb = '''''it'''\n"
    places = positions(text)
    assert tomllib.loads(text)["x"][1] == {"y": {"z": {"a": 1}}}
    assert places[("x", 0, "k")].key == (2, 1)
    assert places[("x", 1, "y", "z", "a")].value == (7, 7)
    assert places[("q.r", "b")].key == (9, 1)


# -- quantities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("15m", 900),
        ("12h", 43_200),
        ("30d", 2_592_000),
        ("1h30m", 5400),
        ("250ms", 0.25),
        (7, 7),
        ("2w", 1_209_600),
    ],
)
def test_durations(text: str | int, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 s", "-5s", "0s", "1y", "1e3s", True, None, "٣s", "1000000d", float("nan"), float("inf")]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_seconds(text)


@given(st.integers(1, 10**9))
def test_duration_text_reads_back(milliseconds: int) -> None:
    assert duration_seconds(duration_text(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


def test_sizes() -> None:
    assert [size_bytes(text) for text in ("64MB", "64MiB", "1.5KB", "10B", 12)] == [
        64_000_000,
        67_108_864,
        1500,
        10,
        12,
    ]
    for text in ("64", "MB", "-1MB", "0B", "1mb", True, 1.5, "99999999GiB"):
        with pytest.raises(ValueError, match="size"):
            size_bytes(text)


# -- secrets ------------------------------------------------------------------------------------------------------------


def test_credential_directory_comes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "API_KEY").write_text("from systemd\n")
    environment = {"API_KEY": "from environment", "CREDENTIALS_DIRECTORY": str(tmp_path), "OTHER": "x"}
    assert credential("API_KEY", environment) == "from systemd"
    assert credential("OTHER", environment) == "x"


@pytest.mark.parametrize("name", ["MISSING", "../API_KEY", "", "."])
def test_secret_that_is_not_there_says_where_it_could_come_from(tmp_path: Path, name: str) -> None:
    with pytest.raises(PerdureError, match=r"LoadCredential|Name an environment variable"):
        credential(name, {"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_redaction_reaches_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TOKEN", "hunter22")
    monkeypatch.setitem(os.environ, "LONGER", "hunter22-and-more")
    config, _ = checked('tools.x = {command = ["x"], credentials = {TOKEN = "A", LONGER = "B", ABSENT = "C"}}')
    assert config is not None
    value = {"a": ["so hunter22 it is", {"hunter22": 1}], "b": "hunter22-and-more!"}
    assert redactor(config)(value) == {
        "a": ["so {secret: TOKEN} it is", {"{secret: TOKEN}": 1}],
        "b": "{secret: LONGER}!",
    }
    assert redacted("abc", {"SHORT": "ab"}) == "abc"
