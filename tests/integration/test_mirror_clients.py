"""Real registry clients pull by tag, by digest, an index and zstd layers through one node's mirror.

What they get is what was pushed; the registry is read once for all of them. Podman, crane and oras: `--matrix full`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_registry import digest_of
from parts import require
from rig.engine import engine, pull
from rig.mirror_site import DOCKERS, Site, mirror_site
from supernode_rig import layer_tree

from imgdist.demo.cache import cache_directory
from imgdist.demo.containerd import Containerd, Install, installs
from imgdist.demo.processes import command

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require(os.geteuid() == 0, "root")
    shared = layer_tree(1, 20)  # a base layer that both registries have: each has to show it, once
    with mirror_site(tmp_path_factory.mktemp("m"), (shared, layer_tree(2, 60)), shared) as made:
        yield made


@pytest.fixture(autouse=True)
def _read_once(site: Site) -> Iterator[None]:
    """Whoever pulled before, in whatever order the tests run: nobody but the node asks the registry, and each manifest
    and blob is read once."""
    yield
    others = [asked for asked in site.registry.log if not asked.headers["User-Agent"].startswith("imgdist/")]
    assert others == []
    assert {path: times for path, times in site.reads().items() if times > 1} == {}


def _known(major: int) -> Install | None:
    return next((install for install in installs() if install.major == major), None)


@pytest.mark.parametrize("major", [1, 2])
def test_containerd(site: Site, tmp_path: Path, major: int) -> None:
    install = _known(major)
    require(install, f"containerd {major}.x")
    assert install is not None
    with Containerd(install, tmp_path / "c") as containerd:
        site.tell(containerd)
        for name in (":1", f"@{site.manifest}"):
            containerd.pull(site.reference + name)
        listed = containerd.ctr("images", "list")
        content = containerd.ctr("content", "list", "--quiet").split()
    assert site.index in listed and site.manifest in listed
    assert {site.index, site.manifest, *site.blobs()} <= set(content) | ({*site.blobs()} if major == 1 else set())


def test_a_snapshotter_that_is_told_nothing_but_chain_ids_takes_over_what_the_mirror_served(
    site: Site, tmp_path: Path
) -> None:
    """Without any configuration but the snapshotter's: no annotations, and nobody has resolved the image before."""
    install = _known(2)
    require(install, "containerd 2.x")
    assert install is not None
    with Containerd(install, tmp_path / "c", snapshotter=site.agent.run / "snapshotter.sock") as containerd:
        site.tell(containerd)
        containerd.pull(f"{site.reference}:1")
        states = site.agent.states()
        containerd.ctr("images", "rm", "--sync", f"{site.reference}:1")
    assert len(states) == 2 and not {"plain", "failed"} & set(states.values()), states


def test_skopeo(site: Site, tmp_path: Path) -> None:
    require(shutil.which("skopeo"), "skopeo")
    settings = ["--insecure-policy", "--registries-conf", str(site.registries(tmp_path / "r.conf"))]
    for number, source in enumerate((f"{site.reference}:1", f"{site.reference}@{site.manifest}", f"{site.in_path}:1")):
        target = tmp_path / str(number)
        words = ["copy", "--all", "--src-tls-verify=false", f"docker://{source}", f"dir:{target}"]
        command("skopeo", *settings, *words)
        raw = (target / "manifest.json").read_bytes()
        assert digest_of(raw) == (site.manifest if "@" in source else site.index)
        for digest in site.blobs():
            assert digest_of((target / digest.removeprefix("sha256:")).read_bytes()) == digest


def test_docker(site: Site, tmp_path: Path) -> None:
    """It asks mirrors for docker.io alone, and 20.10 knows no zstd."""
    with engine(tmp_path / "d", **{"registry-mirrors": [f"http://{site.mirror}"]}) as socket:
        for name in ("1", site.dockers):
            said = pull(socket, DOCKERS, name)
            assert "error" not in said[-1], said
            assert any(word.get("status", "").startswith("Digest: ") for word in said), said


@pytest.mark.full
def test_podman(site: Site, tmp_path: Path) -> None:
    require(shutil.which("podman"), "podman")
    environment = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(site.registries(tmp_path / "r.conf"))}
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    words = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    words += ["--events-backend", "file", "--cgroup-manager", "cgroupfs", "--tmpdir", str(tmp_path / "tmp")]
    for name in (":1", f"@{site.manifest}"):
        pulled = ["pull", "--signature-policy", str(tmp_path / "policy.json"), site.reference + name]
        command("podman", *words, *pulled, env=environment)
    shown = command("podman", *words, "images", "--digests", "--no-trunc", env=environment)
    assert site.manifest in shown or site.index in shown


@pytest.mark.full
def test_crane(site: Site, tmp_path: Path) -> None:
    crane = shutil.which("crane", path=f"{cache_directory() / 'crane'}:{os.environ['PATH']}")
    require(crane, "crane (scripts/parts clients)")
    assert crane is not None
    assert command(crane, "digest", f"{site.in_path}:1").strip() == site.index
    command(crane, "pull", "--format", "oci", f"{site.in_path}:1", str(tmp_path / "o"))
    for digest in (site.index, site.manifest, *site.blobs()):
        assert digest_of((tmp_path / "o/blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()) == digest


@pytest.mark.full
def test_oras(site: Site) -> None:
    require(importlib.util.find_spec("oras"), "oras (make clients)")
    client = importlib.import_module("oras.client").OrasClient(insecure=True, tls_verify=False)
    container = client.get_container(f"{site.in_path}@{site.manifest}")
    manifest = client.get_manifest(container, ["application/vnd.oci.image.manifest.v1+json"])
    assert manifest == json.loads(site.registry.manifests[site.manifest][1])
    for digest in site.blobs():
        assert digest_of(client.get_blob(container, digest).content) == digest
