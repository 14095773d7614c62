"""The command line: exit codes, one line for each mistake, documents on stdout and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from imgdist import cli
from imgdist.api import JsonApi
from imgdist.errors import DeclinedError, TemporaryError, UnsupportedError, UsageError

Run = Callable[..., tuple[int, str, str]]

LAYER = {
    "digest": "sha256:" + "a" * 64,
    "state": "filling",
    "size_bytes": 2_000_000,
    "present_bytes": 1000,
    "sources": {"supernode": 70_000},
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line; (exit code, stdout, stderr). A daemon that would begin is an error instead: it would take
    this process's place, and this machine's own directories."""

    def began(program: str, *_: object) -> NoReturn:
        raise AssertionError(f"{program} was to run in place of the tests")

    monkeypatch.setattr(os, "execve", began)

    def ran(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return ran


class FakeApi:
    """Stands in for JsonApi: `answers` by path; an exception is raised. `asked` is (url, path, document)."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, str, Any]] = []

    def call(self, api: JsonApi, method: str, path: str, document: Any) -> Any:
        self.asked.append((api._url, path, document))
        answer = self.answers[path]
        answer = answer.pop(0) if isinstance(answer, list) and path.startswith("/v1/layers/") else answer
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    made = FakeApi()
    monkeypatch.setattr(JsonApi, "_call", lambda self, *words: made.call(self, *words))
    return made


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("mount",),
        ("mount", "ref", "/tmp", "--no-such-flag"),
        ("status", "extra"),
        ("agent", "--mirror-listen"),
        ("agent", "--log-format", "xml"),
        ("agent", "--config", "/nonexistent.toml"),
        ("agent", "--set", "fill.nothing=1"),
        ("agent", "--set", "read.deadline_s=1000"),
        ("supernode", "--listen", "nonsense"),
        ("config", "--check", "/nonexistent.toml"),
    ],
)
def test_wrong_usage_is_2_and_binds_nothing(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert code == 2 and out == "" and err.strip()
    assert "Traceback" not in err


def test_help_and_version_are_0_and_quick(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "mount" in out and "supernode" in out
    assert run("--version")[0] == 0
    assert run()[0] == 2
    heavy = "import sys, imgdist.cli; print({'aiohttp', 'rich', 'asyncio', 'zstandard'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TemporaryError("no agent"), 1),
        (DeclinedError("plain"), 1),
        (UsageError("twice"), 2),
        (UnsupportedError("x"), 3),
    ],
)
def test_an_error_is_one_line_and_its_code(run: Run, api: FakeApi, tmp_path: Path, error: Exception, code: int) -> None:
    api.answers["/v1/mounts"] = error
    assert run("mount", "ref", str(tmp_path)) == (code, "", f"imgdist: {error}\n")


def test_interrupted_is_130(run: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(JsonApi, "_call", interrupted)
    code, out, err = run("status")
    assert (code, out, err.strip()) == (130, "", "imgdist: interrupted")


def test_mount_names_the_directory_as_the_agent_sees_it(
    run: Run, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    api.answers = {"/v1/mounts": {}, "/v1/umount": {}}
    assert run("mount", "--rw", "ref", "link", "--run", "run") == (0, "", "")
    assert run("umount", "link", "--run", "run") == (0, "", "")
    url, where = f"unix://{tmp_path}/run/api.sock", str(tmp_path / "real")
    assert api.asked == [
        (url, "/v1/mounts", {"reference": "ref", "directory": where, "writable": True}),
        (url, "/v1/umount", {"directory": where}),
    ]
    code, _, err = run("mount", "ref", "missing")
    assert (code, err) == (2, "imgdist: missing: expected a directory to mount on; make it first\n")


def test_the_run_directory_comes_from_the_environment_too(
    run: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers["/v1/status"] = {}
    monkeypatch.delenv("IMGDIST_RUN", raising=False)
    run("status", "--json")
    monkeypatch.setenv("IMGDIST_RUN", "/elsewhere")
    run("status", "--json")
    assert [url for url, _, _ in api.asked] == ["unix:///run/imgdist/api.sock", "unix:///elsewhere/api.sock"]


def test_a_run_directory_that_no_socket_fits_in_is_a_failure(run: Run) -> None:
    code, out, err = run("status", "--run", "/" + "x" * 120)
    assert code == 1 and out == "" and err.count("\n") == 1 and "too long" in err


@pytest.mark.parametrize("command", ["layers", "images", "peers", "status"])
def test_json_is_the_agents_document_and_nothing_else(run: Run, api: FakeApi, command: str) -> None:
    document: Any = {"lazy": True} if command == "status" else [LAYER]
    api.answers[f"/v1/{command}"] = document
    code, out, err = run(command, "--json")
    assert (code, json.loads(out), err) == (0, document, "")


def test_gc_says_what_goes_and_why_the_rest_stays(run: Run, api: FakeApi) -> None:
    report = {
        "dry_run": True,
        "freed_bytes": 7_000_000,
        "removed": [{"what": "pack", "name": "aa" * 32, "size_bytes": 7_000_000}],
        "kept": [{"pack_id": "bb" * 32, "size_bytes": 9_000_000, "why": "used by a snapshot"}],
        "disk": {"total_bytes": 100, "available_bytes": 50},
    }
    api.answers["/v1/gc"] = report
    code, out, _ = run("gc", "--dry-run")
    assert code == 0 and "used by a snapshot" in out and out.endswith("7.0 MB would be freed\n")
    code, out, err = run("gc", "--frames", "--json")
    assert (code, json.loads(out), err) == (0, report, "")
    assert [asked[2] for asked in api.asked] == [
        {"dry_run": True, "frames": False},
        {"dry_run": False, "frames": True},
    ]


def test_gc_at_a_supernode(run: Run, api: FakeApi) -> None:
    gone = {"pack_id": "aa" * 32, "size_bytes": 7_000_000, "used_at": 1.0, "wanted_by": ""}
    api.answers["/v1/gc"] = {"dry_run": False, "freed_bytes": 7_000_000, "removed": [gone], "kept": []}
    code, out, _ = run("gc", "--supernode", "http://127.0.0.1:7600")
    assert code == 0 and "7.0 MB freed" in out
    assert api.asked == [("http://127.0.0.1:7600", "/v1/gc", {"dry_run": False})]
    assert run("gc", "--supernode", "http://127.0.0.1:7600", "--frames")[0] == 2


def test_an_address_is_no_markup(run: Run, api: FakeApi) -> None:
    api.answers["/v1/peers"] = [{"kind": "peer", "address": "[fe80::1]:7651", "received_bytes": 2_000_000, "swarms": 3}]
    code, out, _ = run("peers")
    assert code == 0 and "[fe80::1]:7651" in out and "2.0 MB" in out


def test_tables_are_for_people(run: Run, api: FakeApi) -> None:
    api.answers = {
        "/v1/layers": [LAYER, {"digest": None, "state": "plain"}],
        "/v1/images": [],
        "/v1/status": {"pid": 7},
    }
    _, out, _ = run("layers")
    assert "a" * 12 in out and "a" * 13 not in out and "2.0 MB" in out and "supernode 0.1 MB" in out
    assert run("images")[0] == run("status")[0] == 0


def image(*states: str) -> dict[str, Any]:
    layers = [{"digest": f"sha256:{number}"} for number, _ in enumerate(states)]
    return {"manifest_digest": "sha256:m", "layers": layers}


def status(state: str, reason: str | None = None) -> dict[str, Any]:
    return {"state": state, "received_bytes": 1, "size_bytes": None, "reason": reason}


def test_preheat_waits_for_every_layer(run: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgdist.cli.packs.POLL_S", 0)
    api.answers = {
        "/v1/status": {"supernodes": ["http://s:1", "http://s:2"]},
        "/v1/resolve": image("a", "b"),
        "/v1/layers/sha256:0": [status("converting"), status("ready")],
        "/v1/layers/sha256:1": [status("ready")],
    }
    code, out, err = run("preheat", "ref", "--wait")
    assert (code, out) == (0, "") and err == "ref: sha256:m, 2 layers\n"
    assert api.asked[1][:2] == ("http://s:1", "/v1/resolve")
    assert api.asked[1][2]["reference"] == "ref" and api.asked[1][2]["platform"].startswith("linux/")


def test_preheat_says_which_layer_cannot_be(run: Run, api: FakeApi) -> None:
    api.answers = {"/v1/resolve": image("a"), "/v1/layers/sha256:0": [status("declined", "a hard link")]}
    code, out, err = run("preheat", "ref", "--wait", "--supernode", "http://s:1")
    assert (code, out, err) == (1, "", "imgdist: ref: layer sha256:0 was not converted: a hard link\n")


def test_config_shows_checks_and_explains(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("config")
    assert code == 0 and "read.deadline_s" in out and "chunk_listen" in out
    assert re.search(r"^  allow_plain +false +", out, re.M), "defaults as a file or --set takes them"
    for daemon in ("agent", "supernode"):
        code, out, _ = run("config", "--defaults", "--daemon", daemon)
        file = tmp_path / f"{daemon}.toml"
        file.write_text(out)
        assert code == 0 and run("config", "--check", str(file)) == (0, f"{file}: right for imgdist {daemon}\n", "")
    file.write_text("[fill]\nquiet_s = -1\n")
    code, out, err = run("config", "--check", str(file))
    assert (code, out) == (2, "") and "fill.quiet_s = -1" in err and err.count("\n") == 1


def test_convert_writes_an_image_and_its_index(run: Run, tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        archive.add(__file__, "etc/word")
    code, out, err = run("convert", str(layer), "-o", str(tmp_path / "out"), "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert {"pack_id", "diff_id", "source_digest", "image_bytes", "chunks", "files", "seconds"} <= document.keys()
    assert (tmp_path / "out/image.erofs").stat().st_size == document["image_bytes"]
    assert (tmp_path / "out/index").stat().st_size > 0
    layer.write_bytes(b"no tar")
    code, out, err = run("convert", str(layer), "-o", str(tmp_path / "out"))
    assert (code, out) == (1, "") and err.count("\n") == 1


def test_convert_names_what_it_cannot_read_or_write(run: Run, tmp_path: Path) -> None:
    code, out, err = run("convert", str(tmp_path / "none"), "-o", str(tmp_path / "out"))
    assert (code, out) == (1, "") and "none: no such file" in err and err.count("\n") == 1
    code, out, err = run("convert", str(tmp_path / "none"), "-o", "/proc/nothing")
    assert (code, out) == (1, "") and err.count("\n") == 1


PACK, OTHER = "b" * 64, "c" * 64
VERIFIED = [
    {"digest": "sha256:" + "a" * 64, "diff_id": "sha256:" + "d" * 64, "pack_id": PACK, "size_bytes": 5},
    {"digest": None, "diff_id": "sha256:" + "e" * 64, "pack_id": OTHER, "size_bytes": 6},
    {"digest": "sha256:" + "f" * 64, "diff_id": None, "pack_id": None, "size_bytes": 7},
]
IMAGE = {"reference": "reg/app:1", "name": "reg/app", "manifest_digest": "sha256:1", "layers": ["sha256:" + "a" * 64]}


def look(outcome: str | None, reason: str = "") -> dict[str, Any]:
    verdict = None if outcome is None else {"outcome": outcome, "reason": reason}
    return {"done_bytes": 1, "total_bytes": 9, "verdict": verdict}


@pytest.mark.parametrize("name", ["reg/app:1", "sha256:1", "sha256:" + "a" * 64, "d" * 12, PACK])
def test_verify_looks_at_what_is_named(run: Run, api: FakeApi, name: str) -> None:
    api.answers = {"/v1/layers": VERIFIED, "/v1/images": [IMAGE], "/v1/proofs": look("proven")}
    code, out, _ = run("verify", name, "--json")
    assert code == 0
    assert [(row["pack_id"], row["outcome"]) for row in json.loads(out)] == [(PACK, "proven")]


def test_verify_waits_and_tells_what_is_wrong(run: Run, api: FakeApi) -> None:
    api.answers = {
        "/v1/layers": VERIFIED,
        "/v1/proofs": look(None),
        f"/v1/proofs/{PACK}": look("partial", "1 of 2 chunks are here, and are right"),
        f"/v1/proofs/{OTHER}": look("false", "it was altered"),
    }
    code, out, _ = run("verify")
    assert code == 1
    assert "partial" in out
    assert "it was altered" in out
    api.answers[f"/v1/proofs/{OTHER}"] = look("proven")
    assert run("verify")[0] == 0
    api.answers[f"/v1/proofs/{OTHER}"] = look("unproven", "no supernode answers")
    assert run("verify")[0] == 1


def test_verify_of_nothing_that_is_here(run: Run, api: FakeApi) -> None:
    api.answers = {"/v1/layers": VERIFIED, "/v1/images": [IMAGE]}
    code, _, err = run("verify", "reg/app:2")
    assert code == 1
    assert err.startswith("imgdist: reg/app:2: expected an image or layer of this node")
    assert run("verify", "f" * 64)[0] == 1, "a layer that has no pack here"
