"""Bad input and bad surroundings at the command line: the right exit code, and one line that helps."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from parts import require
from rig.images import Workshop, busybox_layer

from imgdist.demo.agent import IMGDIST, Supernode
from imgdist.demo.ports import free_port
from imgdist.demo.registry import registry

_LIMIT_S = 30.0


def imgdist(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*IMGDIST, *map(str, arguments)], capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )


def check_refusal(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Exit code as said; the last line on stderr names what is wrong in our words, no traceback before it."""
    assert done.returncode == code, f"exit {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr and done.stdout == ""
    line = done.stderr.strip().splitlines()[-1]
    missing = [word for word in words if word.lower() not in line.lower()]
    assert not missing, f"{missing} not named in: {line}"


@contextmanager
def answering(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Iterator[str]:
    """A web server that answers every request alike; its "host:port"."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """The test's output is the commands'."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class World:
    """A supernode, and registries of which only one works."""

    supernode: Supernode
    works: str
    down: str
    denies: str
    forbids: str
    no_registry: str
    broken: str

    def preheat(self, reference: str) -> subprocess.CompletedProcess[str]:
        return imgdist("preheat", "--wait", "--supernode", self.supernode.url, "--", reference)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require(Path("/bin/busybox").exists() and shutil.which("docker-registry"), "busybox-static and docker-registry")
    place = tmp_path_factory.mktemp("n")
    with ExitStack() as parts:
        works = parts.enter_context(registry(place / "registry", f"127.0.0.1:{free_port()}"))
        Workshop(place / "images", works).push("there", [busybox_layer()])
        down = f"127.0.0.1:{free_port()}"
        challenge = {"WWW-Authenticate": 'Basic realm="private"'}
        others = [
            parts.enter_context(answering(401, b"{}", challenge)),
            parts.enter_context(answering(403, b"{}")),
            parts.enter_context(answering(200, b"<html>hello</html>", {"Content-Type": "text/html"})),
            parts.enter_context(answering(500, b"oops")),
        ]
        daemon = Supernode(place / "s", f"127.0.0.1:{free_port()}", plain_http=[works, down, *others])
        parts.enter_context(daemon)
        yield World(daemon, works, down, *others)


@pytest.mark.parametrize(
    "reference", ["", "upper/CASE", "a b", "x:tag:tag", "host.io/x@sha256:short", "-x/../y", "x" * 300]
)
def test_malformed_reference_is_wrong_usage(world: World, reference: str) -> None:
    check_refusal(world.preheat(reference), 2, "reference")


def test_unknown_image_and_tag_name_what_was_not_found(world: World) -> None:
    check_refusal(world.preheat(f"{world.works}/nobody/made:1"), 1, f"{world.works}/nobody/made", "404")
    check_refusal(world.preheat(f"{world.works}/there:2"), 1, f"{world.works}/there", "2", "404")
    absent = "sha256:" + "0" * 64
    check_refusal(world.preheat(f"{world.works}/there@{absent}"), 1, absent)


def test_registry_that_is_down_is_named(world: World) -> None:
    check_refusal(world.preheat(f"{world.down}/x:1"), 1, world.down)


def test_registry_that_denies_is_told_from_one_without_the_image(world: World) -> None:
    check_refusal(world.preheat(f"{world.denies}/x:1"), 1, world.denies, "credentials")
    check_refusal(world.preheat(f"{world.forbids}/x:1"), 1, world.forbids, "403")


def test_web_server_is_no_registry(world: World) -> None:
    check_refusal(world.preheat(f"{world.no_registry}/x:1"), 1, world.no_registry)


def test_registry_with_server_errors_is_named_with_its_status(world: World) -> None:
    check_refusal(world.preheat(f"{world.broken}/x:1"), 1, world.broken, "500")


def test_supernode_still_works_after_all_that(world: World) -> None:
    done = world.preheat(f"{world.works}/there:1")
    assert done.returncode == 0, done.stderr


def test_supernode_that_is_down_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    check_refusal(imgdist("preheat", "--supernode", url, "busybox"), 1, url)


def test_agent_that_is_down_is_named_with_its_socket(tmp_path: Path) -> None:
    for command in ("status", "layers", "images"):
        check_refusal(imgdist(command, "--run", tmp_path), 1, str(tmp_path / "api.sock"))


def test_supernode_refuses_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = imgdist("supernode", "--root", tmp_path / "r", "--listen", address)
        check_refusal(done, 1, address, "another process")


def test_supernode_refuses_a_chunk_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = f"127.0.0.1:{free_port()}"
        done = imgdist("supernode", "--root", tmp_path / "r", "--listen", listen, "--chunk-listen", address)
        check_refusal(done, 1, address, "another process")


@pytest.mark.parametrize("daemon", ["supernode", "agent"])
def test_root_that_cannot_be_written_is_named(daemon: str, tmp_path: Path) -> None:
    """Below a file, which stops root too."""
    require(os.geteuid() == 0, "root")
    (tmp_path / "file").write_text("")
    root = tmp_path / "file/root"
    flags = ["--run", tmp_path / "run"] if daemon == "agent" else ["--listen", f"127.0.0.1:{free_port()}"]
    check_refusal(imgdist(daemon, "--root", root, *flags), 1, str(root))


def test_socket_path_too_long_is_refused_with_the_limit(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    run = tmp_path / ("r" * 120)
    done = imgdist("agent", "--root", tmp_path / "root", "--run", run)
    check_refusal(done, 1, str(run), "107", "--run")


def test_plain_listener_off_loopback_wants_to_be_allowed(tmp_path: Path) -> None:
    done = imgdist("supernode", "--root", tmp_path / "r", "--listen", f"0.0.0.0:{free_port()}")
    check_refusal(done, 2, "0.0.0.0", "allow")


@pytest.mark.parametrize("daemon", ["supernode", "agent"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense = 1\n", ("nonsense",)),
        ("[convert]\nthreads = 0\n", ("convert.threads", "0")),
        ('[convert]\nthreads = "two"\n', ("convert.threads", "two")),
        ('log_format = "xml"\n', ("log_format", "xml")),
        ("root = \n", ()),
    ],
)
def test_wrong_configuration_names_file_key_and_value(
    daemon: str, text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    check_refusal(imgdist(daemon, "--config", file), 2, str(file), *words)
    check_refusal(imgdist(daemon, "--config", tmp_path / "absent.toml"), 2, str(tmp_path / "absent.toml"))


def test_wrong_setting_and_wrong_flag_are_wrong_usage() -> None:
    check_refusal(imgdist("agent", "--set", "fill.quiet_s=-1"), 2, "fill.quiet_s", "-1")
    check_refusal(imgdist("agent", "--set", "no.such=1"), 2, "no.such")
    check_refusal(imgdist("agent", "--set", "fill"), 2, "fill")
    for arguments in (("agent", "--bogus"), ("bogus",), ("preheat",), ("agent", "--supernode", "ftp://x")):
        done = imgdist(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


def test_nothing_is_bound_by_a_refused_daemon(tmp_path: Path) -> None:
    """A wrong configuration is found before the first directory or socket is made."""
    imgdist("agent", "--root", tmp_path / "root", "--run", tmp_path / "run", "--set", "fill.quiet_s=-1")
    assert list(tmp_path.iterdir()) == []
