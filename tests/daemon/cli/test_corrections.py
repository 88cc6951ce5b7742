"""What people put right: standing instructions, facts, forgotten records, erased payloads; all through the ledger."""

from __future__ import annotations

import os

import pytest

from perdure.daemon.quoting import quoting
from perdure.state import events as e
from perdure.state.reading import LedgerReader


def test_a_pin_is_listed_with_who_gave_it_and_can_be_taken_back(parked, story):
    pinned = parked.json("memory", "pin", "Never report 10.0.0.1\x1b[2J", "--task", story.TASK)
    (listed,) = parked.json("memory", "pins")["pins"]
    assert listed["pin"] == pinned["pin"]
    assert listed["task"] == story.TASK
    page = parked.text("memory", "pins")
    assert f"uid {os.getuid()}" in page
    assert "\x1b" not in page
    assert parked.call("memory", "unpin", pinned["pin"][-6:]).exit_code == 0
    assert parked.json("memory", "pins")["pins"] == []


def test_an_empty_or_endless_pin_is_refused(parked):
    for text in ("  ", "x" * 4_001):
        result = parked.call("memory", "pin", text)
        assert result.exit_code == 1
        assert "costs tokens in every session" in result.stderr


def test_unpinning_what_is_not_pinned_says_so(parked):
    result = parked.call("memory", "unpin", "nosuch")
    assert result.exit_code == 1
    assert "memory pins" in result.stderr


def test_corrections_and_forgetting_are_events_with_the_person(parked):
    seq = parked.json("memory", "correct", "web-1", "owner", "Ada")["seq"]
    event = parked.json("ledger", "event", str(seq))
    assert event["payload"] == {"subject": "web-1", "attribute": "owner", "value": "Ada"}
    assert event["body"]["uid"] == os.getuid()
    forgotten = parked.json("memory", "forget", "r11")
    assert parked.json("ledger", "event", str(forgotten["seq"]))["body"]["record"] == "r11"


def test_erasing_takes_the_payload_and_leaves_a_chain_that_verifies(parked):
    write = parked.json("ledger", "show")["steps"][1]
    seq = write["seqs"][0]
    assert parked.call("ledger", "erase", str(seq)).exit_code == 2  # no reason, no erasure
    assert parked.json("ledger", "erase", str(seq), "--reason", "a person's name", "--yes")["erased"] == [seq]
    erased = parked.json("ledger", "event", str(seq))
    assert (erased["payload"], erased["erased"]) == (None, True)
    assert "Log triage" not in parked.text("ledger", "show", "--full")
    assert parked.call("verify").exit_code == 0


def test_erasing_names_every_event_that_still_quotes_what_was_erased(parked, story):
    """A context and a request are events of their own, and keep what they quoted."""
    read = next(step for step in parked.json("ledger", "show")["steps"] if step["tool"] == "list_files")
    ended = read["seqs"][-1]
    common = {"session": story.FIRST, "task": story.TASK}

    def context(text):
        return e.ContextAssembled(
            **common, tokens=9, budget=90, factor=1.0, digest="sha256:c", payload={"text": text, "manifest": []}
        )

    def request(call, text):
        return e.ModelRequested(
            **common, call=call, model="m", purpose="propose", prompt_tokens=1, completion_cap=1, reserved_tokens=2,
            reserved_usd=0.0, payload={"messages": [{"role": "user", "content": text}]},
        )  # fmt: skip

    line = f'- [r{ended} 09:00 tool, untrusted] list_files(pattern="inbox/*.log") succeeded: {{"files": ["inbox/auth.log", "in'
    before = parked.json("verify")["events"]
    parked.write(
        [(context(f"# Recalled\n{line} …"), request("C1", "Read each new log and report."), request("C2", line))]
    )
    listed = [before + 1, before + 3]
    refused = parked.call("ledger", "erase", str(ended), "--reason", "a name", input="n\n")
    assert [f"also stands in #{seq} " in refused.stdout for seq in listed] == [True, True]
    assert "also stands in #" + str(before + 2) not in refused.stdout
    stash = parked.state / "undo" / parked.json("ledger", "event", str(ended))["body"]["action"]
    stash.mkdir(parents=True)
    (stash / "manifest.json").write_text("[]")
    page = parked.text("ledger", "erase", str(ended), "--reason", "a name", "--yes")
    assert "it cannot be undone any more" in page
    assert not stash.exists()
    assert [f"still stands in #{seq} " in page for seq in listed] == [True, True]
    assert f"ledger erase {listed[0]} {listed[1]}" in " ".join(page.split())
    assert parked.json("ledger", "erase", *map(str, listed), "--reason", "a name", "--yes")["quoted_by"] == []


@pytest.mark.parametrize(
    ("secret", "quoted"),
    [
        ("AKIA5XQ9ZL2M", "the key is AKIA5XQ9ZL2M."),
        ("AKIA5XQ9ZL2M", "key:AKIA5XQ9ZL2M"),
        ("AKIA5XQ9ZL2M", "user@akia5xq9zl2m/x"),
        ("AKIA5XQ9ZL2M", {"result": {"paths": ["AKIA5XQ9ZL2M"]}}),
        ("AKIA5XQ9ZL2M", {"result": {"AKIA5XQ9ZL2M": 1}}),
        ({"result": {"paths": ["AKIA5XQ9ZL2M"]}}, "AKIA5XQ9ZL2M"),
        ("Frau Müller, Köln", r'{"name": "Frau M\u00fcller, K\u00f6ln"}'),
        ("合同编号已经作废了吧", "记录：合同编号已经作废了吧，谢谢"),
        ("the salary list of the whole department", '"the salary list of the whole," it said'),
        ("AKIA5XQ9ZL2M", None),
        ("hunter2", None),
    ],
)
def test_a_quotation_is_found_whatever_stands_around_it(parked, story, secret, quoted):
    def context(said):
        payload = {"text": said} if isinstance(said, str) else said
        common = {"session": story.FIRST, "task": story.TASK, "tokens": 9, "budget": 90, "factor": 1.0}
        return e.ContextAssembled(**common, digest="sha256:c", payload=payload)

    others = "nothing of the kind; AKIA5XQ9ZL2MN is another, hunter2 too short"
    parked.write([(context(secret), context(others), context(quoted or "nothing"))])
    with LedgerReader.open(parked.state / "ledger.db") as reader:
        head = reader.head().seq
        found = [event.seq for event in quoting(reader, [head - 2])]
    assert found == ([head] if quoted else [])


def test_an_open_action_cannot_be_erased(parked):
    block = parked.json("ledger", "show")["steps"][2]
    result = parked.call("ledger", "erase", str(block["seqs"][0]), "--reason", "why not", "--yes")
    assert result.exit_code == 1
    assert parked.json("ledger", "show")["steps"][2]["args"] == {"ip": "203.0.113.9"}


def test_what_was_undone_is_told_file_by_file():
    from perdure.daemon.cli.steering import undone_words

    answer = {"action": "X", "result": {"restored": [{"path": "out/v.txt", "is": "as before"}]}, "seconds": 0.1}
    assert undone_words(answer) == "out/v.txt is as before"
    assert "seconds" in undone_words({"seconds": 0.1})
