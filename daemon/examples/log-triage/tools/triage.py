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

import glob
import hashlib
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime

from log_lines import Entry, address_of, classify, read_line
from triage_report import chart, incident, plain, report

BYTES_PER_FILE_MAX = 16_000_000  # what is more waits for the next run
FILES_MAX = 200
ADDRESSES_MAX = 500  # remembered from run to run
FINDINGS_OF_A_KIND_MAX = 10
BLOCK_MAX = 10  # proposed in one run
OFFENDER_SECONDS = 86_400  # how long an offender is proposed after it was last seen
HEAD_BYTES = 1024  # by which a file is known again after log rotation
JOURNAL_LINES_MAX = 20_000

# The defender's own networks: never proposed for blocking. (Documentation networks stand for strangers in examples.)
OWN_NETWORKS = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "0.0.0.0/8",
                 "224.0.0.0/3", "::1/128", "fe80::/10", "fc00::/7", "ff00::/8")
]  # fmt: skip


def head_of(file, length):
    """A digest of the first `length` bytes, by which a file is the same although it was renamed."""
    file.seek(0)
    return hashlib.sha256(file.read(length)).hexdigest()[:16]


def new_lines(path, known):
    """The complete lines in `path` after the known place: (lines, the place now, whether the log was rotated).

    After a rotation the rest of the old file is read from `path`.1 first.
    """
    rotated, lines = False, []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = known.get("offset", 0) if known else 0
        if known and (size < offset or head_of(file, known["head_bytes"]) != known["head"]):
            rotated, offset = True, 0
            lines += rest_of_rotated(path + ".1", known)
        found, offset = complete_lines(file, offset)
        lines += found
        length = min(HEAD_BYTES, offset)
        place = {"offset": offset, "head_bytes": length, "head": head_of(file, length)}
    return lines, place, rotated


def rest_of_rotated(path, known):
    try:
        with open(path, "rb") as file:
            if head_of(file, known["head_bytes"]) != known["head"]:
                return []
            return complete_lines(file, known["offset"], to_the_end=True)[0]
    except OSError:
        return []


def complete_lines(file, offset, to_the_end=False):
    file.seek(offset)
    data = file.read(BYTES_PER_FILE_MAX)
    end = data.rfind(b"\n") + 1
    if to_the_end or (end == 0 and len(data) == BYTES_PER_FILE_MAX):  # a "line" that long is skipped, not waited for
        end = len(data)
    text = data[:end].decode("utf-8", "replace")
    return [line for line in text.split("\n") if line], offset + end


def journal_entries(known):
    """Entries of the journal after the known cursor: (entries, the place now). Nothing where there is no journal."""
    command = ["journalctl", "--output=json", "--no-pager", f"--lines={JOURNAL_LINES_MAX}"]
    if known and known.get("cursor"):
        command.append(f"--after-cursor={known['cursor']}")
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return [], known or {}
    entries, cursor = [], (known or {}).get("cursor", "")
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        try:
            record = json.loads(line)
            at = datetime.fromtimestamp(int(record["__REALTIME_TIMESTAMP"]) / 1e6).astimezone()
            program = str(record.get("SYSLOG_IDENTIFIER") or record.get("_COMM") or "unknown")
            entries.append(classify(program, str(record.get("MESSAGE") or ""), at))
            cursor = record["__CURSOR"]
        except (ValueError, KeyError, TypeError, OverflowError):
            entries.append(Entry("unrecognised", detail=line))
    return entries, {"cursor": cursor}


def read_sources(sources, places, now):
    """All new entries, by source: ([{name, entries, rotated, error}], places now)."""
    found, places = [], dict(places)
    paths = []
    for pattern in sources:
        paths += ["journal"] if pattern == "journal" else sorted(glob.glob(pattern))
    for path in list(dict.fromkeys(paths))[:FILES_MAX]:
        source = {"name": path, "entries": [], "rotated": False, "error": None}
        try:
            if path == "journal":
                source["entries"], places[path] = journal_entries(places.get(path))
            else:
                lines, places[path], source["rotated"] = new_lines(path, places.get(path))
                source["entries"] = [read_line(line, now) for line in lines]
        except OSError as error:
            source["error"] = error.strerror
        found.append(source)
    return found, places


def is_own(address):
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in OWN_NETWORKS if network.version == parsed.version)


def figures_of(entries):
    """The few numbers that are compared from run to run."""
    kinds = Counter()
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


def offenders_in(entries, before, threshold):
    """Addresses that reached the threshold, with new failures in these entries, the most failures first."""
    failures, names, first, last, accepted = Counter(), {}, {}, {}, {}
    for entry in entries:
        if entry.address is None:
            continue
        if entry.kind == "ssh failed password":
            failures[entry.address] += entry.times
            names.setdefault(entry.address, Counter())[entry.user] += entry.times
            if entry.at:
                first.setdefault(entry.address, entry.at)
                last[entry.address] = entry.at
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
            "first": first[address].isoformat() if address in first else None,
            "last": last[address].isoformat() if address in last else None,
            "own": is_own(address),
            "accepted": plain(accepted[address], 32) if address in accepted else None,
        })  # fmt: skip
    return found, failures


