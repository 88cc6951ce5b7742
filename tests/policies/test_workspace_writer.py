"""Under the shipped workspace-writer, reports are written freely, and nothing that somebody runs or obeys is."""

from __future__ import annotations

import pytest
from policy_tools import Workspace, decide
from test_commands import asked

FREE = "reports/today.md notes/log.txt data/table.csv data/x.json out/chart.svg out/page.html a/b/c/d.md notes/environment.md bins.md"
GOVERNS = "perdure.toml policies policies/x.yaml policies/../policies/x tasks/x.md state/ledger.db STOP a/../tasks/x.md ./policies//x.yaml"
# hidden files, build files, files by their ending, and places in which programs look
OBEYED = """.git .git/config .git/hooks/post-checkout sub/.git/hooks/x .gitattributes .gitmodules .github/workflows/x.yml .bashrc .bash_profile
.zshenv .profile .inputrc .vimrc .exrc .envrc .env .netrc .npmrc .yarnrc.yml .ssh/authorized_keys .ssh/config .config/systemd/user/x.service
.config/fish/config.fish .config/autostart/x.desktop .local/bin/x .direnv/x .tool-versions .vscode/settings.json .idea/workspace.xml
.devcontainer/devcontainer.json .pre-commit-config.yaml .circleci/config.yml .gitlab-ci.yml .cargo/config.toml .mcp.json .cursorrules
.claude/settings.json AGENTS.md docs/CLAUDE.md Makefile makefile sub/GNUmakefile Makefile.am justfile Taskfile.yml Rakefile Gemfile
Dockerfile docker-compose.yml compose.yaml Jenkinsfile Vagrantfile CMakeLists.txt crontab cron.d/x etc/cron.daily/x tox.ini pytest.ini
setup.cfg pyproject.toml setup.py conftest.py Pipfile requirements-dev.txt package.json package-lock.json tsconfig.json vite.config.ts
Cargo.toml build.rs go.mod pom.xml gradlew build.gradle ansible.cfg main.tf bin/x sbin/x node_modules/x/index.html x.sh x.bash x.zsh x.py
x.pyc x.pth x.so x.so.1 x.pl x.rb x.js x.mjs x.ts x.tsx x.php x.lua x.tcl x.el x.vim x.awk x.sed x.R x.ps1 x.bat x.c x.h x.go x.rs x.java
x.kt x.nix x.mk x.jar x.exe x.AppImage x.deb x.rpm x.service x.socket x.timer x.desktop x.rules reports/a/b/run.sh"""


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("writer")).load("version: 1\nuse: [workspace-writer]\n")


@pytest.mark.parametrize(("paths", "expected"), [(FREE, "auto"), (GOVERNS, "deny"), (OBEYED, "escalate")])
@pytest.mark.parametrize("tool", ["write_file", "append_file"])
def test_what_may_be_written(writer, tool, paths, expected):
    decided = {path: decide(writer, tool, {"path": path, "text": "x"}).decision for path in paths.split()}
    assert {path for path, decision in decided.items() if decision != expected} == set()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (["mkdir", "-p", "reports/2026/11"], "auto"),
        (["mkdir", "-pv", "a", "b/c"], "auto"),
        (["mkdir", "-m", "750", "a"], "auto"),
        (["mkdir", "policies/x"], "deny"),
        (["mkdir", "-p", "reports/../tasks/x"], "deny"),
        (["mkdir", "STOP"], "deny"),
        (["mkdir", "reports", "policies/x"], "deny"),
        (["mkdir", "-p", ".git/hooks"], "escalate"),
        (["mkdir", "-p", "sub/.git/hooks"], "escalate"),
        (["mkdir", ".ssh"], "escalate"),
        (["mkdir", "-p", ".config/systemd/user"], "escalate"),
        (["mkdir", "bin"], "escalate"),
        (["mkdir", "-m", "777", "reports/x"], "escalate"),
        (["mkdir", "-m777", "reports/x"], "escalate"),
        (["mkdir", "--mode=a+rwx", "reports/x"], "escalate"),
        (["mkdir", "../x"], "escalate"),
        (["mkdir", "/tmp/x"], "escalate"),
        ("mkdir reports/x", "escalate"),
        ("mkdir $HOME/x", "escalate"),
        ("mkdir x > reports/today.md", "escalate"),
        ("mkdir x && rm -rf reports", "escalate"),
        (["env", "mkdir", "x"], "escalate"),
        (["sh", "-c", "mkdir x"], "escalate"),
    ],
)
def test_which_directories_may_be_made(writer, form, expected):
    assert asked(writer, form) == expected


def test_a_link_to_a_place_that_is_obeyed_is_no_way_round(writer):
    hooks = f"{writer.workspace}/.git/hooks/x"
    assert (
        decide(writer, "write_file", {"path": "link/x", "text": "x"}, paths={"path": (hooks,)}).decision == "escalate"
    )
