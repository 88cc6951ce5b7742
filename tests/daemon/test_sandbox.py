"""A program that a tool starts reaches nothing of the daemon's, leaves nothing behind, and stays within its bounds."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from perdure.daemon.sandbox import landlock
from perdure.daemon.sandbox.grants import root_grants, system_grants
from perdure.daemon.sandbox.programs import Orders, confinement_available, run_program
from perdure.daemon.sandbox.strays import end_strays, find_strays, marks

needs_landlock = pytest.mark.skipif(
    landlock.abi() < 1, reason="this kernel has no Landlock: programs would escalate instead"
)


@pytest.fixture
def place(tmp_path):
    """A workspace with state in it, as the default layout has it."""
    for name in ("state", "policies", "inbox"):
        (tmp_path / name).mkdir()
    (tmp_path / "state/control.token").write_text("the-token")
    (tmp_path / "policies/p.yaml").write_text("version: 1")
    return tmp_path


@pytest.fixture
def run(place):
    """Runs a program with the workspace as its root, state hidden and policies kept."""

    async def run(
        *argv,
        network=False,
        confined=True,
        seconds=60.0,
        output=10_000,
        memory=1_000_000_000,
        stdin=b"",
        action="ACTION1",
        env=None,
    ):
        grants = None
        if confined:
            roots = root_grants([place], [place], hidden=[place / "state"], kept=[place / "policies"])
            grants = (*system_grants(network=network), *roots)
        orders = Orders(
            program=argv[0],
            argv=argv,
            env={"PATH": "/usr/bin:/bin", **(env or {})},
            cwd=str(place),
            grants=grants,
            network=network,
            stdin=stdin,
            seconds_max=seconds,
            output_bytes_max=output,
            memory_bytes_max=memory,
        )
        return await run_program(orders, state_dir=place / "state", action=action)

    return run


@pytest.fixture
def python(run):
    """Runs Python code."""

    async def python(code, **options):
        return await run(sys.executable, "-c", textwrap.dedent(code), **options)

    return python


async def test_exit_code_streams_input_and_environment_are_passed_exactly(python):
    ended = await python(
        "import os, sys; print(sorted(os.environ)); print(sys.stdin.read(), file=sys.stderr); sys.exit(7)",
        stdin=b"hello",
        env={"ONLY": "this"},
    )
    assert ended.exit == 7
    assert (
        ended.stdout.text.strip() == "['LC_CTYPE', 'ONLY', 'PATH', 'PERDURE_ACTION', 'PERDURE_WORKSPACE']"
    )  # LC_CTYPE: Python's own
    assert ended.stderr.text.strip() == "hello"


async def test_a_program_that_is_not_there_never_starts(run):
    ended = await run("/no/such/program")
    assert "No such file" in ended.refused
    assert ended.exit is None


@needs_landlock
@pytest.mark.parametrize("path", ["state/control.token", "inbox/link", "/etc/shadow", "inbox/../state/control.token"])
async def test_a_tool_cannot_read_the_state_or_passwords(run, place, path):
    (place / "inbox/link").symlink_to(place / "state/control.token")
    ended = await run("/bin/cat", path)
    assert ended.exit == 1
    assert "denied" in ended.stderr.text.lower()
    assert "the-token" not in ended.stdout.text


@needs_landlock
async def test_a_tool_cannot_link_or_rename_its_way_to_the_state(python):
    ended = await python(
        """
        import os
        for do in (lambda: os.link("state/control.token", "inbox/x"), lambda: os.rename("state", "inbox/s"),
                   lambda: os.rename("state/control.token", "inbox/x"), lambda: os.symlink("/", "state/root"),
                   lambda: os.unlink("state/control.token"), lambda: os.chroot("state"), lambda: open("inbox/y", "w").close()):
            try:
                do()
                print("done")
            except OSError as error:
                print("refused")
        os.chdir("state")
        try:
            print(open("control.token").read())
        except OSError:
            print("refused")
        """
    )
    said = ended.stdout.text.split()
    assert said[:5] == ["refused"] * 5
    assert said[6:] == ["done", "refused"]  # the last but one is the control: it may write in its root
    assert "the-token" not in ended.stdout.text


@needs_landlock
@pytest.mark.parametrize(
    "path",
    ["policies/p.yaml", "policies/new.yaml", "state/x", "/etc/perdure-test", "/tmp/perdure-test", "/usr/perdure-test"],
)
async def test_a_tool_cannot_write_out_of_its_roots_or_what_governs_perdure(python, place, path):
    ended = await python(f"open({path!r}, 'w').write('x')")
    assert "PermissionError" in ended.stderr.text
    assert (place / "policies/p.yaml").read_text() == "version: 1"
    assert not os.path.lexists(place / path) or path == "policies/p.yaml"


@needs_landlock
async def test_a_tool_writes_in_its_root_and_reads_policies(python, place):
    ended = await python("open('inbox/x', 'w').write(open('policies/p.yaml').read())")
    assert ended.exit == 0
    assert (place / "inbox/x").read_text() == "version: 1"


@needs_landlock
@pytest.mark.parametrize(
    "name", ["environ", "mem", "maps", "fd/0", "root/etc/shadow", "cwd/state/control.token", "auxv"]
)
async def test_a_tool_cannot_look_into_the_daemon(python, name):
    ended = await python(f"open('/proc/{os.getpid()}/{name}', 'rb').read(10)")
    assert ended.exit == 1
    assert "PermissionError" in ended.stderr.text


@needs_landlock
async def test_a_tool_can_neither_signal_nor_limit_nor_trace_the_daemon(python):
    """Nor its own launcher, by whose death it could outlive its time."""
    ended = await python(
        f"""
        import ctypes, os, resource, signal
        libc = ctypes.CDLL(None, use_errno=True)
        daemon = {os.getpid()}
        for do in (lambda: os.kill(daemon, 0), lambda: os.kill(daemon, signal.SIGTERM), lambda: os.kill(-1, signal.SIGCONT),
                   lambda: signal.pidfd_send_signal(os.pidfd_open(daemon), 0),
                   lambda: resource.prlimit(daemon, resource.RLIMIT_NOFILE, (0, 0)), lambda: os.kill(os.getppid(), 0)):
            try:
                do()
                print("done")
            except OSError:
                print("refused")
        print(libc.ptrace(16, daemon, None, None), libc.ptrace(16, os.getppid(), None, None))
        """
    )
    said = ended.stdout.text.split()
    assert said[:5] == ["refused"] * 5
    if landlock.abi() >= 6:
        assert said[5] == "refused"
    assert said[6:] == ["-1", "-1"]


@pytest.mark.skipif(
    not confinement_available(network=False), reason="no Landlock, or no system-call filter for this machine"
)
async def test_without_network_there_is_no_socket_but_netlink(python, place):
    listening = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(place / "inbox/sock"))
    unix.listen()
    with listening, unix:
        code = f"""
            import socket
            def tcp(): socket.create_connection(("127.0.0.1", {listening.getsockname()[1]}), 5).close()
            def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
            def unix(): socket.socket(socket.AF_UNIX).connect("inbox/sock")
            def netlink(): socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            def pair(): socket.socketpair()
            for do in (tcp, udp, unix, netlink, pair):
                try:
                    do()
                    print("done")
                except PermissionError:
                    print("refused")
            """
        assert (await python(code)).stdout.text.split() == ["refused", "refused", "refused", "done", "done"]
        assert (await python(code, network=True)).stdout.text.split() == ["done"] * 5


@needs_landlock
async def test_a_tool_gains_nothing_by_set_user_id_and_keeps_no_power_over_the_kernel(python):
    ended = await python(
        """
        import os
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        # The bounding set counts where root starts programs; others gain nothing by it once NoNewPrivs is set.
        print(status["NoNewPrivs"].strip(), int(status["CapEff"], 16) | (int(status["CapBnd"], 16) if os.getuid() == 0 else 0))
        """
    )
    no_new_privileges, capabilities = ended.stdout.text.split()
    assert no_new_privileges == "1"
    for power in (
        2,
        8,
        16,
        17,
        18,
        19,
        21,
        22,
        38,
        39,
    ):  # read past permissions, modules, raw I/O, chroot, trace, admin, boot, BPF …
        assert not int(capabilities) & (1 << power)


async def test_time_is_bounded_and_everything_the_program_started_ends_with_it(python, place):
    ended = await python(
        """
        import os, subprocess, sys, time
        sleep = [sys.executable, "-c", "import time; time.sleep(@)"]
        subprocess.Popen(sleep)
        subprocess.Popen(sleep, start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:                       # a daemon, in a session of its own, without the mark
                os.execve(sys.executable, sleep, {})
            os._exit(0)
        print("started", flush=True)
        time.sleep(600)
        """.replace("@", OURS),
        seconds=6.0,
    )
    assert ended.cut == "no end after 6 s"
    assert ended.stdout.text.strip() == "started"
    assert not _sleepers()


async def test_what_a_program_leaves_behind_ends_when_it_ends(run):
    ended = await run("/bin/sh", "-c", "sleep @ & setsid sleep @ & env -i sleep @ & echo done".replace("@", OURS))
    assert ended.exit == 0
    assert ended.stdout.text == "done\n"
    assert not _sleepers()


OURS = f"600.{os.getpid()}"  # seconds that no other run of these tests asks for


def _sleepers():
    """The command lines of all processes on this machine that sleep for as long."""
    lines = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip())
            except OSError:
                continue
    return [line for line in lines if f"sleep {OURS}" in line or f"sleep({OURS})" in line]


async def test_cancelling_ends_the_program_first(run, place, eventually):
    task = asyncio.ensure_future(run("/bin/sh", "-c", f"echo > inbox/started; sleep {OURS}", seconds=60.0))
    await asyncio.to_thread(eventually, (place / "inbox/started").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _sleepers()


async def test_output_keeps_beginning_and_end_and_says_what_is_left_out(python):
    ended = await python("print('first'); print('x' * 100_000); print('last')", output=2_000)
    assert ended.exit == 0
    assert ended.stdout.truncated
    assert ended.stdout.text.startswith("first\n")
    assert ended.stdout.text.endswith("last\n")
    assert ended.stdout.total == 100_012
    assert "98012 bytes left out" in ended.stdout.text
    assert len(ended.stdout.text) < 2_100


async def test_a_flood_of_output_ends_the_program(run):
    ended = await run("/usr/bin/yes", seconds=60.0)
    assert "bytes of output" in ended.cut
    assert len(ended.stdout.text) < 11_000


async def test_memory_is_bounded(python):
    ended = await python("x = bytearray(600_000_000)", memory=200_000_000)
    assert ended.exit == 1
    assert "MemoryError" in ended.stderr.text


async def test_a_program_killed_by_a_signal_says_so(run):
    ended = await run("/bin/sh", "-c", "kill -SEGV $$")
    assert ended.signal == signal.SIGSEGV
    assert ended.exit is None


async def test_when_the_launcher_is_killed_the_outcome_is_unknown_and_the_program_ends_too(run, place, eventually):
    task = asyncio.ensure_future(
        run("/bin/sh", "-c", f"echo > inbox/started; sleep {OURS}", seconds=60.0, action="KILLED")
    )
    await asyncio.to_thread(eventually, (place / "inbox/started").exists)
    launcher = min(find_strays(place / "state", "KILLED"), key=lambda stray: (stray.started, stray.pid))
    os.kill(launcher.pid, signal.SIGKILL)
    ended = await task
    assert ended.cut is not None
    assert not _sleepers()


def test_strays_of_a_daemon_that_was_killed_are_found_by_their_mark_and_ended(tmp_path):
    """The daemon here is killed together with its launchers, so that only the mark is left to find the program by."""
    state = tmp_path / "state"
    state.mkdir()
    environment = {**os.environ, **marks(state, "LEFT")}
    stray = subprocess.Popen(["/bin/sleep", "604"], env=environment, start_new_session=True)
    innocent = subprocess.Popen(["/bin/sleep", "604"], env={**os.environ, **marks(tmp_path / "other", "LEFT")})
    try:
        (ended,) = end_strays(state)
        assert (ended.pid, ended.action) == (stray.pid, "LEFT")
        assert stray.wait(timeout=30) == -signal.SIGKILL
        assert innocent.poll() is None
        assert end_strays(state) == []
    finally:
        for process in (stray, innocent):
            process.kill()
            process.wait()


def test_programs_end_when_their_daemon_is_killed(place, eventually):
    """A real daemon process runs a tool and is killed without warning."""
    code = textwrap.dedent(
        f"""
        import asyncio, pathlib
        from perdure.daemon.sandbox.programs import Orders, run_program
        orders = Orders(program="/bin/sh", argv=("/bin/sh", "-c", "echo > inbox/started; (setsid sleep {OURS} &) ; sleep {OURS}"), env={{}},
                        cwd={str(place)!r}, grants=None, network=False, stdin=b"", seconds_max=100, output_bytes_max=1000,
                        memory_bytes_max=10**9)
        asyncio.run(run_program(orders, state_dir=pathlib.Path({str(place / "state")!r}), action="ORPHAN"))
        """
    )
    with subprocess.Popen([sys.executable, "-c", code]) as daemon:
        try:
            eventually((place / "inbox/started").exists)
        finally:
            daemon.kill()
    eventually(lambda: not find_strays(place / "state"))
    assert not _sleepers()


def test_the_daemon_that_looks_for_strays_is_none_even_when_a_tool_started_it(tmp_path):
    """A workspace inside of another's tool: the mark is inherited, and must not lead it to kill itself."""
    code = f"import pathlib; from perdure.daemon.sandbox.strays import end_strays; print(end_strays(pathlib.Path({str(tmp_path)!r})))"
    environment = {**os.environ, **marks(tmp_path, "OUTER")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_root_around_the_state_is_granted_child_by_child(place):
    grants = dict.fromkeys(
        path
        for path, rights in root_grants([place], [place], hidden=[place / "state"], kept=[place / "policies"])
        if rights & landlock.READ_FILE
    )
    assert set(grants) == {str(place / "inbox"), str(place / "policies")}
    written = [
        path
        for path, rights in root_grants([place], [place], hidden=[place / "state"], kept=[place / "policies"])
        if rights & landlock.WRITE_FILE
    ]
    assert written == [str(place / "inbox")]
    assert root_grants([place / "state/undo"], [place / "state"], hidden=[place / "state"], kept=[]) == ()


@needs_landlock
@pytest.mark.parametrize("version", range(1, 8))
def test_older_kernels_confine_files_just_the_same(place, version):
    """Debian 12 has ABI 2. Every ABI up to this kernel's is tried, by handling only what it knew."""
    if version > landlock.abi():
        pytest.skip(f"this kernel has ABI {landlock.abi()}")
    code = f"""
        from perdure.daemon.sandbox import landlock, seccomp
        landlock.abi = lambda: {version}
        from perdure.daemon.sandbox.grants import root_grants, system_grants
        from pathlib import Path
        import os, signal, socket
        place = Path({str(place)!r})
        landlock.drop_capabilities()
        landlock.restrict([*system_grants(network=False), *root_grants([place], [place], hidden=[place / "state"], kept=[])], network=False)
        seccomp.filter_system_calls(network=False, daemon=os.getppid())
        (place / "inbox/x").write_text("fine")
        def read(): (place / "state/control.token").read_text()
        def environ(): Path(f"/proc/{{os.getppid()}}/environ").read_bytes()
        def send(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for do in (read, environ, send, lambda: os.kill(os.getppid(), 0), lambda: (place / "state/x").write_text("x")):
            try:
                do()
                print("done")
            except PermissionError:
                print("refused")
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 5
