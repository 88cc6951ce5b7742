"""One log line in, one entry out: what kind of event it is, when, from where and about whom.

Understands sshd, sudo, su, cron and kernel lines of syslog (both time formats), Apache and nginx access logs, nginx error
logs, dpkg.log and apt's history, and application logs with a level (text or JSON, Kafka's included). Log lines are written
in part by strangers: addresses count only where the program itself wrote them, and nothing here runs what it reads.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo

LINE_CHARACTERS_MAX = 4096  # of a longer line only the beginning is looked at

MONTHS = {
    "Jan": 1,
    "Feb": 2,
    "Mar": 3,
    "Apr": 4,
    "May": 5,
    "Jun": 6,
    "Jul": 7,
    "Aug": 8,
    "Sep": 9,
    "Oct": 10,
    "Nov": 11,
    "Dec": 12,
}

SYSLOG = re.compile(
    r"(?:([A-Z][a-z]{2}) ([ 0-9][0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2})|([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(?:Z|[+-][0-9:]{5})))"
    r" (\S+) ([^\s:\[]+)(?:\[[0-9]+\])?: ?(.*)"
)
ACCESS = re.compile(
    r"(\S+) \S+ .{0,200}?\[([0-9]{2})/([A-Z][a-z]{2})/([0-9]{4}):([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-][0-9]{4})\] "
    r'"((?:[^"\\]|\\.)*)" ([0-9]{3}) (\S+)'
)
NGINX_ERROR = re.compile(r"([0-9]{4})/([0-9]{2})/([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) \[([a-z]+)\] (.*)")
DPKG = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}) ([0-9]{2}:[0-9]{2}:[0-9]{2}) "
    r"(install|upgrade|remove|purge|configure|trigproc|status|startup|conffile) (.*)"
)
APT = re.compile(
    r"(Start-Date|End-Date|Commandline|Requested-By|Install|Upgrade|Remove|Purge|Reinstall|Downgrade|Error): ?(.*)"
)
ALTERNATIVES = re.compile(r"update-alternatives ([0-9]{4}-[0-9]{2}-[0-9]{2}) ([0-9]{2}:[0-9]{2}:[0-9]{2}): (.*)")
APPLICATION = re.compile(
    r"\[?([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,][0-9]+)?(Z|[+-][0-9]{2}:?[0-9]{2})?\]?[\s:-]+"
    r"\[?(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL|SEVERE)\]?[\s:-]+(.*)",
    re.IGNORECASE,
)

# The address is the last thing that sshd writes: a user name that pretends to be the end of the line comes before it.
SSHD_FAILED = re.compile(
    r"Failed (?:password|keyboard-interactive/pam|none) for (invalid user )?(.*) from (\S+) port [0-9]+(?: ssh2)?$"
)
SSHD_ACCEPTED = re.compile(r"Accepted (\S+) for (.*) from (\S+) port [0-9]+(?: ssh2)?(?:: [^ ]+ [^ ]+)?$")
SSHD_INVALID = re.compile(r"Invalid user (.*) from (\S+?)(?: port [0-9]+)?$")
SSHD_REPEATED = re.compile(r"message repeated ([0-9]{1,6}) times: \[ (.*)\]$")
SUDO = re.compile(r"\s*(\S+) : (?:.*; )?COMMAND=(.*)")
KERNEL_TROUBLE = re.compile(
    r"out of memory|oom-kill|I/O error|segfault|general protection|call trace|kernel panic|hung task|blocked for more than"
    r"|EXT4-fs error|remounting filesystem read-only|machine check|soft lockup",
    re.IGNORECASE,
)
WEB_PROBE = re.compile(
    r"\.\./|%2e%2e|/\.env\b|/\.git/|/wp-login|/wp-admin|/xmlrpc\.php|/phpmyadmin|/etc/passwd|/cgi-bin/|/boaform|/actuator"
    r"|/vendor/phpunit|union[ +%20]+select|<script|%3cscript|\$\{jndi|/solr/admin|/manager/html",
    re.IGNORECASE,
)
LEVELS = {
    "trace": "application info", "debug": "application info", "info": "application info", "notice": "application info",
    "warn": "application warning", "warning": "application warning",
    "error": "application error", "critical": "application error", "fatal": "application error", "severe": "application error",
}  # fmt: skip
ACCOUNT_PROGRAMS = {
    "useradd",
    "userdel",
    "usermod",
    "groupadd",
    "groupdel",
    "groupmod",
    "passwd",
    "chpasswd",
    "chage",
    "gpasswd",
}


@dataclass(slots=True)
class Entry:
    """What one line says. `times` is more than 1 where the line stands for several events; `path` is a web request's."""

    kind: str
    at: datetime | None = None
    address: str | None = None
    user: str = ""
    detail: str = ""
    times: int = 1
    path: str | None = None


def read_line(line: str, now: datetime) -> Entry:
    """The Entry of a line; of kind "unrecognised" where no format fits. `now` is an aware datetime, for missing years."""
    line = line[:LINE_CHARACTERS_MAX].rstrip("\r\n")
    match = SYSLOG.match(line)
    if match:
        return _syslog(match, now)
    match = ACCESS.match(line)
    if match:
        return _access(match)
    match = APPLICATION.match(line)
    if match:
        at = _iso(f"{match[1]}T{match[2]}{match[3] or ''}", now)
        return Entry(LEVELS[match[4].lower()], at, detail=match[5])
    match = DPKG.match(line)
    if match:
        return _dpkg(match, now)
    match = APT.match(line)
    if match:
        return _apt(match, now)
    match = NGINX_ERROR.match(line)
    if match:
        day = (int(match[1]), int(match[2]), int(match[3]))
        at = _moment((*day, int(match[4]), int(match[5]), int(match[6])), now.tzinfo)
        serious = match[7] in ("error", "crit", "alert", "emerg")
        return Entry("web server error" if serious else "web notice", at, detail=match[8])
    match = ALTERNATIVES.match(line)
    if match:
        return Entry("package housekeeping", _iso(f"{match[1]}T{match[2]}", now), detail=match[3])
    if line.startswith("{"):
        return _json(line, now)
    return Entry("blank" if not line.strip() else "unrecognised", detail=line)


