"""The holder alone: what it hands out, how it restarts and stops children, and how it says what it cannot do."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from parts import require
from viewrig import TOP, read_until, start_holder, wait_ready

from agent import offspring, succession
from agent.succession import State
from imgdist import holder_client

CHILD = """
import json, os, signal, socket, sys
from imgdist import holder_client
holder = holder_client.connect()
out = sys.argv[1]
with open(out + '.fds', 'w') as file:
    json.dump({name: os.fstat(fd).st_mode for name, fd in holder.fds.items()}, file)
def stopped(*_):
    with open(os.path.dirname(out) + '/order', 'a') as file:
        file.write(os.path.basename(out) + ' ')
    os._exit(0)
signal.signal(signal.SIGTERM, stopped)
holder.ready()
os.read(holder.fileno(), 1)
"""


def plan(directory: Path, **children: str) -> dict[str, object]:
    """A plan without FUSE whose children run `children[role]` (Python text)."""
    return {
        "run": str(directory / "run"),
        "root": str(directory / "root"),
        "fuse": False,
        "sockets": [
            {"name": "api", "path": str(directory / "run" / "api.sock"), "type": "stream"},
            {"name": "view", "path": str(directory / "run" / "view.sock"), "type": "seqpacket"},
            {"name": "mirror", "tcp": "127.0.0.1:0", "type": "stream"},
        ],
        "children": [
            {"role": role, "argv": [sys.executable, "-c", code, str(directory / role)]}
            for role, code in children.items()
        ],
        "stop_timeout_s": 0,
    }


@contextlib.contextmanager
def running(made: dict[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    process = start_holder(made)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


def refusal(made: dict[str, object]) -> str:
    """What a holder says that must end by itself with status 1."""
    with running(made) as process:
        said = b"\n".join(read_until(process, b"no such text")).decode()
        assert process.wait(10) == 1, said
        return said


def test_hands_out_descriptors_and_stops_in_reverse_order(tmp_path: Path) -> None:
    with running(plan(tmp_path, supernode=CHILD, view=CHILD, agent=CHILD)) as process:
        assert read_until(process, b"ready")[-1] == b"ready"
        agent = json.loads((tmp_path / "agent.fds").read_text())
        assert set(agent) == {"socket:api", "socket:mirror"}
        assert all(stat.S_ISSOCK(mode) for mode in agent.values())
        assert "socket:view" in json.loads((tmp_path / "view.fds").read_text())
        assert stat.S_IMODE((tmp_path / "run" / "api.sock").stat().st_mode) == 0o600
        process.terminate()
        assert process.wait(10) == 0
    assert (tmp_path / "order").read_text() == "agent view supernode "
    assert not list((tmp_path / "run").glob("*.sock"))


def test_restarts_a_dead_child_and_says_why(tmp_path: Path) -> None:
    marker = tmp_path / "twice"
    dies_once = f"""
import os, signal
from imgdist import holder_client
holder = holder_client.connect()
holder.ready()
if not os.path.exists({str(marker)!r}):
    open({str(marker)!r}, 'w').close()
    os.kill(os.getpid(), signal.SIGKILL)
os.write(2, b'second life\\n')
os.read(holder.fileno(), 1)
"""
    with running(plan(tmp_path, agent=dies_once)) as process:
        said = read_until(process, b"second life")
        assert any(b"agent" in line and b"signal 9" in line and line.endswith(b"again at once") for line in said)
        assert said.count(b"ready") == 1


def test_a_child_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "hung"
    hangs_once = f"""
import os, signal
from imgdist import holder_client
holder = holder_client.connect()
holder.ready()
if not os.path.exists({str(marker)!r}):
    open({str(marker)!r}, 'w').close()
    holder.alive()
    os.kill(os.getpid(), signal.SIGSTOP)
os.write(2, b'second life\\n')
os.read(holder.fileno(), 1)
"""
    with running(plan(tmp_path, view=CHILD, agent=hangs_once) | {"watchdog_s": 0.4}) as process:
        said = b"\n".join(read_until(process, b"second life"))
    assert b"gives no sign of life: killed" in said and b"holder: view" not in said


def test_a_child_that_dies_at_each_start_is_started_ever_later(tmp_path: Path) -> None:
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with running(plan(tmp_path, agent=dies)) as process:
        said = read_until(process, b"in 0.20 s")
    assert [line.rpartition(b"again ")[2] for line in said] == [b"at once", b"in 0.05 s", b"in 0.10 s", b"in 0.20 s"]


def test_child_that_never_starts_ends_the_holder_with_its_status(tmp_path: Path) -> None:
    with running(plan(tmp_path, view=CHILD, agent="import sys; sys.exit('no such root: 3')")) as process:
        said = b"\n".join(read_until(process, b"no such text")).decode()
        assert process.wait(10) == 1
        assert "no such root: 3" in said and "agent does not start" in said


def test_children_end_with_a_killed_holder(tmp_path: Path) -> None:
    with running(plan(tmp_path, agent=CHILD)) as process:
        wait_ready(process)
        pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        gone = os.pidfd_open(pid)
        process.kill()
        try:
            assert select.select([gone], [], [], 10)[0]
        finally:
            os.close(gone)


STEADY = """
import os, signal, sys, time
from imgdist import holder_client
holder = holder_client.connect()
def stopped(*_):
    time.sleep(float(sys.argv[2]))
    with open(os.path.dirname(sys.argv[1]) + '/order', 'a') as file:
        file.write(os.path.basename(sys.argv[1]) + ' ')
    os._exit(0)
