"""Reads what is new in the logs since the last time, counts and classifies it, and prints findings and a report as JSON.

Standard input: one JSON object.
  sources       patterns of log files, relative to the working directory or absolute; "journal" asks journalctl
  state         what the last run printed as `state` (offsets, figures of the day, addresses seen), or nothing
  earlier       facts about earlier runs, newest first: objects whose `value` reads "lines=58 failed_passwords=24 …"
  date, time    of this run, for the report
  threshold     failed passwords from one address that make a brute-force attempt (5)
  blocked       a file with one blocked address a line, whose addresses are not proposed again
Standard output: one JSON object with state, counts, figures, figures_text, offenders, block, findings, incidents, summary,
report (Markdown) and chart (SVG). Only the standard library is used, and only the files named are read.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from log_lines import Entry, address_of
from log_reading import Source, read_sources
from triage_report import chart, incident, plain, report

ADDRESSES_MAX = 500  # remembered from run to run
FINDINGS_OF_A_KIND_MAX = 10
BLOCK_MAX = 10  # proposed in one run
OFFENDER_SECONDS = 86_400  # how long an offender is proposed after it was last seen
DENY_LIST_CHARACTERS_MAX = 10_000_000
DAY_FINDINGS_MAX = 60

# What counts as trouble, and how serious it is.
TROUBLE = {
    "kernel trouble": "high",
    "service failure": "medium",
    "package error": "medium",
    "web server error": "medium",
    "application error": "medium",
    "sudo failure": "medium",
}

# The defender's own networks: never proposed for blocking. (Documentation networks stand for strangers in examples.)
OWN_NETWORKS = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "0.0.0.0/8",
                 "224.0.0.0/3", "::1/128", "fe80::/10", "fc00::/7", "ff00::/8")
]  # fmt: skip


def is_own(address: str) -> bool:
    """Whether the address is of the defender's own networks."""
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in OWN_NETWORKS if network.version == parsed.version)


def figures_of(entries: Sequence[Entry]) -> dict[str, int]:
    """The few numbers that are compared from run to run."""
    kinds: Counter[str] = Counter()
    for entry in entries:
        kinds[entry.kind] += entry.times
    return {
        "lines": len(entries),
        "failed_passwords": kinds["ssh failed password"],
        "accepted_logins": kinds["ssh accepted"],
        "web_requests": sum(1 for entry in entries if entry.path is not None),
        "web_errors": kinds["web client error"] + kinds["web server error"],
        "web_probes": kinds["web probe"],
        "application_errors": kinds["application error"],
        "packages_changed": kinds["package installed"] + kinds["package upgraded"] + kinds["package removed"],
        "system_trouble": kinds["kernel trouble"] + kinds["service failure"] + kinds["package error"],
    }