def address_of(text: str) -> str | None:
    """`text` as a canonical IP address, or None if it is none (a host name, or something that only looks like one)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _moment(parts: tuple[int, int, int, int, int, int], zone: tzinfo | None) -> datetime | None:
    try:
        return datetime(*parts, tzinfo=zone)
    except ValueError:
        return None


def _iso(text: str, now: datetime) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=now.tzinfo)


def _syslog(match: re.Match[str], now: datetime) -> Entry:
    if match[1]:
        at = _without_year((MONTHS.get(match[1], 0), int(match[2]), int(match[3]), int(match[4]), int(match[5])), now)
    else:
        at = _iso(match[6], now)
    return classify(match[8], match[9], at)


def _without_year(parts: tuple[int, int, int, int, int], now: datetime) -> datetime | None:
    """The last time that this date came: old syslog lines name no year."""
    at = _moment((now.year, *parts), now.tzinfo)
    if at is None or at > now + timedelta(days=1):
        at = _moment((now.year - 1, *parts), now.tzinfo) or at
    return at


def classify(program: str, message: str, at: datetime | None) -> Entry:
    """The Entry of a message that `program` sent to syslog or the journal."""
    name = program.rsplit("/", 1)[-1].lower()
    if name in ("sshd", "sshd-session", "sshd-auth"):
        return _sshd(message, at)
    if name == "kernel":
        return Entry("kernel trouble" if KERNEL_TROUBLE.search(message) else "kernel", at, detail=message)
    if name == "sudo":
        command = SUDO.match(message)
        if command:
            return Entry("sudo command", at, user=command[1], detail=command[2])
        failed = "authentication failure" in message or "incorrect password" in message
        return Entry("sudo failure" if failed else "session", at, detail=message)
    if name in ACCOUNT_PROGRAMS:
        return Entry("account change", at, detail=message)
    if name in ("cron", "crond", "anacron"):
        return Entry("cron", at, detail=message)
    if name in ("su", "login", "systemd-logind"):
        return Entry("session", at, detail=message)
    if name == "systemd" and ("Failed " in message or "Failed with result" in message):
        return Entry("service failure", at, detail=message)
    return Entry("session" if "pam_unix(" in message else "other system message", at, detail=message)


def _sshd(message: str, at: datetime | None) -> Entry:
    times = 1
    repeated = SSHD_REPEATED.match(message)
    if repeated:
        times, message = int(repeated[1]), repeated[2]
    match = SSHD_FAILED.match(message)
    if match:
        return Entry("ssh failed password", at, address_of(match[3]), match[2], message, times)
    match = SSHD_ACCEPTED.match(message)
    if match:
        return Entry("ssh accepted", at, address_of(match[3]), match[2], match[1], times)
    match = SSHD_INVALID.match(message)
    if match:
        return Entry("ssh unknown user", at, address_of(match[2]), match[1], message, times)
    return Entry("ssh other", at, detail=message, times=times)


def _access(match: re.Match[str]) -> Entry:
    zone_text = match[8]
    minutes = int(zone_text[1:3]) * 60 + int(zone_text[3:5])
    zone = timezone(timedelta(minutes=min(minutes, 1439) * (-1 if zone_text[0] == "-" else 1)))
    day = (int(match[4]), MONTHS.get(match[3], 0), int(match[2]))
    at = _moment((*day, int(match[5]), int(match[6]), int(match[7])), zone)
    request, status = match[9], match[10]
    parts = request.split(" ")
    path = parts[1] if len(parts) > 1 else request
    if WEB_PROBE.search(request):
        kind = "web probe"
    else:
        kind = {"2": "web success", "3": "web redirect", "4": "web client error", "5": "web server error"}.get(
            status[0], "web other"
        )
    return Entry(kind, at, address_of(match[1]), detail=f"{status} {request}", path=path)


def _dpkg(match: re.Match[str], now: datetime) -> Entry:
    at = _iso(f"{match[1]}T{match[2]}", now)
    verb, package = match[3], match[4].split(" ")[0]
    kinds = {
        "install": "package installed",
        "upgrade": "package upgraded",
        "remove": "package removed",
        "purge": "package removed",
    }
    return Entry(kinds.get(verb, "package housekeeping"), at, detail=package)


def _apt(match: re.Match[str], now: datetime) -> Entry:
    at = _iso(match[2].replace("  ", "T"), now) if match[1].endswith("-Date") else None
    if match[1] == "Error":
        return Entry("package error", at, detail=match[2])
    return Entry("apt run" if match[1] == "Start-Date" else "package housekeeping", at, detail=match[2])


def _json(line: str, now: datetime) -> Entry:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Entry("unrecognised", detail=line)
    level = record.get("level") or record.get("severity") or record.get("levelname")
    kind = LEVELS.get(level.lower()) if isinstance(level, str) else None
    if kind is None:
        return Entry("unrecognised", detail=line)
    time = record.get("time") or record.get("timestamp") or record.get("@timestamp") or record.get("ts")
    message = record.get("message") or record.get("msg") or ""
    return Entry(kind, _iso(time, now) if isinstance(time, str) else None, detail=str(message))
