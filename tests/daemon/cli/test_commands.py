"""What commands print for programs, write to files, and exit with."""

from __future__ import annotations

import csv
import io
import json
import sqlite3

import pytest
import yaml

READ_COMMANDS = {
    "status": ("status",),
    "inbox": ("inbox",),
    "question": ("inbox", "show", "Q0EST1"),
    "session": ("ledger", "show"),
    "context": ("context", "show"),
    "sessions": ("session", "list"),
    "schedule": ("schedule", "show"),
    "grants": ("grants", "list"),
    "pins": ("memory", "pins"),
    "verification": ("verify",),
}


@pytest.mark.parametrize("kind", READ_COMMANDS)
def test_json_names_its_format_and_holds_no_private_field(parked, kind):
    value = parked.json(*READ_COMMANDS[kind])
    assert value["format"] == f"perdure/{kind}/1"

    def keys(held):
        if isinstance(held, dict):
            yield from held
            for inner in held.values():
                yield from keys(inner)
        elif isinstance(held, list):
            for inner in held:
                yield from keys(inner)

    assert not [key for key in keys(value) if key.startswith("_")]


def test_json_may_be_asked_for_before_the_command(parked):
    assert json.loads(parked.call("--json", "status").stdout)["format"] == "perdure/status/1"


def test_session_account_has_the_documented_shape(answered):
    account = answered.json("ledger", "show", "1F1RST")
    assert account["status"] == "parked"
    assert account["slot"]["kind"] == "scheduled"
    assert account["used"] == {"steps": 3, "tokens": 0, "cost_usd": 0.0}
    assert [step["tool"] for step in account["steps"]] == ["list_files", "write_file", "block_ip"]
    write, block = account["steps"][1], account["steps"][2]
    assert write["provenance"] == {"path": ["config"], "text": ["tool:offenders"]}
    assert write["decisions"][0]["rules"][0] == {
        "name": "reports",
        "file": "policies/main.yaml",
        "line": 4,
        "decide": "auto",
    }
    assert write["attempts"][0]["status"] == "succeeded"
    assert write["attempts"][0]["undo"] is True
    assert block["escalation"]["answer"]["uid"] == 0
    assert block["escalation"]["answer"]["note"] == "known attacker"
    assert block["attempts"][0]["approval"] == block["escalation"]["id"]
    assert account["postconditions"][0]["passed"] is True
    assert account["notices"][0]["status"] == "delivered"


def test_an_unknown_outcome_settled_later_keeps_that_it_was_unknown(empty, story):
    from perdure.state import events as e

    commits = story.until_the_question()
    lost = story.ended(story.WRITE, "write_file", None, status="unknown", error="cut off")
    settled = story.ended(story.WRITE, "write_file", {"probe": True}, settles=True)
    place = [index for index, drafts in enumerate(commits) if isinstance(drafts[0], e.ActionEnded)][1]
    commits[place : place + 2] = [(lost,), (settled,)]
    empty.write(commits)
    attempt = empty.json("ledger", "show")["steps"][1]["attempts"][0]
    assert (attempt["status"], attempt["was_unknown"], attempt["settled"]) == ("succeeded", True, True)
    assert "had been unknown, was settled later" in empty.text("ledger", "show")


def test_export_holds_every_event_in_order(parked, tmp_path):
    rows = [json.loads(row) for row in parked.text("ledger", "export").splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, parked.json("status")["head"] + 1))
    proposed = next(row for row in rows if row["type"] == "action.proposed")
    assert proposed["payload"]["args"] == {"pattern": "inbox/*.log"}
    bare = [json.loads(row) for row in parked.text("ledger", "export", "--no-payloads").splitlines()]
    assert all(
        "payload" not in row and row["payload_hash"] == full["payload_hash"]
        for row, full in zip(bare, rows, strict=True)
    )
    target = tmp_path / "events.csv"
    assert parked.call("ledger", "export", "--format", "csv", "-o", str(target)).exit_code == 0
    table = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["seq"] for row in table] == [str(row["seq"]) for row in rows]
    again = parked.call("ledger", "export", "-o", str(target))
    assert again.exit_code == 1
    assert "nothing is overwritten" in again.stderr


def test_export_of_one_session_and_of_late_events_only(answered, story):
    session = [json.loads(row) for row in answered.text("ledger", "export", "--session", "SEC0ND").splitlines()]
    assert {row["body"]["session"] for row in session} == {story.SECOND_SESSION}
    assert answered.text("ledger", "export", "--since", "1s") == ""
    assert answered.call("ledger", "export", "--since", "soon").exit_code == 2


