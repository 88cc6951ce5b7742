"""Policy files as text: what is refused, where it says so, and that nothing is quietly ignored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from policy_tools import SIGNATURES, decide

from perdure.errors import Problems
from perdure.policies.documents import BYTES_MAX
from perdure.policies.lints import lints
from perdure.policies.loading import LIBRARY, load_policies

RULE = "{name: a, tools: [write_file], decide: auto"


def problems_of(workspace, text):
    with pytest.raises(Problems) as caught:
        workspace.load(text)
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("‸", "an empty file", "version: 1"),
        ("version: ‸2\nrules: []\n", "the number 2", "1, the only version"),
        ("version: 1\n‸version: 1\nrules: []\n", "'version' a second time", "first in line 1"),
        ("version: 1\n‸rulse: []\nrules: []\n", "unknown key 'rulse'", "did you mean 'rules'"),
        ("version: 1\nrules: ‸{}\n", "an empty mapping", "a list of rules"),
        ("version: 1\nrules: [‸12]\n", "the number 12", "a rule"),
        ("version: 1\nrules:\n‸\t- x\n", "a tab", "spaces"),
        ("version: 1\nrules: [a\n‸", "flow sequence", "YAML"),
        ("version: 1\nrules: ‸&r []\n", "the anchor &r", "readable where it stands"),
        ("version: 1\nrules: ‸*r\n", "the alias *r", "the value itself"),
        ("version: 1\n‸---\nrules: []\n", "a second document", "one document"),
        ("version: 1\nrules: [‸{tools: [write_file], decide: auto}]\n", "no `name`", "people will know"),
        ("version: 1\nrules: [‸{name: a, decide: auto}]\n", "no `tools`", "write_file"),
        ("version: 1\nrules: [{name: a, tools: ‸[], decide: auto}]\n", "an empty list", "a list of names"),
        (
            "version: 1\nrules: [‸{name: a, tools: [write_file]}]\n",
            "neither decides nor requires",
            "auto, escalate or deny",
        ),
        (
            "version: 1\nrules: [{name: a, tools: [write_file], decide: ‸autow}]\n",
            "'autow'",
            "auto, escalate or deny (did you mean 'auto'?)",
        ),
        (f"version: 1\nrules: [{RULE}, ‸pth: {{under: x}}}}]\n", "unknown key 'pth'", "did you mean 'path'"),
        (f"version: 1\nrules: [{RULE}, path: {{‸undre: x}}}}]\n", "unknown key 'undre'", "did you mean 'under'"),
        (f"version: 1\nrules: [{RULE}, path: {{‸under: ~/x}}}}]\n", "'~/x'", "relative to the workspace"),
        (f"version: 1\nrules: [{RULE}, path: {{‸under: 'a/**'}}}}]\n", "'a/**'", "everything below"),
        (f"version: 1\nrules: [{RULE}, path: {{‸under: 'a/x**/b'}}}}]\n", "'a/x**/b'", "whole component"),
        (f"version: 1\nrules: [{RULE}, shadow: ‸on}}]\n", "the text 'on'", "true or false"),
        (f"version: 1\nrules: [{RULE}, ‸expires: 3h}}]\n", "`expires` in a rule that decides auto", "a question"),
        ("version: 1\nrules: [{name: a, tools: [x], decide: escalate, expires: ‸3y}]\n", "'3y'", "12h"),
        ("version: 1\nrules: [{name: a, tools: [x], decide: escalate, expires: ‸900d}]\n", "'900d'", "at most a year"),
        ("version: 1\nrules: [{name: a, tools: [x], require: ‸{}}]\n", "an empty `require`", "confidence"),
        ("version: 1\nrules: [{name: a, tools: [x], require: {confidence: ‸90}}]\n", "the number 90", "up to 1"),
        (
            "version: 1\nrules: [{name: a, tools: [x], require: {votes: {ahead_by: 5, ‸max: 3}}}]\n",
            "at most 3 votes",
            "at least 5",
        ),
        (f"version: 1\nrules: [{RULE}, ‸when: }}]\n", "nothing", "a condition"),
        (f"version: 1\nrules: [{RULE}, when: ‸!tainted }}]\n", "the tag !tainted", "in quotes"),
        (f"version: 1\nrules: [{RULE}, when: ‸''}}]\n", "", "a condition"),
        (f"version: 1\nrules: [{RULE}, when: ‸true}}]\n", "the boolean true", "leave `when` out"),
        (f"version: 1\nrules: [{RULE}, when: ‸12}}]\n", "the number 12", "a condition"),
        (
            f"version: 1\nrules: [{RULE}, when: '‸args.pth == 1'}}]\n",
            "the unknown name 'args.pth'",
            "did you mean 'args.path'",
        ),
        (f"version: 1\nrules: [{RULE}, when: 'args.path ‸== 1'}}]\n", "no matching overload", "CEL"),
        (f"version: 1\nrules: [{RULE}, when: 'args.path ‸='}}]\n", "", "CEL"),
        (f"version: 1\nrules: [{RULE}, when: ‸args.path}}]\n", "type string", "true or false"),
        (f"version: 1\nrules: [{RULE}, when: '‸has(args.path)'}}]\n", "has()", "given.NAME"),
        (f"version: 1\nrules: [{RULE}, when: 'task.matches(‸\"(\")'}}]\n", "the pattern", "RE2"),
        (
            f"version: 1\nrules: [{RULE}, when: '‸sesion.steps > 1'}}]\n",
            "'sesion.steps'",
            "did you mean 'session.steps'",
        ),
        (
            "version: 1\nrules: [{name: a, tools: [x, write_file], require: {confidence: 0.9}, when: ‸confidence < 0.9}]\n",
            "'confidence'",
            "obligations",
        ),
        (f"version: 1\nrules: [{RULE}, args: {{‸pth: x}}}}]\n", "unknown argument 'pth'", "did you mean 'path'"),
        (f"version: 1\nrules: [{RULE}, args: {{‸path: 3}}}}]\n", "the int '3'", "type string"),
        (f"version: 1\nrules: [{RULE}, args: {{path: ‸[a]}}}}]\n", "a list of 1", "{in: […]}"),
        (f"version: 1\nrules: [{RULE}, args: {{path: ‸}}}}]\n", "nothing", "!given.NAME"),
        (f"version: 1\nrules: [{RULE}, args: {{‸text: {{under: x}}}}}}]\n", "`under` for 'text'", "is none"),
        (f"version: 1\nrules: [{RULE}, provenance: {{path: {{‸any: [tol]}}}}}}]\n", "the source 'tol'", "tool:NAME"),
        (f"version: 1\nrules: [{RULE}, host: ‸{{in: [a.example]}}}}]\n", "`host` for write_file", "`url`"),
        (
            "version: 1\nrules: [{name: a, tools: [http_request], host: ‸{in: ['https://a.example/']}, decide: auto}]\n",
            "the host",
            "without scheme",
        ),
        (
            "version: 1\nrules: [{name: a, tools: [http_request], args: {‸method: GTE}, decide: auto}]\n",
            "'GTE'",
            "did you mean 'GET'",
        ),
        (
            "version: 1\nrules: [{name: a, tools: [tickets], args: {‸urgent: on}, decide: auto}]\n",
            "the str 'on'",
            "type boolean",
        ),
        ("version: 1\nuse: ‸[read-onyl]\n", "library file 'read-onyl'", "did you mean 'read-only'"),
        (
            "version: 1\nrules: []\ntests: [{tool: ‸write_fil, args: {}, expect: auto}]\n",
            "unknown tool 'write_fil'",
            "did you mean 'write_file'",
        ),
        (
            "version: 1\nrules: []\ntests: [{tool: notify, args: {‸titel: x}, expect: auto}]\n",
            "unknown argument 'titel'",
            "did you mean 'title'",
        ),
        (
            "version: 1\nrules: []\ntests: [{tool: notify, args: {title: x}, given: {huor: ‸3}, expect: auto}]\n",
            "unknown fact 'huor'",
            "did you mean 'hour'",
        ),
        (
            "version: 1\nrules: []\ntests: [{tool: notify, args: {title: x}, given: {hour: ‸x}, expect: auto}]\n",
            "'x'",
            "type int",
        ),
        (
            "version: 1\nrules: []\ntests: [{tool: notify, args: {title: x}, expect: ‸auto}]\n",
            "a test that fails",
            "auto, as the test says",
        ),
        (
            "version: 1\nrules: []\ntests: [{tool: notify, args: {title: x}, expect: ‸allow}]\n",
            "'allow'",
            "auto, escalate or deny",
        ),
    ],
)
def test_each_mistake_is_an_error_with_its_place(workspace, text, found, expected):
    before, _, after = text.partition("‸")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    problems = problems_of(workspace, before + after)
    match = [problem for problem in problems if found in problem.found and expected in problem.expected]
    assert match, "\n".join(map(str, problems))
    assert (match[0].line, match[0].column) == (line, column), str(match[0])
    assert match[0].file == "policies/policy0.yaml"


def test_all_mistakes_of_all_files_come_at_once(workspace):
    with pytest.raises(Problems) as caught:
        workspace.load(
            "version: 1\nrules: [{name: a, tools: [write_file], decide: maybe}, {name: b, tool: x, decide: auto}]\n",
            "version: 3\nrules: []\n",
        )
    assert {problem.file for problem in caught.value.problems} == {"policies/policy0.yaml", "policies/policy1.yaml"}
    assert len(caught.value.problems) >= 4


def test_caret_stands_under_the_mistake_in_a_block(workspace):
    (problem,) = problems_of(
        workspace,
        """\
        version: 1
        rules:
          - name: a
            tools: [write_file]
            when: |
              args.path == 'x' &&
                args.txt == 'y'
            decide: auto
        """,
    )
    text, caret = str(problem).splitlines()[1:]
    assert text[caret.index("^") :].startswith("args.txt")


def test_words_that_yaml_takes_for_booleans_stay_words(workspace):
    policies = workspace.rules(
        "{name: a, tools: [notify], args: {level: NO}, decide: auto}",
        "{name: b, tools: [notify], args: {level: on}, decide: deny}",
    )
    assert decide(policies, "notify", {"title": "x", "level": "NO"}).decision == "auto"
    assert decide(policies, "notify", {"title": "x", "level": "on"}).decision == "deny"


def test_bytes_that_are_not_text_are_refused_with_their_place(workspace):
    workspace.write("").write_bytes(b"version: 1\nrules: [\xff]\n")
    with pytest.raises(Problems) as caught:
        workspace.load()
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (2, 9)


def test_ten_megabytes_of_rules_are_refused_unread(workspace):
    rule = "  - {name: n, tools: [notify], decide: auto}\n"
    problems = problems_of(workspace, "version: 1\nrules:\n" + rule * (10_000_000 // len(rule)))
    assert len(problems) == 1
    assert f"{BYTES_MAX:,}" in problems[0].expected


def test_a_bomb_of_anchors_is_refused_at_the_first(workspace):
    bomb = "a: &a [x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    (problem,) = problems_of(workspace, bomb)
    assert "anchor" in problem.found


def test_what_was_never_closed_is_told_by_where_it_begins(workspace):
    (problem,) = problems_of(workspace, "version: 1\nrules: [\n  {name: a}\n")
    assert "in line 2" in problem.found


def test_deep_nesting_is_refused(workspace):
    problems = problems_of(workspace, "version: 1\nrules: " + "[" * 5_000 + "]" * 5_000)
    assert any("levels" in problem.found or "depth" in problem.found for problem in problems), problems


def test_a_directory_that_is_missing_empty_or_unreadable_is_an_error(workspace, tmp_path):
    for path, word in ((tmp_path / "gone", "a directory of them"), (tmp_path / "empty", "no policy file")):
        if word == "no policy file":
            path.mkdir()
        with pytest.raises(Problems, match=word):
            load_policies([path], SIGNATURES, workspace=tmp_path)
    if os.geteuid():
        path = workspace.write("version: 1\nrules: []\n")
        path.chmod(0)
        with pytest.raises(Problems, match="uid"):
            workspace.load()
    link = tmp_path / "policies" / "link.yaml"
    link.symlink_to("nowhere")
    with pytest.raises(Problems, match="a link to nowhere, where nothing is"):
        workspace.load()
    link.unlink()
    (tmp_path / "policies" / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(Problems, match="symbolic links"):
        workspace.load()


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_library_file_loads_and_is_tested(path: Path, tmp_path):
    policies = load_policies([path], SIGNATURES, workspace=tmp_path)
    (document,) = policies.documents
    assert document.tests
    assert {test.expect for test in document.tests} >= (
        {"escalate"}
        if path.stem == "business-hours"
        else {"escalate", "deny"}
        if path.stem == "egress"
        else {"auto", "escalate", "deny"}
    )


def test_library_is_used_by_name_and_counts_into_the_digest(workspace):
    alone = workspace.load("version: 1\nrules: []\n")
    both = workspace.load("version: 1\nuse: [read-only]\nrules: []\n")
    assert set(both.files) == {"policies/policy0.yaml", "library/read-only.yaml"}
    assert both.digest != alone.digest
    assert decide(both, "read_file", {"path": "inbox/x.log"}).decision == "auto"


def test_the_library_fits_the_tools_that_perdure_has(tmp_path):
    from perdure.daemon.config import load_config
    from perdure.daemon.tools.registry import tool_specs
    from perdure.daemon.workspace import signatures

    (tmp_path / "perdure.toml").write_text("")
    for name in ("inbox", "policies", "tasks"):
        (tmp_path / name).mkdir()
    tools = signatures(tool_specs(load_config(tmp_path)))
    policies = load_policies([LIBRARY], tools, workspace=tmp_path)
    assert [
        lint for lint in lints(policies) if lint.code in {"no-tool", "unreachable", "missing-test", "no-tests"}
    ] == []
