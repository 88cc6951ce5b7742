"""Where the attempts of actions are found: through the sessions in which they ran.

An index of the open intents, or of the times of all, would be changed by every intent and every outcome: a page more to write,
and to sync, each time. A session cannot close over an open intent, and knows when its last one was; so the few sessions that
are open or recent lead to them.
"""

from __future__ import annotations

from typing import Final

TRIED: Final = "(a.status IS NOT NULL OR a.attempt > 1)"  # an unknown attempt that is being repeated was tried before
SUCCEEDED: Final = "COALESCE(SUM(a.status IS 'succeeded' AND a.verified IS NOT 0), 0)"


def attempts(columns: str, sessions: str, actions: str) -> str:
    """A query for the actions `a` whose last attempt ran in a session `s`, by what is asked of both. Most run in the session
    that proposed them; a partial index holds the others."""
    return (
        f"SELECT {columns} FROM sessions s CROSS JOIN actions a ON a.session = s.session AND a.attempt_session = a.session"  # noqa: S608 - fixed words
        f" WHERE {sessions} AND {actions} UNION ALL SELECT {columns} FROM sessions s CROSS JOIN actions a"
        f" ON a.attempt_session = s.session AND a.attempt_session <> a.session WHERE {sessions} AND {actions}"
    )