def offenders_in(
    entries: Sequence[Entry], before: Mapping[str, int], threshold: int
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Addresses that reached the threshold, with new failures in these entries, the most failures first."""
    failures: Counter[str] = Counter()
    names: dict[str, Counter[str]] = {}
    times: dict[str, list[datetime]] = {}
    accepted: dict[str, str] = {}
    for entry in entries:
        if entry.address is None:
            continue
        if entry.kind == "ssh failed password":
            failures[entry.address] += entry.times
            names.setdefault(entry.address, Counter())[entry.user] += entry.times
            if entry.at:
                times.setdefault(entry.address, []).append(entry.at)
        elif entry.kind == "ssh accepted" and failures[entry.address] + before.get(entry.address, 0) >= threshold:
            accepted[entry.address] = entry.user
    found = []
    for address, count in failures.most_common():
        total = count + before.get(address, 0)
        if total < threshold:
            continue
        found.append({
            "ip": address,
            "failures": count,
            "total": total,
            "users": [plain(user, 32) or "(empty)" for user, _ in names[address].most_common(5)],
            "user_count": len(names[address]),
            "first": min(times[address]).isoformat() if address in times else None,
            "last": max(times[address]).isoformat() if address in times else None,
            "own": is_own(address),
            "accepted": plain(accepted[address], 32) if address in accepted else None,
        })  # fmt: skip
    return found, failures


def findings_of(
    entries: Sequence[Entry], offenders: Sequence[Mapping[str, Any]], figures: Mapping[str, int]
) -> list[dict[str, str]]:
    """What a person should know, the most serious first."""
    found: list[dict[str, str]] = []

    def add(severity: str, kind: str, text: str) -> None:
        found.append({"severity": severity, "kind": kind, "text": text})

    for each in [each for each in offenders if each["accepted"] is not None][:FINDINGS_OF_A_KIND_MAX]:
        failed = counted(each["total"], "failed password")
        add(
            "critical",
            "login after brute force",
            f"{each['ip']} logged in as `{each['accepted']}` after {failed}: look here first",
        )
    for each in offenders[:FINDINGS_OF_A_KIND_MAX]:
        names = f"{counted(each['user_count'], 'user name')} ({', '.join(f'`{user}`' for user in each['users'])})"
        add("high", "brute-force attempt", f"{each['ip']}: {counted(each['failures'], 'failed password')} for {names}")
    if len(offenders) > FINDINGS_OF_A_KIND_MAX:
        more = len(offenders) - FINDINGS_OF_A_KIND_MAX
        add("high", "brute-force attempts", f"{more} more, see the table below")
    probes: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.kind == "web probe":
            probes.setdefault(entry.address or "an unknown address", []).append(entry)
    for address, probing in sorted(probes.items(), key=lambda item: -len(item[1]))[:5]:
        text = (
            f"{address}: {counted(len(probing), 'request')} looking for holes, such as `{plain(probing[0].path, 60)}`"
        )
        add("medium", "web probe", text)
    for kind, severity in TROUBLE.items():
        details = Counter(plain(shape(entry.detail), 90) for entry in entries if entry.kind == kind)
        for detail, count in details.most_common(3):
            add(severity, kind, f"{count} × `{detail}`")
    if figures["packages_changed"]:
        add("low", "packages", f"{counted(figures['packages_changed'], 'package')} installed, upgraded or removed")
    changes = [entry for entry in entries if entry.kind == "account change"]
    if changes:
        add("low", "accounts", f"{len(changes)} × such as `{plain(changes[0].detail, 80)}`")
    order = ("critical", "high", "medium", "low")
    return sorted(found, key=lambda each: order.index(each["severity"]))[:30]


def shape(detail: str) -> str:
    """A message with its numbers taken out, so that messages that differ only there count as one."""
    return (
        "".join("#" if character.isdigit() else character for character in detail).replace("##", "#").replace("##", "#")
    )


def merged_day(
    day: Mapping[str, Any],
    date: str,
    figures: Mapping[str, int],
    findings: Sequence[Mapping[str, str]],
    offenders: Sequence[str],
) -> dict[str, Any]:
    """The figures and findings of the day so far, this run included."""
    if day.get("date") != date:
        day = {"date": date, "runs": 0, "figures": {}, "findings": [], "offenders": []}
    known = {(each["kind"], each["text"]) for each in day["findings"]}
    added = [each for each in findings if (each["kind"], each["text"]) not in known]
    addresses = list(dict.fromkeys([*day["offenders"], *offenders]))[:ADDRESSES_MAX]
    sums = {name: day["figures"].get(name, 0) + value for name, value in figures.items()}
    return {
        "date": date,
        "runs": day["runs"] + 1,
        "figures": {**sums, "offenders": len(addresses)},
        "findings": [*day["findings"], *added][-DAY_FINDINGS_MAX:],
        "offenders": addresses,
    }


def top(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """The largest counts."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])


def blocked_addresses(path: Path) -> set[str]:
    """The addresses in the deny list."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return {address for address in map(address_of, file.read(DENY_LIST_CHARACTERS_MAX).split()) if address}
    except OSError:
        return set()


def earlier_figures(facts: object) -> list[dict[str, int]]:
    """The figures of earlier runs, newest first, out of what memory says of them."""
    rows = []
    for fact in facts if isinstance(facts, list) else []:
        value = fact.get("value") if isinstance(fact, dict) else None
        pairs = [pair.partition("=") for pair in value.split()] if isinstance(value, str) else []
        row = {
            name: int(number) for name, _, number in pairs if number.isascii() and number.isdigit() and len(number) < 16
        }
        if "lines" in row:
            rows.append(row)
    return rows[:50]


def triage(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The answer to one request."""
    state = request.get("state") or {}
    threshold = int(request.get("threshold") or 5)
    sources, places = read_sources(request["sources"], state.get("places") or {}, now)
    entries = [entry for source in sources for entry in source.entries]
    figures = figures_of(entries)
    before = state.get("failures") or {}
    offenders, failures = offenders_in(entries, before, threshold)
    figures["offenders"] = len(offenders)
    findings = findings_of(entries, offenders, figures)
    seen = {ip: at for ip, at in (state.get("offenders") or {}).items() if now.timestamp() - at < OFFENDER_SECONDS}
    seen.update({each["ip"]: int(now.timestamp()) for each in offenders})
    blocked = blocked_addresses(Path(request.get("blocked") or "blocked.txt"))
    totals = {ip: before.get(ip, 0) + failures.get(ip, 0) for ip in {*before, *failures}}
    candidates = [ip for ip in seen if ip not in blocked and not is_own(ip) and ":" not in ip]
    day = merged_day(state.get("day") or {}, request["date"], figures, findings, [each["ip"] for each in offenders])
    answer = {
        "state": {
            "places": places,
            "failures": top(totals, ADDRESSES_MAX),
            "offenders": top(seen, ADDRESSES_MAX),
            "day": day,
        },
        "counts": dict(Counter(entry.kind for entry in entries)),
        "figures": figures,
        "figures_text": " ".join(f"{name}={value}" for name, value in figures.items()),
        "offenders": offenders[:50],
        "block": sorted(candidates, key=lambda ip: (-totals.get(ip, 0), ip))[:BLOCK_MAX],
        "findings": findings,
        "incidents": [
            {
                "path": f"incidents/{request['date']}-ssh-{each['ip'].replace(':', '-')}.md",
                "text": incident(each, request),
            }
            for each in offenders[:BLOCK_MAX]
        ],
    }
    answer["summary"] = summary(sources, figures, findings)
    answer["report"] = report(request, answer, sources, earlier_figures(request.get("earlier")), blocked)
    answer["chart"] = chart(entries)
    return answer


def summary(sources: Sequence[Source], figures: Mapping[str, int], findings: Sequence[Mapping[str, str]]) -> str:
    """The run in one line."""
    if not figures["lines"]:
        return f"nothing new in {counted(len(sources), 'log')}"
    serious = sum(1 for each in findings if each["severity"] in ("critical", "high"))
    written = sum(1 for each in sources if each.entries)
    return (
        f"{counted(figures['lines'], 'new line')} in {written} of {counted(len(sources), 'log')}, "
        f"{counted(figures['failed_passwords'], 'failed password')}, {counted(figures['offenders'], 'brute-force attempt')}, "
        f"{counted(serious, 'serious finding')}"
    )


def counted(count: int, noun: str) -> str:
    """`3 logs`, `1 log`."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def main() -> None:
    """Answer the request on standard input."""
    answer = triage(json.load(sys.stdin), datetime.now().astimezone())
    json.dump(answer, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main()
