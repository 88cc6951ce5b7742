"""The log triage counts what is really in the logs: checked against independent counts over real files, in any instalments."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from perdure.daemon.init import TEMPLATES, init_workspace

SAMPLES = Path(__file__).parents[2] / ".." / "shared" / "samples"
SCRIPT = TEMPLATES / "log-triage" / "tools" / "triage.py"
FEED = TEMPLATES / "log-triage" / "feed"
NAMES = ("auth.log", "apache_access.log", "kafka_server.log")


@pytest.fixture
def samples() -> Path:
    if not (SAMPLES / "auth.log").is_file():
        pytest.skip(f"the sample logs are not here: {SAMPLES}")
    return SAMPLES.resolve()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    directory = tmp_path / "logs"
    directory.mkdir()
    return directory


def triage(directory: Path, state: dict | None = None, **more: object) -> dict:
    """One run of the script on `logs/` in `directory`, as the tool starts it."""
    request = {"sources": ["logs/*"], "state": state or {}, "date": "2026-11-22", "time": "14:05", **more}
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", f"import sys, runpy; sys.path.insert(0, {str(SCRIPT.parent)!r}); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"],
        input=json.dumps(request).encode(), capture_output=True, cwd=directory, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def failures_by_grep(path: Path) -> Counter[str]:
    """Failed passwords by address, counted another way: the last address-like word before `port`, times the repeats."""
    counts: Counter[str] = Counter()
    for line in path.read_text(errors="replace").splitlines():
        if "sshd[" not in line or "Failed password for" not in line:
            continue
        repeats = line.partition("message repeated ")[2].partition(" times")[0]
        address = line.rpartition(" port ")[0].rpartition(" from ")[2]
        counts[address] += int(repeats or 1)
    return counts


def shell(command: str, path: Path) -> int:
    """A number that grep or awk counts in the file."""
    done = subprocess.run(["sh", "-c", f'{command} "$1"', "sh", str(path)], capture_output=True, text=True, check=False)
    return int(done.stdout)


def instalments(content: bytes, parts: int) -> list[bytes]:
    """The content cut into parts anywhere, lines too."""
    size = len(content) // parts + 1
    return [content[start : start + size] for start in range(0, len(content), size)]


def test_figures_of_the_real_sshd_log(samples: Path, logs: Path) -> None:
    shutil.copy(samples / "auth.log", logs)
    found = triage(logs.parent)
    truth = failures_by_grep(samples / "auth.log")
    figures = found["figures"]
    assert figures["lines"] == 7121 == sum(found["counts"].values())
    assert found["counts"]["ssh failed password"] == shell(
        "grep -c 'sshd\\[.*Failed password for'", samples / "auth.log"
    )
    assert figures["failed_passwords"] == truth.total()
    assert figures["accepted_logins"] == shell("grep -c 'sshd\\[[0-9]*\\]: Accepted '", samples / "auth.log")
    assert found["counts"]["ssh unknown user"] == shell(
        "grep -c 'sshd\\[[0-9]*\\]: Invalid user '", samples / "auth.log"
    )
    assert found["counts"]["sudo command"] == shell("grep -c 'sudo: .*COMMAND='", samples / "auth.log")
    assert found["counts"]["cron"] == shell("grep -c ' CRON\\['", samples / "auth.log")
    offenders = {address for address, count in truth.items() if count >= 5}
    assert figures["offenders"] == len(offenders) > 100
    assert {each["ip"]: each["failures"] for each in found["offenders"]}.items() <= truth.items()
    assert [truth[ip] for ip in found["block"]] == sorted(truth.values(), reverse=True)[:10]


def test_figures_of_the_real_web_log(samples: Path, logs: Path) -> None:
    path = samples / "apache_access.log"
    shutil.copy(path, logs)
    found = triage(logs.parent)
    # the status is the first field after the quoted request
    status = Counter(
        re.findall(
            r'" ([0-9])[0-9][0-9] ', "\n".join(line.split(" HTTP/")[-1] for line in path.read_text().splitlines())
        )
    )
    kinds = found["counts"]
    assert found["figures"]["web_requests"] == 5000 == shell("grep -c ''", path)
    assert (
        kinds["web success"]
        + kinds["web redirect"]
        + kinds["web client error"]
        + kinds["web server error"]
        + kinds["web probe"]
        == 5000
    )
    assert kinds["web server error"] <= status["5"] == shell("awk -F'\"' '$3 ~ /^ 5/ {n++} END {print n}'", path)
    assert kinds["web success"] <= status["2"] == shell("awk -F'\"' '$3 ~ /^ 2/ {n++} END {print n}'", path)
    probes = shell(
        "grep -icE '(wp-login|wp-admin|xmlrpc\\.php|phpmyadmin|\\.\\./|/etc/passwd|/cgi-bin/|/\\.git/|/\\.env|union[ +%20]+select|<script)'",
        path,
    )
    assert kinds["web probe"] <= probes


def test_figures_of_the_real_kafka_log(samples: Path, logs: Path) -> None:
    shutil.copy(samples / "kafka_server.log", logs)
    counts = triage(logs.parent)["counts"]
    assert counts == {"application info": shell("grep -c '] INFO '", samples / "kafka_server.log")}


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_instalments_add_up_to_the_whole(samples: Path, logs: Path, parts: int) -> None:
    """Cut anywhere, also inside lines: nothing is counted twice and nothing is lost."""
    contents = {name: instalments((samples / name).read_bytes(), parts) for name in NAMES}
    counts: Counter[str] = Counter()
    lines, failed, offenders, state = 0, 0, set(), {}
    for part in range(parts):
        for name, pieces in contents.items():
            with (logs / name).open("ab") as log:
                log.write(pieces[part] if part < len(pieces) else b"")
        found = triage(logs.parent, state)
        state = found["state"]
        counts.update(found["counts"])
        lines += found["figures"]["lines"]
        failed += found["figures"]["failed_passwords"]
        offenders |= {each["ip"] for each in found["offenders"]}
    truth = failures_by_grep(samples / "auth.log")
    assert lines == 7121 + 5000 + 61
    assert failed == truth.total()
    assert counts["web client error"] + counts["web probe"] > 0
    expected = {address for address, count in truth.items() if count >= 5}
    assert offenders <= expected
    assert len(offenders) >= min(len(expected), 50)  # at most 50 are listed in one run
    assert state["day"]["figures"]["failed_passwords"] == failed
    assert state["day"]["figures"]["offenders"] == len(expected)
    assert triage(logs.parent, state)["figures"]["lines"] == 0


def test_address_that_comes_slowly_is_found_over_several_runs(logs: Path) -> None:
    """Three failures, then four: below the threshold in each instalment, above it together."""
    slow, state = "198.51.100.23", {}
    seen = []
    for part in ("1", "2", "3"):
        for source in (FEED / part).iterdir():
            with (logs / source.name).open("ab") as log:
                log.write(source.read_bytes())
        found = triage(logs.parent, state)
        state = found["state"]
        seen.append(({each["ip"] for each in found["offenders"]}, found["block"]))
    assert [slow in offenders for offenders, _ in seen] == [False, True, True]
    assert seen[0] == ({"203.0.113.47"}, ["203.0.113.47"])
    assert seen[1][0] == {slow, "10.0.4.17"}
    assert seen[2][1] == ["203.0.113.47", slow]  # our own 10.0.4.17 is never proposed
    assert any(each["severity"] == "critical" and slow in each["text"] for each in found["findings"])


def test_blocked_address_is_not_proposed_again(logs: Path) -> None:
    shutil.copy(FEED / "1" / "auth.log", logs)
    (logs.parent / "blocked.txt").write_text("203.0.113.47\n")
    found = triage(logs.parent)
    assert found["block"] == []
    assert "| blocked |" in found["report"]


def test_rotated_log_loses_no_line(logs: Path) -> None:
    lines = (FEED / "1" / "auth.log").read_bytes().splitlines(keepends=True)
    (logs / "auth.log").write_bytes(b"".join(lines[:20]))
    first = triage(logs.parent, sources=["logs/auth.log"])
    with (logs / "auth.log").open("ab") as log:
        log.write(b"".join(lines[20:30]))
    (logs / "auth.log").rename(logs / "auth.log.1")
    (logs / "auth.log").write_bytes(b"".join(lines[30:]))
    second = triage(logs.parent, first["state"], sources=["logs/auth.log"])
    assert (first["figures"]["lines"], second["figures"]["lines"]) == (20, len(lines) - 20)
    assert "rotated" in second["report"]


def test_log_emptied_in_place_is_read_from_its_beginning(logs: Path) -> None:
    (logs / "a.log").write_text("2026-11-22 10:00:00 ERROR one\n" * 5)
    state = triage(logs.parent)["state"]
    (logs / "a.log").write_text("2026-11-22 11:00:00 ERROR two\n")
    assert triage(logs.parent, state)["counts"] == {"application error": 1}


def test_large_logs_are_read_in_bounded_parts(logs: Path) -> None:
    """Of a log that is new only the end is read, and one run reads only so much; what was left comes in the next."""
    line = b"2026-11-22 10:00:00 INFO " + b"x" * 974 + b"\n"
    for name in "abcdef":
        (logs / f"{name}.log").write_bytes(line * 10_000)
    first = triage(logs.parent)
    assert 0 < first["figures"]["lines"] <= 6 * 4_000
    for name in "abcdef":
        with (logs / f"{name}.log").open("ab") as log:
            log.write(line * 7_000)
    second = triage(logs.parent, first["state"])
    assert second["figures"]["lines"] == 4 * 7_000
    assert "left for the next run" in second["report"]
    third = triage(logs.parent, second["state"])
    assert third["figures"]["lines"] == 2 * 7_000


def test_line_that_is_still_being_written_waits(logs: Path) -> None:
    (logs / "a.log").write_text("2026-11-22 10:00:00 INFO whole\n2026-11-22 10:00:01 ERR")
    first = triage(logs.parent)
    with (logs / "a.log").open("a") as log:
        log.write("OR half\n")
    second = triage(logs.parent, first["state"])
    assert (first["counts"], second["counts"]) == ({"application info": 1}, {"application error": 1})


def test_stranger_cannot_choose_whom_we_block(logs: Path) -> None:
    """A user name is written by the attacker: what it says about addresses is not believed."""
    victim, attacker = "192.0.2.11", "203.0.113.99"
    names = [
        f"root from {victim} port 22 ssh2",
        f"x from {victim}",
        f"message repeated 99 times: [ Failed password for root from {victim} port 22 ssh2]",
    ]
    line = "Nov 20 01:00:0{} web01 sshd[99]: Failed password for invalid user {} from {} port 4000 ssh2\n"
    (logs / "auth.log").write_text("".join(line.format(index, name, attacker) for index, name in enumerate(names * 2)))
    found = triage(logs.parent)
    assert found["block"] == [attacker]
    assert found["offenders"][0]["failures"] == 6


def test_hostile_lines_do_no_harm(logs: Path) -> None:
    hostile = [
        b"\xff\xfe\x00 not text at all",
        b"A" * 900_000,
        b"Nov 99 99:99:99 h sshd[1]: Failed password for root from 203.0.113.5 port 1 ssh2",
        b"Nov 20 01:00:00 h sshd[1]: Failed password for root from 203.0.113.5.evil.example port 1 ssh2",
        b"Nov 20 01:00:00 h sshd[1]: Failed password for \x1b[2J`|<script>alert(1)</script> from 203.0.113.5 port 1 ssh2",
        b"Nov 20 01:00:00 h sshd[1]: message repeated 999999999999 times: [ Failed password for root from 203.0.113.5 port 1 ssh2]",
        b'1.2.3.4 - - [99/Foo/9999:99:99:99 +9999] "GET /\x1b]0;x\x07`|<b> HTTP/1.1" 500 1',
        b'{"level": {"deep": 1}}', b'{"level": "error", "message": ["x"], "time": 5}', b"{" * 50_000, b"[" * 50_000,
        b"2026-11-22 10:00:00 ERROR " + b"\xe2\x80\xae" + b"x" * 500,
        b"(" * 5000 + b")", b" " * 5000, b"\r\r\r", b"= + = *",
    ]  # fmt: skip
    (logs / "mixed.log").write_bytes(b"\n".join(hostile * 3) + b"\n")
    found = triage(logs.parent)
    report = found["report"]
    assert found["figures"]["lines"] == len(hostile) * 3
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", report)
    assert "<script" not in report
    assert found["block"] == ["203.0.113.5"]
    assert len(json.dumps(found)) < 60_000


def test_report_says_what_was_found_and_how_it_compares(logs: Path) -> None:
    for source in (FEED / "2").iterdir():
        shutil.copy(source, logs)
    earlier = [
        {"value": "lines=50 failed_passwords=4"},
        {"value": "lines=70 failed_passwords=2"},
        {"value": 5},
        "x",
        {"value": "\x00=1"},
    ]
    found = triage(logs.parent, earlier=earlier)
    report = found["report"]
    assert report.startswith("# Log triage, 2026-11-22\n")
    assert "Memory knows 2 earlier sessions" in report
    assert "| new lines | 89 | 50 | +39 | 60 |" in report
    assert "| failed passwords | 10 | 4 | +6 | 3 |" in report
    assert "█" in report
    assert found["chart"].startswith("<svg ")
    assert found["chart"].count("<rect") > 3
    assert re.search(r"7 × `orders: cannot reach the database at .*, attempt #`", report)
    assert found["incidents"][0]["path"] == "incidents/2026-11-22-ssh-10.0.4.17.md"


@pytest.mark.slow
def test_whole_job_on_the_real_logs(samples: Path, tmp_path: Path) -> None:
    """Three sessions of the real task, the real logs arriving in three instalments; figures, report, questions, ledger."""
    workspace = tmp_path / "ws"
    init_workspace(workspace, example="log-triage", machine_logs=[], timezone="UTC")
    shutil.rmtree(workspace / "logs")
    (workspace / "logs").mkdir()
    config = workspace / "perdure.toml"
    config.write_text(config.read_text() + '\n[memory]\nembedding = "none"\n')
    contents = {name: instalments((samples / name).read_bytes(), 3) for name in NAMES}
    for part in range(3):
        for name, pieces in contents.items():
            with (workspace / "logs" / name).open("ab") as log:
                log.write(pieces[part])
        done = perdure(workspace, "session", "run", "log-triage")
        assert done.returncode == 0, done.stdout + done.stderr
    report = next((workspace / "reports").glob("*.md")).read_text()
    truth = failures_by_grep(samples / "auth.log")
    assert f"| new lines | {7121 + 5000 + 61:,} |" in report
    assert f"| failed passwords | {truth.total():,} |" in report
    assert "Memory knows 2 earlier sessions" in report
    assert len(list((workspace / "incidents").iterdir())) >= 10
    questions = json.loads(perdure(workspace, "inbox", "--json").stdout)["questions"]
    digests = [question["digest"] for question in questions]
    assert len(digests) == len(set(digests)) >= 10  # one question for each address, however often it was proposed
    assert (workspace / "blocked.txt").read_text() == ""
    verified = perdure(workspace, "verify")
    assert verified.returncode == 0, verified.stdout


def perdure(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perdure.daemon.cli", "-w", str(workspace), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
