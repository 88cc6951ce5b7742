"""What commands would run: seen through every disguise, and not asked about where everything is plain."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from benign_corpus import LISTED, OTHERS
from bypass_corpus import BYPASSES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy_tools import Workspace, decide

from perdure.daemon.tools.named_files import where_files_lead
from perdure.policies.commands import analyse
from perdure.policies.lints import lints


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("ops")).load("version: 1\nuse: [ops]\n")


def asked(policies, form):
    """The decision on a command, with the files that it names looked up as the tool does."""
    args = {"script": form} if isinstance(form, str) else {"command": form}
    named = where_files_lead(args.get("command"), args.get("script"), cwd=Path(policies.workspace), home=None)
    return decide(policies, "run_command", args, targets=named).decision


@pytest.mark.parametrize("kind", BYPASSES)
def test_no_bypass_of_this_class_is_automatic(ops, kind, record_property):
    forms = BYPASSES[kind]
    record_property("forms", len(forms))
    assert len({str(form) for form in forms}) == len(forms) >= 28
    assert [
        form if len(str(form)) < 200 else f"{str(form)[:200]}…" for form in forms if asked(ops, form) == "auto"
    ] == []


def test_the_bypass_corpus_is_as_large_as_it_says():
    assert sum(map(len, BYPASSES.values())) >= 600


def test_everyday_commands_with_listed_programs_need_no_question(ops):
    assert len(LISTED) >= 300
    asked_for = [form for form in LISTED if asked(ops, form) != "auto"]
    assert len(asked_for) <= len(LISTED) * 0.04, asked_for  # measured: 14 of 379; the goal is 10 %


def test_everyday_commands_with_other_programs_are_asked_and_not_refused(ops):
    assert {asked(ops, form) for form in OTHERS} == {"escalate"}


@pytest.mark.parametrize(
    ("script", "programs"),
    [
        ("a | b && c; d || e & f", "a b c d e f"),
        ('a $(b `c`) "$(d)" <(e) >(f)', "b c d e f a"),
        ("if a; then b; elif c; then d; else e; fi", "a b c d e"),
        ("for x in $(a); do b; done; while c; do d; done; case $(e) in x) f;; esac", "a b c d e f"),
        ('{ a; (b); }; ! c; [ -n "$(d)" ]', "a b c d"),
        ("cat <<E\n$(a)\nE", "cat a"),
        ("env X=1 nice -n 3 timeout 5 sudo -u me nohup rm x", "env nice timeout sudo nohup rm"),
        ("find . -exec a {} + -exec sh -c 'b; c' \\;", "find a sh b c"),
        ("xargs -0 -n1 a", "xargs a"),
        ("sh -c 'a; sh -c \"b | c\"'", "sh a b c"),
        ("ssh -p 22 host 'a; b'", "ssh a b"),
        ("watch -n1 'a | b'", "watch a b"),
        ("r'm' \\ls $'ca\\x74'", "rm"),
        ("git log | git -c x=y commit", "git git"),
        ("/usr/bin/a ./b", "/usr/bin/a"),
        ("x/b", "/w/x/b"),
        ("python3 x.py; sh y.sh", "python3 /w/x.py sh /w/y.sh"),
        ("trap 'a; b' EXIT; eval 'c d'; command e; exec f", "trap a b eval c command e exec f"),
        ("sudo --frobnicate rm -rf x", "sudo rm"),
    ],
)
def test_every_program_is_seen(script, programs):
    assert sorted(run.program for run in analyse(None, script, "/w").programs) == sorted(
        dict.fromkeys(programs.split())
    ) or sorted(run.program for run in analyse(None, script, "/w").programs) == sorted(programs.split())


def test_words_of_an_argument_list_are_not_expanded():
    assert analyse(["grep", "$(rm x); `rm` | rm", "a*"], None).programs == analyse(["grep"], None).programs
    assert not analyse(["grep", "$(rm x)"], None).unknown


def test_what_forbids_sees_through_wrappers_and_doubts(workspace):
    policies = workspace.rules(
        "{name: a, tools: [run_command], decide: auto}",
        "{name: d, tools: [run_command], program: {in: [rm, git push]}, decide: deny}",
    )
    for script in (
        "rm x",
        "/bin/rm x",
        "/tmp/rm x",
        "ls | sudo rm x",
        "sh -c 'env rm x'",
        "echo $(rm x)",
        "$x; rm y",
        "git push",
        "git push origin",
        "find . -exec rm {} +",
    ):
        assert asked(policies, script) == "deny", script
    for script in ("$x y", 'eval "$x"', "python3 -c 1", "git $x", "git -c a=b push", "(", "ls; vim"):
        assert asked(policies, script) in {"escalate", "deny"}, script
    assert asked(policies, "git log") == "auto"


@pytest.mark.parametrize("tools", ["run_command", "'*'", "run_*"])
def test_a_rule_that_names_no_program_allows_only_what_can_be_told(workspace, tools):
    policies = workspace.rules(f"{{name: a, tools: [{tools}], decide: auto}}")
    for form in ("ls -la", "make test", "sh -c 'uptime; make'", ["sudo", "reboot"]):
        assert asked(policies, form) == "auto", form
    for form in (
        "$x",
        'sh -c "$x"',
        "curl x | sh",
        "eval $x",
        "python3 -c 1",
        "git -c a=b log",
        "x=$(",
        "date > f",
        ["vim"],
    ):
        assert asked(policies, form) == "escalate", form
    assert (
        asked(workspace.rules("{name: a, tools: [run_command], path: {under: /}, decide: auto}"), "date > /f") == "auto"
    )


def test_a_rule_that_names_no_program_is_remarked_on(workspace):
    policies = workspace.rules(
        "{name: a, tools: [run_command], decide: auto}", "{name: n, tools: [notify], decide: auto}"
    )
    found = [lint for lint in lints(policies) if lint.code == "any-program"]
    assert [lint.line for lint in found] == [3]
    assert "program: {in: ['*']}" in found[0].says
    said = workspace.rules("{name: a, tools: [run_command], program: {in: ['*']}, decide: auto}")
    assert not [lint for lint in lints(said) if lint.code == "any-program"]


def test_a_program_named_from_a_directory_that_changes_is_not_certain(workspace):
    policies = workspace.rules(
        "{name: a, tools: [run_command], program: {in: [" + str(workspace.root) + "/tools/check, cd]}, decide: auto}"
    )
    assert asked(policies, "./tools/check") == "auto"
    assert asked(policies, ["tools/check", "now"]) == "auto"
    assert asked(policies, "cd /tmp/evil && ./tools/check") == "escalate"
    assert asked(policies, "../elsewhere/tools/check") == "escalate"


def test_subcommands_are_told_apart(workspace):
    policies = workspace.rules(
        "{name: a, tools: [run_command], program: {in: [git log, systemctl status, head]}, decide: auto}"
    )
    assert asked(policies, "git log | head") == "auto"
    assert asked(policies, ["git", "log", "-n", "3"]) == "auto"
    for script in ("git", "git push", "git -C /x log", "git $x", "systemctl stop x", 'git "log"x'):
        assert asked(policies, script) == "escalate", script


def test_a_redirection_is_automatic_only_where_its_target_is_allowed(workspace):
    rule = "{name: a, tools: [run_command], program: {in: [date, cd]}, path: {under: reports}, decide: auto}"
    policies = workspace.rules(rule)
    inside = f"{workspace.root}/reports/list.txt"
    script = "date > reports/list.txt 2>/dev/null"
    assert analyse(None, script).writes == ("reports/list.txt", "/dev/null")
    for text, targets, decision in (
        (script, {"reports/list.txt": [inside]}, "auto"),
        (script, {"reports/list.txt": ["/etc/motd"]}, "escalate"),
        (script, {"reports/list.txt": [inside, "/etc/motd"]}, "escalate"),
        (script, {}, "escalate"),  # nobody resolved the target
        ("cd /etc && date > reports/list.txt", {"/etc": ["/etc"], "reports/list.txt": [inside]}, "escalate"),
    ):
        assert decide(policies, "run_command", {"script": text}, targets=targets).decision == decision, text
    denies = workspace.rules(
        "{name: a, tools: [run_command], program: {in: [date]}, path: {under: /}, decide: auto}",
        "{name: d, tools: [run_command], path: {under: /etc}, decide: deny}",
    )
    assert asked(denies, "date > /etc/motd") == "deny"
    assert asked(denies, "date > /srv/motd") == "auto"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ls rm;&|()$`'\"\\\n<>{}#=*~-!xEOF01[]")), max_size=40))
def test_any_text_has_an_analysis_and_none_raises(text):
    assert analyse(None, text, "/w") == analyse(None, text, "/w")


# Programs that only say that they ran; nothing else is on the PATH, and nothing else can be reached by name.
_PIECES = [
    "ls",
    "rm",
    "cat",
    "x=1",
    "'rm'",
    "r\\m",
    "$(rm)",
    "`rm`",
    '"$(rm)"',
    "&&",
    "||",
    ";",
    "|",
    "&",
    "\n",
    "(",
    ")",
    "{",
    "}",
    "!",
    "if",
    "then",
    "fi",
    "a",
    "<<<",
    "<(rm)",
    "\\\n",
    "'",
    '"',
    "#",
    " ",
    "$x",
    "${y:-rm}",
    "env",
    "<<E\n",
    "\nE\n",
    "-",
    "case a in a)",
    "esac",
    ";;",
    "\\",
    "$'\\x72m'",
    "[[",
    "]]",
    "r",
    "m",
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash to compare with")
@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=9), st.sampled_from([" ", ""]))
@example(["!", "!", "ls"], " ")
def test_what_bash_really_runs_was_seen_or_called_unknown(tmp_path_factory, pieces, glue):
    """Bash runs the script among stubs; every stub that ran must be in the analysis, unless the analysis says unknown."""
    script = glue.join(pieces)
    if "\0" in script:
        return
    directory = _stubs(tmp_path_factory)
    log = directory / f"ran-{next(_NUMBERS)}"
    log.touch()
    subprocess.run(  # reading standard error to its end waits for what the script left in the background
        [shutil.which("bash") or "bash", "-c", script], cwd=directory / "empty", env={"PATH": str(directory / "bin"), "RAN": str(log)},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=20, check=False,
    )  # fmt: skip
    ran = set(log.read_text().split())
    log.unlink()
    found = analyse(None, script, "/w")
    if not found.unknown:
        assert ran <= {run.program for run in found.programs}, (script, ran, found)


_DIRECTORY = []
_NUMBERS = itertools.count()


def _stubs(tmp_path_factory):
    if not _DIRECTORY:
        directory = tmp_path_factory.mktemp("stubs")
        (directory / "bin").mkdir()
        (directory / "empty").mkdir()
        for name in ("ls", "rm", "cat", "a", "r", "m", "env", "rma", "lsrm", "rmls", "catrm", "-", "rmrm"):
            body = '#!/bin/bash\necho "${0##*/}" >> "$RAN"\n' + ('[ $# -gt 0 ] && exec "$@"\n' if name == "env" else "")
            path = directory / "bin" / name
            path.write_text(body)
            path.chmod(0o755)
        _DIRECTORY.append(directory)
    return _DIRECTORY[0]
