"""Which fields of which variables an expression uses: never a narrower one than it does."""

from __future__ import annotations

import pytest

from perdure.daemon.planners.used_fields import used_fields


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("found.count", {"found.count"}),
        (" found . report\n.path ", {"found.report.path"}),
        ("found.count + other.count", {"found.count", "other.count"}),
        ("found", {"found"}),
        ("found.ips[0]", {"found.ips"}),
        ("found.ips[0].count", {"found.ips.count"}),
        ("found['count']", {"found.count"}),
        ('found["report"].path', {"found.report.path"}),
        ("found[other.count]", {"found", "other.count"}),
        ("found['co' + 'unt']", {"found"}),
        ("found.count.size()", {"found.count"}),
        ("found.report.path.split('/')[0]", {"found.report.path"}),
        ("found.ips.map(ip, ip.count)", {"found.ips"}),
        ("found.filter(count, count.count > 1)", {"found"}),
        ("string(found.count) + ' of found.ips'", {"found.count"}),
        ("r'a' + found.ips", {"found"}),
        ("'it\\'s' + found.count", {"found.count"}),
        ("found.count // + found.ips\n + found.size", {"found.count", "found.size"}),
        ("found.count // '\n + found.ips // '", {"found.count", "found.ips"}),
        ('"""a" """ + found.ips', {"found.ips"}),
        (".found.ips + string(found.count)", {"found.ips", "found.count"}),
        ("'a' in .found.ips || found.count > 1", {"found.ips", "found.count"}),
        ("found.?count.orValue(1)", {"found.count"}),
        ("has(found.count) ? found.count : 0", {"found.count"}),
        ("{'x': found.count}", {"found.count"}),
        ("slot.date", {"slot.date"}),
        ("last.found.offset", {"last.found.offset"}),
        ("1 + 1", set()),
    ],
)
def test_fields_of_an_expression(source, used):
    assert {".".join((name, *field)) for name, field in used_fields(source)} == used
