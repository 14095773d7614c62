"""Our own daemons as a user starts them: `imgdist supernode` and `imgdist agent`, each with directories of its own."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from imgdist.api import JsonApi
from imgdist.demo import leftovers
from imgdist.demo.ports import free_port
from imgdist.demo.processes import Daemon, Process, command, wait_until

IMGDIST = (sys.executable, "-m", "imgdist.cli")
# The fill of 230 MB at 200 Mbit/s takes 10 s; a busy machine several times that.
COMPLETE_TIMEOUT_S = 180.0


class Supernode(Daemon):
    """A running `imgdist supernode`; a context manager.

    `listen` is "host:port" of the control API (chunk bodies on the next port). `inside` is a command prefix
    (`Link.inside`). `advertise` is the host that agents reach both ports at, where it is not `listen`'s.
    """

    def __init__(
        self,
        root: Path,
        listen: str,
        *,
        plain_http: Sequence[str] = (),
        inside: Sequence[str] = (),
        advertise: str | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        host, _, port = listen.rpartition(":")
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.url = f"http://{advertise or host}:{port}"
        argv = [*inside, *IMGDIST, "supernode", "--root", str(root), "--listen", listen, "--allow-plain"]
        if advertise:
            argv += ["--set", f"chunk_advertise=http://{advertise}:{int(port) + 1}"]
        for registry in plain_http:
            argv += ["--plain-http", registry]
        self._process = Process("supernode", [*argv, *flags], root.with_name(root.name + ".log"), stop_timeout_s=40)

    def preheat(self, reference: str) -> None:
        """`imgdist preheat REF --wait`: returns when every layer is converted. Raises ImgdistError with its reason."""
        command(*IMGDIST, "preheat", reference, "--supernode", self.url, "--wait")

    def trace(self, manifest_digest: str) -> bytes | None:
        """The recorded trace of this manifest's starts (msgpack), None if there is none yet."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        try:
            connection.request("GET", f"/v1/traces/{manifest_digest}")
            response = connection.getresponse()
            return response.read() if response.status == 200 else None
        finally:
            connection.close()


class Agent(Daemon):
    """A running `imgdist agent`; a context manager that also removes the mounts and loop devices that outlive it.

    `directory` (short: unix sockets live in `directory`/run) takes root, run directory and log. `inside` is a command
    prefix (`Spoke.inside`); `peer_listen` is "host:port" for other agents, None: a free port of loopback;
    `mirror_listen` for registry clients, "": none.
    """

    def __init__(
        self,
        directory: Path,
        supernodes: Sequence[str],
        *,
        inside: Sequence[str] = (),
        peer_listen: str | None = None,
        mirror_listen: str = "",
        settings: Sequence[str] = (),
        flags: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.run = directory / "run"
        for path in (self.root, self.run):
            path.mkdir(parents=True, exist_ok=True)
        argv = [*inside, *IMGDIST, "agent", "--root", str(self.root), "--run", str(self.run), "--allow-plain"]
        argv += ["--mirror-listen", mirror_listen]
        argv += ["--set", f"peer_listen={peer_listen or f'127.0.0.1:{free_port()}'}"]
        for url in supernodes:
            argv += ["--supernode", url]
        for setting in settings:
            argv += ["--set", setting]
        self._process = Process("agent", [*argv, *flags], directory / "agent.log", stop_timeout_s=60)

    @property
    def snapshotter(self) -> Path:
        """What containerd's proxy plugin connects to."""
        return self.run / "snapshotter.sock"

    @property
    def api(self) -> JsonApi:
        """The agent's API; an image may take minutes to be there."""
        return JsonApi(f"unix://{self.run}/api.sock", "agent", timeout_s=600.0)

    def get(self, path: str) -> Any:
        """A JSON document of the agent's API."""
        return self.api.get(path)

    def metrics(self) -> str:
        """What Prometheus reads."""
        return self.api.text("/metrics")

    def chunk_bytes(self, source: str) -> int:
        """Bytes of chunks that have come so far from "supernode" or "peer", as they travelled, or from "dedup", raw:
        copied from another layer on this disk."""
        return sum(
            int(sample.value)
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == "imgdist_chunk_bytes_total" and sample.labels["source"] == source
        )

    def mount(self, reference: str, directory: Path) -> None:
        """`imgdist mount`: the image's tree at `directory`, which is made."""
        directory.mkdir(parents=True)
        self.api.post("/v1/mounts", {"reference": reference, "directory": str(directory)})

    def umount(self, directory: Path) -> None:
        """`imgdist umount`."""
        self.api.post("/v1/umount", {"directory": str(directory)})

    def layers(self) -> list[dict[str, Any]]:
        """What `imgdist layers --json` prints: digest, state, size_bytes, present_bytes, sources, ..."""
        found: list[dict[str, Any]] = self.get("/v1/layers")
        return found

    def complete(self) -> bool:
        """Whether no layer is being indexed or filled."""
        return not any(layer["state"] in ("indexing", "filling") for layer in self.layers())

    def wait_complete(self) -> None:
        """Return when the background fill has ended."""
        wait_until(self.complete, "agent: every layer complete", COMPLETE_TIMEOUT_S)

    def stop(self) -> None:
        """SIGTERM; then whatever is still mounted or looped below our directory goes, as a reboot would do."""
        super().stop()
        leftovers.clear(self.directory, leftovers.processes_with(str(self.run)))
        leftovers.unmount_below(self.directory)
