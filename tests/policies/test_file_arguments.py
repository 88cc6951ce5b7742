"""The files of allowed programs are bounded like any other path: found in their words, resolved, asked about where uncertain."""

from __future__ import annotations

import pytest
from bypass_corpus import BYPASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_tools import Workspace
from test_commands import asked

from perdure.policies.commands import analyse

READERS = "cat, head, tail, grep, sort, wc, diff, awk, sed, ls, find, xargs, cd, sh, tar tf, tar -t*, tar, git log, date, echo, env, timeout, cp, mv, ln, mkdir, touch, tee, install"


@pytest.fixture
def within(workspace):
    """Everything that these programs do is automatic in `box`, and nowhere else."""
    for name in ("box/deep", "outside"):
        (workspace.root / name).mkdir(parents=True)
    (workspace.root / "outside" / "secret").write_text("x")
    (workspace.root / "box" / "a.log").write_text("x")
    (workspace.root / "box" / "link").symlink_to("../outside/secret")
    (workspace.root / "box" / "way").symlink_to("../outside")
    return workspace.rules(
        f"{{name: a, tools: [run_command], program: {{in: [{READERS}]}}, path: {{under: box}}, decide: auto}}"
    )


@pytest.mark.parametrize(
    "form",
    [
        "cat box/a.log",
        "cat box/../box/a.log",
        "head -n 3 box/a.log | grep -v x | wc -l",
        "head -20 box/a.log",
        "grep -c 'a/b /etc/shadow' box/a.log",
        "grep -e x -e y -m 5 box/a.log",
        "awk -F: '/etc/ {print $1}' box/a.log",
        "sed -n '1,20p' box/a.log",
        "sort -t, -k2,2n box/a.log > box/sorted",
        "cat < box/a.log > box/b 2>/dev/null",
        "cat box/*.log",
        "cat box/deep/*",
        'for f in box/*.log; do wc -l "$f"; done',
        'd=box/a.log; head "$d"',
        "find box -name '*.log'",
        "find box -type f -exec grep x {} +",
        "ls box",
        "diff box/a.log <(sort box/a.log)",
        "timeout 5 cat box/a.log",
        "sh -c 'cat box/a.log'",
        "sed -i s/a/b/ box/a.log",
        "sed -i.bak -e s/a/b/ box/a.log",
        "date | tee -a box/a.log box/b",
        "cp box/a.log box/b",
        "cp box/a.log box/deep",
        "mv box/a.log box/deep/",
        "mkdir -p -m 755 box/x/y",
        "touch box/new",
        ["cat", "box/a.log"],
        "echo /etc/shadow",
        "date +%F/%T",
    ],
)
def test_a_command_that_stays_inside_is_automatic(within, form):
    assert asked(within, form) == "auto"


@pytest.mark.parametrize(
    "form",
    [
        "cat /etc/shadow",
        "cat outside/secret",
        "cat box/../outside/secret",
        "cat box/link",
        "cat box/way/secret",
        "cat box/*",
        "cat box/l*",
        "cat box/*/secret",
        "cat box/a.log outside/secret",
        "cat < outside/secret",
        "cat box/a.log > outside/x",
        "ls",
        "find -name x",
        "grep -r x",
        "grep -rx x box outside",
        "cat box/$x",
        "cat box/$(date)",
        "cat $(echo box/a.log)",
        "cd box && cat ../outside/secret",
        "cd outside && cat box",
        "cd box && ls",
        "find box -exec cat {} +",
        "find box | xargs cat",
        "find -L box -type f -exec cat {} +",
        "env -C outside cat secret",
        "env -C box cat a.log",
        "git -C ../other log",
        "git log -- ../other",
        "tar tf ../x.tar",
        "tar --file=../x.tar -t",
        "tar -tf../x.tar",
        "cp box/a.log ../x",
        "cp box/a.log .",
        "cp outside/secret box/x",
        "cp -t . box/a.log",
        "cp --target-directory=.. box/a.log",
        "cp x/link box",
        "mv box/a.log outside",
        "ln -s ../../outside box/x2",
        "install box/a.log /usr/local/bin/x",
        "mkdir ../y",
        "touch -r outside/secret box/a.log",
        "date | tee box/a.log outside/x",
        "date | tee ../x",
        "sed -i s/a/b/ outside/secret",
        "sed -i s/a/b/ box/link",
        "sed --in-place=../x s/a/b/ box/a.log",
        "sort -o outside/x box/a.log",
        "sort -ooutside/x box/a.log",
        ["cat", "outside/secret"],
        ["cat", "box/link"],
    ],
)
def test_a_command_that_leaves_is_asked(within, form):
    assert asked(within, form) == "escalate"


def test_without_a_bound_a_program_that_writes_files_is_asked(workspace):
    policies = workspace.rules("{name: a, tools: [run_command], program: {in: [sed, tee, date]}, decide: auto}")
    assert asked(policies, "date | tee /dev/null") == "auto"
    assert asked(policies, "sed s/a/b/ x") == "auto"
    assert asked(policies, "date | tee x") == "escalate"
    assert asked(policies, "sed -i s/a/b/ x") == "escalate"


def test_a_rule_that_denies_sees_what_lies_below_and_asks_where_it_cannot_tell(workspace):
    policies = workspace.rules(
        "{name: a, tools: [run_command], program: {in: ['*']}, path: {under: /}, decide: auto}",
        "{name: d, tools: [run_command], path: {under: [/etc/shadow, keys]}, decide: deny}",
    )
    for form in (
        "cat /etc/shadow",
        "cp -r /etc x",
        "grep -r x /",
        "grep -r x .",
        "cat keys/a",
        "dd if=/etc/shadow",
        "openssl x -in=keys/a",
    ):
        assert asked(policies, form) == "deny", form
    for form in ("cat $x", "echo keys/a | xargs cat", "tar -T list -t", "find . -exec cat {} +"):
        assert asked(policies, form) == "escalate", form
    for form in ("cat /etc/hosts", "ls /etc", "find / -name shadow", "echo /etc/shadow"):
        assert asked(policies, form) == "auto", form


def test_the_corpus_of_file_arguments_needs_the_rule_about_secrets(tmp_path):
    """Most of these forms would run if `ops` looked at programs only: it is the rule about files that stops them."""
    from perdure.policies.loading import library_files

    ops = library_files()["ops"].read_text()
    start, end = (
        ops.index("  - name: files that hold secrets"),
        ops.index("  - name: commands that untrusted content chose"),
    )
    without = Workspace(tmp_path).load(ops[:start] + ops[end : ops.index("\ntests:")] + "\n")
    forms = BYPASSES["files of allowed programs"]
    assert sum(asked(without, form) == "auto" for form in forms) >= len(forms) // 2


WORDS = st.lists(st.text(alphabet="ab/.~*-=:,@$'\" {}[]\\", max_size=8), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["cat", "cp", "tee", "rm", "prog", "tar"]), WORDS, WORDS)
def test_a_path_among_any_words_is_found(program, before, after):
    """Of an argument list nothing is expanded: a plain path in it is a file of the command, whatever stands around it."""
    found = analyse([program, *before, "../outside/file", *after], None, "/w")
    assert "../outside/file" in {one.text for one in found.files} or found.unlocated


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("cat /.;&|$x=*?~'\"{}<>()\n-")), max_size=30))
def test_any_script_names_files_and_none_raises(text):
    for one in analyse(None, f"cat {text}", "/w").files:
        assert one.text
        assert one.directory
