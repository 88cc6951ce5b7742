"""Searches by session, task and action find what reading everything finds, within blocks and across them."""

from __future__ import annotations

import random

import pytest

from perdure.state import events as e
from perdure.state import places
from perdure.state.backup import rebuild_projections
from perdure.state.ledger import Ledger
from perdure.state.verification import verify

CHANCE = random.Random(3)


@pytest.fixture
def long(tmp_path):
    """A ledger of several stretches and a bit more, whose events speak of few tasks, more sessions and many actions."""
    with Ledger.create(tmp_path / "ledger.db", now=lambda: 1, workspace="w") as ledger:
        for _ in range(60):
            ledger.commit(
                *(
                    e.StepRejected(
                        session=f"S{CHANCE.randrange(20)}", task=f"t{CHANCE.randrange(3)}", step=1, reason="r"
                    )
                    if CHANCE.random() < 0.7
                    else e.NotificationSent(channel="log", about="x", status="delivered")
                    for _ in range(CHANCE.randrange(1, 30))
                )
            )
        assert ledger.head.seq > 2 * places.STRETCH_EVENTS
        assert ledger.head.seq % places.STRETCH_EVENTS
        yield ledger


def test_every_search_finds_what_a_reading_of_everything_finds(long):
    everything = list(long.reader.events())
    for _ in range(300):
        after, until = CHANCE.randrange(len(everything)), CHANCE.choice([None, CHANCE.randrange(len(everything) + 5)])
        limit, newest_first = CHANCE.choice([None, 1, 3, 600]), CHANCE.random() < 0.5
        types = CHANCE.choice([None, ["step.rejected"], ["step.rejected", "notification.sent"], ["alarm.raised"]])
        wanted = {"session": f"S{CHANCE.randrange(21)}", "task": f"t{CHANCE.randrange(4)}"}
        wanted = {name: value for name, value in wanted.items() if CHANCE.random() < 0.6}
        expected = [
            event
            for event in everything
            if after < event.seq
            and (until is None or event.seq <= until)
            and (types is None or event.type in types)
            and all(event.body.get(name) == value for name, value in wanted.items())
        ]
        expected = (list(reversed(expected)) if newest_first else expected)[:limit]
        found = long.reader.events(
            after=after, until=until, types=types, newest_first=newest_first, limit=limit, **wanted
        )
        assert list(found) == expected


def test_a_place_that_is_gone_or_made_up_is_found_and_made_anew(long):
    path = long.path
    long.close()
    with Ledger.open(path, now=lambda: 1, fence=1) as ledger:
        ledger.reader.rows("DELETE FROM places WHERE key = 'session/S1' AND block = 1")
        ledger.reader.rows("INSERT INTO places (key, block) VALUES ('session/nobody', 2)")
    report = verify(path.parent)
    assert [(finding.kind, finding.seq) for finding in report.findings] == [
        ("place-differs", 65),
        ("place-differs", 129),
    ]
    rebuild_projections(path.parent)
    assert verify(path.parent).findings == []