def test_csv_has_no_cell_that_a_spreadsheet_would_run(empty, story):
    from dataclasses import replace

    commits = [
        tuple(replace(d, task="=cmd|calc") if hasattr(d, "task") and d.type == "task.loaded" else d for d in c)
        for c in story.until_the_question()[:2]
    ]
    empty.write(commits)
    table = list(csv.DictReader(io.StringIO(empty.text("ledger", "export", "--format", "csv"))))
    assert "'=cmd|calc" in {row["task"] for row in table}


def test_ids_may_be_short_and_in_any_case(parked):
    assert parked.text("ledger", "show", "1f1rst") == parked.text("ledger", "show", "01KANCTRC0AAAAAAAAAA1F1RST")
    ambiguous = parked.call("inbox", "show", "")
    assert ambiguous.exit_code == 1


def test_verify_proves_a_whole_ledger_and_names_a_forged_event(parked):
    assert "✓ OK" in parked.text("verify")
    with sqlite3.connect(parked.state / "ledger.db") as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE events SET body = replace(body, 'list_files', 'read_files') WHERE seq = 8")
    db.close()
    result = parked.call("verify", "--json")
    assert result.exit_code == 1
    findings = json.loads(result.stdout)["findings"]
    assert any(finding["seq"] == 8 for finding in findings)
    assert "at #8" in parked.text("verify", code=1)


def test_verify_names_a_firing_that_has_no_slot(parked, story):
    from perdure.state.events import DaemonStopped

    parked.at = story.START + 2 * story.HOUR
    parked.write([(DaemonStopped(fence=1, reason="SIGTERM"),)])
    text = parked.text("verify", code=1)
    assert "slot-gap" in text


def test_verify_leaves_firings_during_the_stop_to_the_next_start(parked, story):
    from perdure.state.events import DaemonStopped

    assert "1970" not in parked.text("verify")
    parked.at = story.START + story.HOUR + 20_000_000  # due 20 s ago, while the last step was still running
    parked.write([(DaemonStopped(fence=1, reason="SIGTERM"),)])
    assert "✓ slots" in parked.text("verify")


def test_verify_where_no_daemon_has_run_promises_nothing(parked):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perdure.daemon.cli.verification.accounted_until", lambda _: 0)
        text = parked.text("verify")
    assert "no daemon has run here yet" in text
    assert "1970" not in text


def test_verify_without_a_ledger_says_so(empty):
    result = empty.call("verify")
    assert result.exit_code == 1
    assert "perdure restore" in result.stderr


def test_backup_and_restore_bring_a_ledger_back_in_a_new_epoch(parked, tmp_path, story):
    copy = tmp_path / "copy.db"
    assert parked.json("backup", str(copy))["head"]["seq"] == parked.json("status")["head"]
    assert copy.with_name("copy.db.anchor").exists()
    assert parked.call("backup", str(copy)).exit_code == 1  # nothing is overwritten
    parked.write(story.the_answer_and_after())
    assert parked.json("restore", str(copy), "--yes")["epoch"] == 2
    assert "No session" not in parked.text("session", "list")
    assert "SEC0ND" not in parked.text("session", "list")
    assert parked.json("verify")["epoch"] == 2


def test_what_is_new_goes_into_a_directory_that_verifies_and_comes_back(parked, tmp_path, story):
    directory = str(tmp_path / "segments")
    first = parked.json("backup", "--to", directory)
    assert first["head"]["seq"] == parked.json("status")["head"]
    assert "nothing is new" in parked.text("backup", "--to", directory)
    parked.write(story.the_answer_and_after())
    assert parked.json("backup", "--to", directory)["segments"] == 1
    assert "✓ OK" in parked.text("verify", directory)
    assert parked.json("restore", directory, "--yes")["epoch"] == 2
    assert parked.json("verify")["epoch"] == 2
    next((tmp_path / "segments").glob("*.gz")).unlink()
    report = parked.call("verify", directory)
    assert report.exit_code == 1
    assert "segment-missing" in report.stdout


@pytest.mark.parametrize("arguments", [(), ("copy.db", "--to", "segments"), ("copy.db", "--reseal")])
def test_a_backup_goes_to_one_place(parked, arguments):
    assert parked.call("backup", *arguments).exit_code == 2


def test_restore_is_refused_while_somebody_owns_the_workspace(parked, tmp_path):
    import os

    from perdure.state.ownership import Owner

    copy = tmp_path / "copy.db"
    parked.call("backup", str(copy))
    with Owner.acquire(parked.state):
        result = parked.call("restore", str(copy), "--yes")
    assert result.exit_code == 1
    assert str(os.getpid()) in result.stderr


