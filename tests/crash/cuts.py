"""Power cuts of a real kernel: an ext4 file system on a loop device is shut down at a random instant, without flushing its
journal (EXT4_IOC_SHUTDOWN, NOLOGFLUSH), mounted again and recovered. The observer's log lies on another file system."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import traceback
from pathlib import Path

from perdure.errors import PerdureError

from .agents import Agent, Observer
from .checks import violations
from .matrix import ROOT
from .progress import Progress

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NOLOGFLUSH = 2
ROUNDS = 400  # of actions: more than a run gets done before it is cut off
INSTANT_SECONDS_MAX = 0.6


def missing() -> str | None:
    """Why no real power cut can be made here; None: it can."""
    if os.geteuid() != 0:
        return "only root may mount and shut down a file system"
    for program in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    try:
        Disk().close()
    except (subprocess.CalledProcessError, OSError) as error:
        return f"no loop device can be mounted ({error})"
    return None


class Disk:
    """A small ext4 file system on a loop device, whose power can be cut."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="perdure-cut-", dir=ROOT))
        self.image, self.at = self.root / "image", self.root / "mounted"
        self.at.mkdir()
        with self.image.open("wb") as file:
            file.truncate(48 << 20)
        try:
            _quietly("mkfs.ext4", "-q", "-F", self.image)
            self.mount()
        except BaseException:
            shutil.rmtree(self.root)
            raise

    def mount(self) -> None:
        _quietly("mount", "-t", "ext4", "-o", "loop", self.image, self.at)

    def cut(self) -> None:
        """What had not reached the disk by now never will."""
        directory = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(directory)

    def unmount(self) -> None:
        _quietly("umount", self.at)

    def close(self) -> None:
        if os.path.ismount(self.at):
            self.unmount()
        shutil.rmtree(self.root)


def explore(agent: type[Agent], *, cuts: int, seed: int, progress: Progress) -> tuple[int, list[str]]:
    """(cuts that came while the agent was at work, broken promises)."""
    chance = random.Random(seed)
    happened, failures = 0, []
    for number in progress.over(range(cuts), cuts):
        disk = Disk()
        try:
            found = _one(agent, disk, chance.uniform(0, INSTANT_SECONDS_MAX))
        finally:
            disk.close()
        if found is not None:
            happened += 1
            failures += [f"cut {number}: {text}" for text in found]
            progress.broken = len(failures)
    return happened, failures


def _one(agent: type[Agent], disk: Disk, instant: float) -> list[str] | None:
    state, log = disk.at / "state", disk.root / "observer"
    state.mkdir()
    agent(state, Observer(log), rounds=0).run()
    os.sync()  # the ledger was there before: what is cut off is work, not its creation
    child = os.fork()
    if child == 0:
        _work(agent, state, log)
    signal.setitimer(signal.ITIMER_REAL, instant + 0.001)
    signal.sigwait({signal.SIGALRM})
    # First the program stands still, as it does when the power goes. A program that runs on while the file system is shut
    # down is told by some of its calls that all is well.
    os.kill(child, signal.SIGSTOP)
    _, status = os.waitpid(child, os.WUNTRACED)
    disk.cut()
    if finished := not os.WIFSTOPPED(status):
        assert os.waitstatus_to_exitcode(status) == 0
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    disk.unmount()
    disk.mount()
    if finished:
        return None
    try:
        observer = Observer(log)
        agent(state, observer, rounds=0).run()
        observer.close()
    except PerdureError as error:
        return [f"it does not start again: {error}"]
    return violations(state, Observer(log))


def _work(agent: type[Agent], state: Path, log: Path) -> None:
    code = 1
    try:
        agent(state, Observer(log), rounds=ROUNDS).run()
        code = 0
    except (PerdureError, OSError):
        code = 3  # the disk is gone
    except BaseException:  # noqa: BLE001 - a child never goes on in its parent's code
        traceback.print_exc()
    finally:
        os._exit(code)


def _quietly(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # for sigwait
