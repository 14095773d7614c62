"""Link, containerd's configuration, CRI, interrupts, and what scripts/parts installs."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import require

from imgdist.demo import cri, machine
from imgdist.demo.containerd import BUILT_VERSION, configuration
from imgdist.demo.copy import program
from imgdist.demo.image import ImageWriter, tiny_image
from imgdist.demo.interrupts import interrupted_once, shielded
from imgdist.demo.link import Link
from imgdist.demo.push import push
from imgdist.demo.registry import registry
from imgdist.demo.start import Meter
from imgdist.errors import UnsupportedError

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def link() -> Iterator[Link]:
    require(os.geteuid() == 0 and shutil.which("tc"), "root and iproute2")
    with Link() as made:
        yield made


def test_registry_behind_a_shaped_link(link: Link, tmp_path: Path) -> None:
    require(shutil.which("docker-registry"), "docker-registry")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(os.urandom(2_000_000))
    image = tiny_image(tmp_path / "image", busybox)
    with registry(tmp_path / "registry", f"{link.far}:5000", inside=link.inside) as address:
        reference, digest = push(image, address, "a/b", "1")
        assert (reference, digest) == (f"{address}/a/b:1", image.manifest.digest)
        link.shape(40_000_000)
        before = link.received_bytes()
        with Meter(link.received_bytes) as meter:
            connection = http.client.HTTPConnection(address)
            connection.request("GET", f"/v2/a/b/blobs/{image.layers[0].digest}")
            content = connection.getresponse().read()
            connection.close()
        seconds = meter.samples[-1][0]
        received = link.received_bytes() - before
        link.unshape()
    assert content == image.path(image.layers[0]).read_bytes()
    assert received >= len(content) and received < len(content) * 1.1
    # 2 MB less one burst at 5 MB/s; a loaded machine only makes it longer.
    assert seconds > (len(content) - 256 * 1024) / 5e6
    assert meter.bytes_at(seconds) == meter.samples[-1][1]
    assert 0 < meter.bytes_at(seconds / 2) < meter.samples[-1][1]


def test_the_link_leaves_nothing(link: Link) -> None:
    with Link() as other:
        assert other.namespace != link.namespace
        device, namespace = other._device, Path(f"/run/netns/{other.namespace}")
        assert namespace.exists()
    assert not namespace.exists()
    assert not Path(f"/sys/class/net/{device}").exists()


def _shipped(file: str) -> dict[str, Any]:
    return tomllib.loads((PROJECT / "deploy/containerd" / file).read_text())


@pytest.mark.parametrize(("major", "file"), [(1, "imgdist-1.6.toml"), (2, "imgdist-2.toml")])
def test_containerd_is_configured_as_the_shipped_file_says(major: int, file: str) -> None:
    shipped = _shipped(file)
    address = shipped["proxy_plugins"]["imgdist"]["address"]
    exports = shipped["proxy_plugins"]["imgdist"].get("exports", {}).get("root")
    ours = tomllib.loads(configuration(major, Path("/d"), Path(address), Path(exports) if exports else None))
    assert ours["version"] == shipped["version"]
    assert ours["proxy_plugins"] == shipped["proxy_plugins"]
    for plugin, table in shipped["plugins"].items():
        assert ours["plugins"][plugin] | table == ours["plugins"][plugin]


def test_plain_containerd_has_no_proxy() -> None:
    for major in (1, 2):
        assert "proxy_plugins" not in tomllib.loads(configuration(major, Path("/d"), None, None))


def test_cri_request_is_protobuf() -> None:
    # PullImageRequest{image: ImageSpec{image: "a:1"}} as protoc encodes it.
    assert cri._field(1, cri._field(1, b"a:1")) == bytes.fromhex("0a050a03613a31")
    assert cri._field(1, b"x" * 200)[:3] == bytes([0x0A, 0xC8, 0x01])


def test_the_first_signal_interrupts_and_later_ones_do_not_cut_clean_up_short(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = False
    with pytest.raises(KeyboardInterrupt), interrupted_once():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned = True
    assert cleaned
    assert "cleaning up" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_shield_delivers_the_signal_at_its_end() -> None:
    """Though another thread takes it."""
    reached, over = False, threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    with contextlib.ExitStack() as undo:
        undo.callback(other.join)
        undo.callback(over.set)
        undo.enter_context(pytest.raises(KeyboardInterrupt))
        undo.enter_context(interrupted_once())
        with shielded():
            os.kill(os.getpid(), signal.SIGINT)
            over.wait(0.2)  # it would be interrupted
            reached = True
        pytest.fail("the signal was lost")
    assert reached


def test_the_script_installs_what_the_demo_would_and_the_version_it_looks_for() -> None:
    script = (PROJECT / "scripts/parts").read_text()
    listed = re.search(r'^DEMO="([^"]+)"', script, re.MULTILINE)
    assert listed is not None
    assert set(machine.PACKAGES.values()) | set(machine.COPY_PACKAGES.values()) <= set(listed[1].split())
    assert f"CONTAINERD_VERSION={BUILT_VERSION}\n" in script


def test_without_root_the_demo_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnsupportedError, match="root"):
        machine.check()


def test_an_interpreter_that_would_wait_for_input_is_given_something_to_say(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"x")
    assert program(tiny_image(tmp_path / "shell", busybox)) == ("/bin/sh", "-c", "echo started")
    server = ImageWriter(tmp_path / "server").finish(command=["/bin/sh", "-c", "serve"])
    assert program(server) == ()
