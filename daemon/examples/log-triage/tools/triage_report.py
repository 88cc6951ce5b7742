"""The triage as texts: a Markdown report with a chart of characters, an SVG chart, and incident files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from log_lines import Entry

BAR = 40  # characters of the longest bar
LABELS = {
    "lines": "new lines",
    "failed_passwords": "failed passwords",
    "accepted_logins": "accepted logins",
    "offenders": "brute-force attempts",
    "web_requests": "web requests",
    "web_errors": "web errors",
    "web_probes": "web probes",
    "application_errors": "application errors",
    "packages_changed": "packages changed",
    "system_trouble": "system trouble",
}


def plain(text: object, most: int) -> str:
    """A stranger's text made harmless for Markdown and terminals, and short."""
    kept = "".join(character if character.isprintable() else "?" for character in str(text))
    kept = kept.replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def bars(counts: Mapping[str, int]) -> str:
    """A horizontal bar chart of characters, the largest first."""
    if not counts:
        return "nothing"
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    longest, width = max(counts.values()), max(len(name) for name in counts)
    return "\n".join(
        f"{name:<{width}}  {'█' * max(1, round(count / longest * BAR)):<{BAR}}  {count:,}" for name, count in rows
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def median(values: Sequence[int]) -> float:
    """The middle of the values."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def comparison(figures: Mapping[str, int], earlier: Sequence[Mapping[str, int]]) -> str:
    """The figures of this run beside those of the last one and what is usual."""
    if not earlier:
        return "Memory knows of no earlier session: this is the first.\n"
    rows = []
    for name, label in LABELS.items():
        now, before = figures[name], earlier[0].get(name, 0)
        usual = median([row.get(name, 0) for row in earlier])
        change = "as before" if now == before else f"{now - before:+,}"
        rows.append((label, f"{now:,}", f"{before:,}", change, f"{usual:,.0f}"))
    words = f"Memory knows {len(earlier)} earlier session{'s' if len(earlier) != 1 else ''}.\n\n"
    return words + table(("", "now", "last session", "change", "usual (median)"), rows) + "\n"


def report(
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
    sources: Sequence[Any],
    earlier: Sequence[Mapping[str, int]],
    blocked: Collection[str],
) -> str:
    """The day's report, as of this run."""
    date, figures, day = request["date"], answer["figures"], answer["state"]["day"]
    runs = f"{day['runs']} session{'s' if day['runs'] != 1 else ''}"
    today = [(label, f"{day['figures'].get(name, 0):,}") for name, label in LABELS.items()]
    parts = [
        f"# Log triage, {date}",
        f"As of {request['time']}: {answer['summary']}.",
        f"## Findings of this session\n\n{_findings(answer['findings'])}",
        f"## What the new lines are\n\n```\n{bars(answer['counts'])}\n```\n\n![events over time]({date}.svg)",
        f"## Logs read\n\n{_sources(sources)}",
        *([f"## Brute-force attempts\n\n{_offenders(answer['offenders'], blocked)}"] if answer["offenders"] else []),
        f"## Compared with earlier sessions\n\n{comparison(figures, earlier)}",
        f"## The day so far ({runs})\n\n{table(('', 'today'), today)}",
        f"### All findings of the day\n\n{_findings(day['findings'])}",
    ]
    return "\n\n".join(parts) + "\n"


def _sources(sources: Sequence[Any]) -> str:
    rows = []
    for each in sources:
        remark = plain(each.error, 60) if each.error else "rotated" if each.rotated else ""
        rows.append((f"`{plain(each.name, 80)}`", f"{len(each.entries):,}", remark))
    return table(("log", "new lines", ""), rows) if rows else "No log matches the patterns."


def _offenders(offenders: Sequence[Mapping[str, Any]], blocked: Collection[str]) -> str:
    rows = []
    for each in offenders[:20]:
        counts = (f"{each['failures']:,}", f"{each['total']:,}", each["user_count"])
        rows.append((each["ip"], *counts, each["first"] or "", each["last"] or "", _standing(each, blocked)))
    return table(("address", "failed now", "in all", "user names", "first", "last", ""), rows)


def _standing(offender: Mapping[str, Any], blocked: Collection[str]) -> str:
    if offender["own"]:
        return "own network: never blocked"
    if offender["ip"] in blocked:
        return "blocked"
    return "IPv6: block by hand" if ":" in offender["ip"] else "block proposed"


def _findings(findings: Sequence[Mapping[str, str]]) -> str:
    if not findings:
        return "None."
    return "\n".join(f"- **{each['severity']}**, {each['kind']}: {each['text']}" for each in findings)


def incident(offender: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """The incident file about one address."""
    users = ", ".join(f"`{user}`" for user in offender["users"])
    others = offender["user_count"] - len(offender["users"])
    more = f" and {others} more" if others > 0 else ""
    accepted = offender["accepted"]
    login = "No login from this address succeeded."
    if accepted:
        login = f"**There was a login as `{accepted}` from this address afterwards.**"
    if offender["own"]:
        proposed = "It is an address of our own networks: it is never blocked. Look at the machine behind it."
    elif ":" in offender["ip"]:
        proposed = "It is an IPv6 address: block it by hand."
    else:
        proposed = "Blocking it has been proposed; `perdure inbox` shows the question."
    return (
        f"# SSH brute-force attempt from {offender['ip']}\n\n"
        f"Filed {request['date']} {request['time']}.\n\n"
        f"- {offender['failures']:,} failed passwords since the last session, {offender['total']:,} in all\n"
        f"- user names tried: {users}{more}\n"
        f"- from {offender['first'] or 'an unknown time'} to {offender['last'] or 'an unknown time'}\n"
        f"- {login}\n- {proposed}\n"
    )


def chart(entries: Sequence[Entry]) -> str:
    """An SVG of events over the period that they span, in 24 columns; failed passwords stand out."""
    times = [entry.at.timestamp() for entry in entries if entry.at is not None]
    start, end = (min(times), max(times)) if times else (0.0, 0.0)
    width = max((end - start) / 24, 1e-9)
    failed: Counter[int] = Counter()
    others: Counter[int] = Counter()
    for entry in entries:
        if entry.at is not None:
            column = min(int((entry.at.timestamp() - start) / width), 23)
            (failed if entry.kind == "ssh failed password" else others)[column] += entry.times
    highest = max((failed[column] + others[column] for column in range(24)), default=0) or 1
    shapes = []
    for column in range(24):
        x, base = 40 + column * 24, 180.0
        for counts, colour in ((others, "#8aa4c8"), (failed, "#c0392b")):
            height = counts[column] / highest * 150
            if height:
                base -= height
                shapes.append(f'<rect x="{x}" y="{base:.1f}" width="20" height="{height:.1f}" fill="{colour}"/>')
    at = [entry.at for entry in entries if entry.at is not None]
    first, last = (min(at).strftime("%Y-%m-%d %H:%M"), max(at).strftime("%Y-%m-%d %H:%M")) if at else ("no events", "")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="220" font-family="sans-serif" font-size="12">'
        '<rect width="640" height="220" fill="white"/>'
        f'<text x="40" y="18">Events over time: failed passwords red, all else blue; highest column {highest:,}</text>'
        f"{''.join(shapes)}"
        '<line x1="38" y1="180" x2="620" y2="180" stroke="#444"/>'
        f'<text x="40" y="200">{escape(first)}</text><text x="616" y="200" text-anchor="end">{escape(last)}</text></svg>\n'
    )