def test_rebuild_makes_the_tables_anew(parked):
    with sqlite3.connect(parked.state / "ledger.db") as db:
        db.execute("DELETE FROM escalations")
    db.close()
    assert parked.call("verify").exit_code == 1
    assert parked.json("ledger", "rebuild")["events"] == parked.json("status")["head"]
    assert "Q0EST1" in parked.text("inbox")
    assert parked.call("verify").exit_code == 0


def test_check_lists_problems_and_exits_2(empty):
    (empty.root / "perdure.toml").write_text("nonsense = 1\n")
    result = empty.call("check")
    assert result.exit_code == 2
    assert "nonsense" in result.stderr
    assert "perdure.toml:1:" in result.stderr


def test_status_works_while_the_configuration_is_broken(parked):
    (parked.root / "perdure.toml").write_text("this is = not toml\n")
    assert "Q0EST1" in parked.text("status")


@pytest.fixture
def fresh(tmp_path, place_at):
    """A workspace as `perdure init` makes it."""
    place = place_at(tmp_path / "fresh")
    (place.root / "perdure.toml").unlink()
    made = place.call("init", str(place.root))
    assert made.exit_code == 0, made.output
    return place


def test_init_makes_a_workspace_that_checks_and_overwrites_nothing(fresh):
    assert fresh.json("check")["ok"] is True
    (fresh.root / "perdure.toml").write_text("# mine\n")
    again = fresh.call("init", str(fresh.root))
    assert "left as it is" in again.stdout
    assert "session run inbox-report --dry-run" in again.stdout
    assert (fresh.root / "perdure.toml").read_text() == "# mine\n"


def test_tools_say_effect_trust_and_rules(fresh):
    page = fresh.text("tools")
    assert "run_command" in page
    assert "none: asks" in page
    one = fresh.json("tools", "write_file")["tools"][0]
    assert one["effect"] == "idempotent"
    assert one["rules"]
    assert fresh.call("tools", "nosuch").exit_code == 1


def test_policy_explain_names_every_rule_and_why(fresh):
    allowed = fresh.json("policy", "explain", "write_file", "--args", '{"path": "reports/a.md", "text": "x"}')
    assert allowed["decision"] == "auto"
    assert allowed["paths"]["path"] == [str(fresh.root / "reports" / "a.md")]
    assert {rule["verdict"] for rule in allowed["rules"]} >= {"matched", "not matched"}
    asked = fresh.json("policy", "explain", "run_command", "--args", '{"command": ["true"]}')
    assert asked["decision"] == "escalate"
    bad = fresh.call("policy", "explain", "write_file", "--args", "not json")
    assert bad.exit_code == 1
    assert "not JSON" in bad.stderr


def test_policy_check_counts_rules_and_tests(fresh):
    value = fresh.json("policy", "check")
    assert value["ok"] is True
    assert value["rules"] > 0
    assert value["tests"] > 0


def test_policy_replay_names_what_an_edit_would_loosen(parked):
    (parked.root / "policies").mkdir()
    policy = parked.root / "policies" / "main.yaml"
    policy.write_text("version: 1\nrules:\n  - {name: everything, tools: ['*'], decide: auto}\n")
    (parked.root / "perdure.toml").write_text(
        'timezone = "UTC"\n[tools.block_ip]\ncommand = ["/bin/true", "${args.ip}"]\nargs = {ip = {type = "string"}}\n'
    )
    result = parked.call("policy", "replay", "--json")
    assert result.exit_code == 1, result.output
    value = json.loads(result.stdout)
    assert value["decisions"] == 3
    assert value["loosened"] == 1
    (flip,) = value["flips"]
    assert (flip["tool"], flip["was"], flip["would_be"], flip["count"]) == ("block_ip", "escalate", "auto", 1)
    assert "1 of them looser" in parked.text("policy", "replay", code=1)


def test_the_schema_of_policy_files_is_printed_for_editors_and_accepts_the_shipped_library():
    from click.testing import CliRunner
    from jsonschema import Draft202012Validator

    from perdure.daemon.cli.app import perdure
    from perdure.policies.loading import library_files

    result = CliRunner().invoke(perdure, ["policy", "schema"])
    assert result.exit_code == 0
    validator = Draft202012Validator(json.loads(result.stdout))
    for path in library_files().values():
        assert not list(validator.iter_errors(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("command", [["verify"], ["status"], ["ledger", "tail"], ["doctor"]])
def test_a_ledger_that_is_gone_is_not_taken_for_one_that_never_was(parked, command):
    for path in parked.state.glob("ledger.db*"):
        path.unlink()
    result = parked.call(*command)
    assert result.exit_code == 1
    assert "the file is gone, but its anchor is there" in " ".join((result.stdout + result.stderr).split())
    assert "perdure restore" in result.stdout + result.stderr
