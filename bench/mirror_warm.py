"""One client of a mirror whose node has the blob, beside nginx with the same file: both over loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.mirror_crowd import MIRROR
from bench.report import Row
from bench.swarm_rig import Rig
from imgdist.demo.image import Image
from imgdist.demo.processes import Process, command
from imgdist.demo.push import push

GOAL = 0.7
_ROUNDS = 5
_NGINX_PORT = 8099
_CONFIG = """daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/error.log;
events {{ }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root};
  uwsgi_temp_path {root}; scgi_temp_path {root};
  server {{ listen 127.0.0.1:{port}; root {root}/files; }}
}}
"""


def warm(rig: Rig, image: Image) -> list[Row]:
    """Read the first layer of `image` on the first node of `rig`, by turns from either. Raises ImgdistError."""
    push(image, rig.registry, "warm", "bench")
    [layer, *_] = image.layers
    mirror = f"http://{MIRROR}/v2/warm/blobs/{layer.digest}?ns={rig.registry}"
    inside = rig.spokes[0].inside
    with (
        rig.agents(rig.spokes[:1], mirror_listen=MIRROR),
        _nginx(rig.directory / "nginx", image.path(layer), inside) as nginx,
    ):
        cold = _read(inside, mirror)
        rates: dict[str, list[float]] = {mirror: [], nginx: []}
        for _ in range(_ROUNDS):
            for url, seen in rates.items():
                seen.append(_read(inside, url))
    ours, theirs = median(rates[mirror]), median(rates[nginx])
    return [
        Row("warm: mirror / nginx", ours / theirs, GOAL, at_least=True),
        Row("warm: mirror", ours / 1e6, unit="MB/s"),
        Row("warm: nginx", theirs / 1e6, unit="MB/s"),
        Row("cold: mirror, nothing here or at the supernode", cold / 1e6, unit="MB/s"),
    ]


def _read(inside: tuple[str, ...], url: str) -> float:
    """Bytes per second of one read."""
    told = command(
        *inside, "curl", "--silent", "--fail", "--output", "/dev/null", "--write-out", "%{speed_download}", url
    )
    return float(told)


@contextmanager
def _nginx(root: Path, file: Path, inside: tuple[str, ...]) -> Iterator[str]:
    """nginx that serves `file`; its URL."""
    (root / "files").mkdir(parents=True)
    shutil.copyfile(file, root / "files" / "blob")
    config = root / "nginx.conf"
    config.write_text(_CONFIG.format(root=root, port=_NGINX_PORT))
    with Process(
        "nginx", [*inside, "nginx", "-c", str(config), "-e", str(root / "error.log")], root / "log"
    ) as process:
        url = f"http://127.0.0.1:{_NGINX_PORT}/blob"
        process.wait_until(lambda: (root / "nginx.pid").exists())
        yield url