signal.signal(signal.SIGTERM, stopped)
if holder.stand_by():
    holder.ready()
    if holder.standby and os.path.basename(sys.argv[1]) == 'new-view':
        holder.settled()
while True:
    signal.pause()
"""


def test_a_stop_in_the_middle_of_an_upgrade_is_one_like_any_other(tmp_path: Path) -> None:
    """The agent first, which needs the view, though that is a new one by then; and with all the time it has."""
    (tmp_path / "run").mkdir()

    def like(name: str, agent_takes_s: float) -> dict[str, object]:
        made = plan(tmp_path) | {"stop_timeout_s": 5}
        holder = {"name": "holder", "path": str(tmp_path / "run/holder.sock"), "type": "seqpacket"}
        takes_s = {"view": 0.0, "agent": agent_takes_s}
        argv = {role: [sys.executable, "-c", STEADY, str(tmp_path / f"{name}-{role}"), str(takes_s[role])]
                for role in takes_s}  # fmt: skip
        children = [{"role": role, "argv": argv[role]} for role in argv]
        return made | {"sockets": [*cast(list[object], made["sockets"]), holder], "children": children}

    with running(like("old", 6.0)) as process:
        assert read_until(process, b"ready")[-1] == b"ready"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(tmp_path / "run/holder.sock"))
            program = [sys.executable, "-m", "agent.holder", json.dumps(like("new", 0.0))]
            client.send(json.dumps({"upgrade": {"argv": program, "environment": {}, "release": "2"}}).encode())
            assert b"has taken over" in read_until(process, b"view: process")[-1]
        process.terminate()  # the old agent does not leave: its successor stands by
        assert process.wait(20) == 0
    assert (tmp_path / "order").read_text() == "new-agent old-agent new-view "


def test_a_child_that_served_before_an_upgrade_failed_is_started_until_it_does_again(tmp_path: Path) -> None:
    """Its first start by the holder that came back is not the first."""
    fails_once = f"""
import os, sys
from imgdist import holder_client
holder = holder_client.connect()
if not os.path.exists({str(tmp_path / "once")!r}):
    open({str(tmp_path / "once")!r}, 'w').close()
    sys.exit('no memory: 8')
holder.ready()
os.write(2, b'serves again\\n')
os.read(holder.fileno(), 1)
"""
    state = State(descriptors=[], children=[], announced=True, before=None, failure="the new agent does not serve")
    with tempfile.TemporaryFile() as memory:
        memory.write(json.dumps(state.told()).encode())
        memory.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.holder", json.dumps(plan(tmp_path, agent=fails_once))],
            cwd=TOP,
            env={**os.environ, succession.VARIABLE: str(memory.fileno())},
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=[memory.fileno()],
        )
        try:
            said = b"\n".join(read_until(process, b"serves again")).decode()
            assert "no memory: 8" in said and said.endswith("serves again")
        finally:
            process.kill()
            process.wait(10)
            assert process.stderr is not None
            process.stderr.close()


def test_names_what_it_cannot_hold(tmp_path: Path) -> None:
    made = plan(tmp_path, agent=CHILD)
    long_path = str(tmp_path / "run" / ("x" * 100))
    made["sockets"] = [{"name": "api", "path": long_path, "type": "stream"}]
    assert long_path in (said := refusal(made)) and "107 bytes" in said

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        made["sockets"] = [{"name": "mirror", "tcp": f"127.0.0.1:{port}", "type": "stream"}]
        assert f"127.0.0.1:{port}" in (said := refusal(made)) and "another process" in said

    (tmp_path / "file").write_text("")
    made = plan(tmp_path, agent=CHILD)
    made["root"] = str(tmp_path / "file" / "root")
    assert made["root"] in (said := refusal(made)) and "writable" in said


def test_second_holder_leaves_the_first_ones_sockets_alone(tmp_path: Path) -> None:
    made = plan(tmp_path, agent=CHILD)
    with running(made) as process:
        wait_ready(process)
        assert "another process listens there" in refusal(made)
        assert (tmp_path / "run" / "api.sock").exists()


def test_takes_over_from_a_killed_holder(tmp_path: Path) -> None:
    """Its stale sockets, and its dead mount, which answers every look with ENOTCONN."""
    require(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse")
    made = plan(tmp_path, agent=CHILD) | {"fuse": True}
    with running(made) as process:
        wait_ready(process)
    with pytest.raises(OSError):
        os.listdir(tmp_path / "run" / "view")
    with running(made) as process:
        wait_ready(process)
        process.terminate()
        assert process.wait(10) == 0
    assert os.listdir(tmp_path / "run" / "view") == []


def test_tells_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with running(plan(tmp_path, agent=CHILD)) as process:
            while (said := manager.recv(100)) != b"READY=1":
                assert said.startswith(b"FDSTORE")
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(10) == 0


def test_both_sides_use_the_same_names() -> None:
    assert (offspring.FD_VARIABLE, offspring.ROLE_VARIABLE) == (holder_client.FD_VARIABLE, holder_client.ROLE_VARIABLE)
    assert offspring.VERSION == holder_client.VERSION