def findings_of(entries, offenders, figures):
    """What a person should know, the most serious first."""
    found = []
    for each in offenders[:FINDINGS_OF_A_KIND_MAX]:
        if each["accepted"] is not None:
            text = f"{each['ip']} logged in as `{each['accepted']}` after {each['total']} failed passwords: look at this first"
            found.append({"severity": "critical", "kind": "login after brute force", "text": text})
        names = f"{each['user_count']} user name{'s' if each['user_count'] != 1 else ''}"
        text = f"{each['ip']}: {each['failures']} failed passwords for {names} ({', '.join(f'`{user}`' for user in each['users'])})"
        found.append({"severity": "high", "kind": "brute-force attempt", "text": text})
    if len(offenders) > FINDINGS_OF_A_KIND_MAX:
        more = len(offenders) - FINDINGS_OF_A_KIND_MAX
        found.append({"severity": "high", "kind": "brute-force attempts", "text": f"{more} more addresses, see the table below"})
    probes = Counter(entry.address or "an unknown address" for entry in entries if entry.kind == "web probe")
    for address, count in probes.most_common(5):
        path = next(entry.path for entry in entries if entry.kind == "web probe" and (entry.address or "an unknown address") == address)
        text = f"{address}: {count} request{'s' if count != 1 else ''} that look for holes, such as `{plain(path, 60)}`"
        found.append({"severity": "medium", "kind": "web probe", "text": text})
    for kind, severity in (("kernel trouble", "high"), ("service failure", "medium"), ("package error", "medium"),
                           ("web server error", "medium"), ("application error", "medium"), ("sudo failure", "medium")):  # fmt: skip
        details = Counter(plain(shape(entry.detail), 90) for entry in entries if entry.kind == kind)
        for detail, count in details.most_common(3):
            found.append({"severity": severity, "kind": kind, "text": f"{count} × `{detail}`"})
    if figures["packages_changed"]:
        found.append({"severity": "low", "kind": "packages", "text": f"{figures['packages_changed']} packages installed, upgraded or removed"})
    changes = [entry for entry in entries if entry.kind == "account change"]
    if changes:
        found.append({"severity": "low", "kind": "accounts", "text": f"{len(changes)} × such as `{plain(changes[0].detail, 80)}`"})
    order = ("critical", "high", "medium", "low")
    return sorted(found, key=lambda each: order.index(each["severity"]))[:30]


def shape(detail):
    """A message with its numbers taken out, so that messages that differ only there count as one."""
    return "".join("#" if character.isdigit() else character for character in detail).replace("##", "#").replace("##", "#")


def merged_day(state, date, figures, findings):
    """The figures and findings of the day so far, this run included."""
    day = state.get("day") or {}
    if day.get("date") != date:
        day = {"date": date, "runs": 0, "figures": {}, "findings": []}
    known = {(each["kind"], each["text"]) for each in day["findings"]}
    added = [each for each in findings if (each["kind"], each["text"]) not in known]
    return {
        "date": date,
        "runs": day["runs"] + 1,
        "figures": {name: day["figures"].get(name, 0) + value for name, value in figures.items()},
        "findings": (day["findings"] + added)[-60:],
    }


def top(counts, most):
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])


def blocked_addresses(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return {address for address in map(address_of, file.read(1_000_000).split()) if address}
    except OSError:
        return set()


def earlier_figures(facts):
    """The figures of earlier runs, newest first, out of what memory says of them."""
    rows = []
    for fact in facts if isinstance(facts, list) else []:
        value = fact.get("value") if isinstance(fact, dict) else None
        pairs = [pair.partition("=") for pair in value.split()] if isinstance(value, str) else []
        row = {name: int(number) for name, _, number in pairs if number.isascii() and number.isdigit() and len(number) < 16}
        if "lines" in row:
            rows.append(row)
    return rows[:50]


def triage(request, now):
    """The answer to one request."""
    state = request.get("state") or {}
    threshold = int(request.get("threshold") or 5)
    sources, places = read_sources(request["sources"], state.get("places") or {}, now)
    entries = [entry for source in sources for entry in source["entries"]]
    figures = figures_of(entries)
    before = state.get("failures") or {}
    offenders, failures = offenders_in(entries, before, threshold)
    figures["offenders"] = len(offenders)
    findings = findings_of(entries, offenders, figures)
    seen = {ip: at for ip, at in (state.get("offenders") or {}).items() if now.timestamp() - at < OFFENDER_SECONDS}
    seen.update({each["ip"]: int(now.timestamp()) for each in offenders})
    blocked = blocked_addresses(request.get("blocked") or "blocked.txt")
    totals = {ip: before.get(ip, 0) + failures.get(ip, 0) for ip in {*before, *failures}}
    candidates = [ip for ip in seen if ip not in blocked and not is_own(ip) and ":" not in ip]
    day = merged_day(state, request["date"], figures, findings)
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
            {"path": f"incidents/{request['date']}-ssh-{each['ip'].replace(':', '-')}.md", "text": incident(each, request)}
            for each in offenders[:BLOCK_MAX]
        ],
    }
    answer["summary"] = summary(sources, figures, findings)
    answer["report"] = report(request, answer, sources, day, earlier_figures(request.get("earlier")), blocked)
    answer["chart"] = chart(entries)
    return answer


def summary(sources, figures, findings):
    if not figures["lines"]:
        return f"nothing new in {len(sources)} log{'s' if len(sources) != 1 else ''}"
    serious = sum(1 for each in findings if each["severity"] in ("critical", "high"))
    return (f"{figures['lines']:,} new lines in {sum(1 for each in sources if each['entries'])} of {len(sources)} logs, "
            f"{figures['failed_passwords']:,} failed passwords, {figures['offenders']} brute-force attempts, {serious} serious findings")  # fmt: skip


def main():
    started = time.time()
    request = json.load(sys.stdin)
    answer = triage(request, datetime.fromtimestamp(started).astimezone())
    json.dump(answer, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main()
