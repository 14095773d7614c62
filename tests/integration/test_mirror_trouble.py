"""A mirror that dies or hangs in the middle of a pull: real clients complete it all the same."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from aiohttp import web
from parts import require
from rig.engine import engine, pull
from rig.mirror_site import DOCKERS, Site, mirror_site
from supernode_rig import layer_tree

from imgdist.demo.containerd import Containerd, installs
from imgdist.demo.processes import wait_until

pytestmark = pytest.mark.timeout(170)

CLIENTS = ("containerd 1", "containerd 2", "docker")
TROUBLES = ("dies", "is gone", "hangs")
QUICK = {("containerd 2", "is gone"), ("containerd 1", "hangs"), ("docker", "dies")}


class Half:
    """The node's read of the one layer stops in the middle until it is let go."""

    def __init__(self, site: Site) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._layer = max(site.registry.blobs.values(), key=len)
        self._site = site
        site.registry.always = self._fault

    async def _fault(self, request: web.Request) -> web.StreamResponse | None:
        by_node = request.headers["User-Agent"].startswith("imgdist/")
        if self.reached.is_set() or not by_node or request.method != "GET" or "/blobs/" not in request.path:
            return None
        if self._site.registry.blobs[request.path.rpartition("/")[2]] is not self._layer:
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(self._layer))})
        await response.prepare(request)
        await response.write(self._layer[: len(self._layer) // 2])
        self.reached.set()
        await asyncio.to_thread(self.go.wait)
        await response.write(self._layer[len(self._layer) // 2 :])
        return response


class Pull(threading.Thread):
    """A pull by one of CLIENTS, under way."""

    def __init__(self, site: Site, directory: Path, client: str) -> None:
        super().__init__()
        self._site, self._directory, self._client = site, directory, client
        self.problem: object = "it did not end"
        self.start()

    def run(self) -> None:
        try:
            if self._client == "docker":
                mirrors = [f"http://{self._site.mirror}", f"http://{self._site.registry.host}"]
                with engine(self._directory / "d", **{"registry-mirrors": mirrors}) as socket:
                    self.problem = pull(socket, DOCKERS, "1")[-1].get("error")
            else:
                install = next(one for one in installs() if one.major == int(self._client[-1]))
                with Containerd(install, self._directory / "c") as containerd:
                    self._site.tell(containerd)
                    containerd.pull(f"{self._site.reference}:1")
                self.problem = None
        except Exception as error:
            self.problem = error


@pytest.mark.parametrize(
    ("client", "trouble"),
    [
        pytest.param(client, trouble, marks=() if (client, trouble) in QUICK else pytest.mark.full)
        for trouble in TROUBLES
        for client in CLIENTS
    ],
)
def test_a_mirror_that(client: str, trouble: str, tmp_path: Path) -> None:
    """Gone is the whole agent, so that nobody listens any more; else its holder starts it again."""
    if client == "docker":
        require(shutil.which("dockerd"), "dockerd (docker.io)")
    else:
        require(any(one.major == int(client[-1]) for one in installs()), f"{client}.x")
    require(os.geteuid() == 0, "root")
    large = layer_tree(7, 200)
    with mirror_site(tmp_path / "m", (large,), large, "watchdog_s=2") as site:
        _pull_through_trouble(site, tmp_path, client, trouble)


def _pull_through_trouble(site: Site, tmp_path: Path, client: str, trouble: str) -> None:
    half = Half(site)
    pulling = Pull(site, tmp_path, client)
    try:
        assert half.reached.wait(60), pulling.problem
        if trouble == "dies":
            site.agent.kill_child("agent")
        elif trouble == "is gone":
            site.agent.kill()
        else:
            os.kill(site.agent.child("agent"), signal.SIGSTOP)
            wait_until(lambda: "gives no sign of life" in site.agent.log(), "the holder's patience", 20)
    finally:
        half.go.set()
        pulling.join()
    assert pulling.problem is None, pulling.problem
