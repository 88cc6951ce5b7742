"""Policies and tasks that are links: into a checkout, or into a directory that is exchanged as a whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.daemon.stage import POLICY, Stage

from perdure.daemon import reloading
from perdure.daemon.reloading import Reloader
from perdure.daemon.timer import Timer
from perdure.state.events import Event

REPORT = "\n  - {do: write_file, args: {path: reports/a.md, text: 'all well'}}\n"
OTHER = POLICY.replace("[write_file, append_file, remember], decide: auto", "[write_file], decide: deny")


@pytest.mark.parametrize("link", ["file", "directory", "exchanged"])
async def test_an_edit_behind_a_link_is_in_force_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.05)
    stage, outside = Stage(tmp_path / "workspace"), tmp_path / "outside"
    policies = stage.directory / "policies"
    outside.mkdir()
    stage.playbook("report", REPORT, tools="write_file")
    if link == "file":
        (policies / "policy.yaml").rename(outside / "policy.yaml")
        (policies / "policy.yaml").symlink_to(outside / "policy.yaml")
    else:
        policies.rename(outside / "one")
        (outside / "current").symlink_to("one")
        policies.symlink_to(outside / "current")
    async with stage.runtime() as runtime:
        loaded = asyncio.Event()

        def saw(events: tuple[Event, ...]) -> None:
            if any(event.type == "configuration.loaded" and event.body["kind"] == "policies" for event in events):
                loaded.set()

        runtime.ledger.subscribe(saw)
        assert (await stage.run(runtime, "report")).status == "unverified"
        watching = asyncio.create_task(Reloader(runtime, Timer(runtime, lambda: None, pytest.fail)).run())
        if link == "exchanged":  # as a deployment does it: a new directory, and one rename
            (outside / "two").mkdir()
            (outside / "two" / "policy.yaml").write_text(OTHER)
            (outside / "next").symlink_to("two")
            (outside / "next").replace(outside / "current")
        else:
            (outside / ("policy.yaml" if link == "file" else "one/policy.yaml")).write_text(OTHER)
        async with asyncio.timeout(60):
            await loaded.wait()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert (await stage.run(runtime, "report")).status == "failed"
