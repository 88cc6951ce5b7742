"""Words that say nothing of who chose them: everybody who looks after machines and writes reports about it uses them anyway.

One of them alone, inside a longer value, is chance when it stands in a text as well. No name of a place is among them: no host, no
user, no product, nothing that a file is asked for by."""

from __future__ import annotations

from perdure.policies.operands import NO_FILES, TAKES

# Of at least six letters: shorter ones are no telling part of anything.
ORDINARY = frozenset(
    """report reports reporting summary summaries status overview analysis result results output outputs finding findings incident
    incidents events notice notices message messages warning warnings errors failed failure failures failing problem problems
    health healthy monitor monitoring metric metrics statistics number numbers counts average maximum minimum percent archive
    history latest current previous recent yesterday tomorrow morning evening midnight monday tuesday wednesday thursday friday
    saturday sunday january february august september october november december hourly weekly monthly yearly minute minutes
    second seconds server servers service services system systems machine machines network networks memory storage process
    processes processor running started starting stopped stopping finished completed success successful succeeded access update
    updates updated upgrade security review reviews triage checked checks checking document documents details general
    information active inactive enabled disabled change changes changed created removed deleted attempt attempts request
    requests response responses connection connections session sessions version versions package packages kernel timeout closed
    opened accepted refused denied invalid unknown critical journal normal available because before should please another
    without within during
    """.split()  # noqa: SIM905 (one word a line would be a page)
)
# Programs of every day, of which the arguments say what they do. Their names alone choose nothing.
EVERYDAY_PROGRAMS = (
    NO_FILES
    | TAKES.keys()
    | frozenset(
        """journalctl systemctl dmesg lsblk lscpu lsof ss ip find who last docker podman kubectl git dpkg apt timedatectl loginctl
        findmnt""".split()  # noqa: SIM905 (one word a line would be a page)
    )
)
