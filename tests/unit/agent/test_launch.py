"""From a configuration to the holder's plan: what is refused and how, what each child is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import launch
from imgdist import config
from imgdist.config import AgentConfig, RegistryConfig, RegistryHost, SupernodeConfig
from imgdist.config.agent import ReadConfig, SpaceConfig, SwarmConfig
from imgdist.config.conversion import ConvertConfig
from imgdist.config.registries import AccessConfig
from imgdist.errors import ConfigError, ImgdistError, UnsupportedError


class Became(Exception):
    """execve, which a test must not survive otherwise."""


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the process would have become; as root, on a machine that has everything."""
    seen: dict[str, Any] = {}

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        seen.update(path=path, arguments=arguments, environment=environment, plan=json.loads(arguments[-1]))
        raise Became

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(launch, "missing_features", list)
    return seen


def made(directory: Path, **settings: Any) -> AgentConfig:
    return AgentConfig(root=str(directory / "root"), run=str(directory / "run"), **settings)


def launched(became: dict[str, Any], configured: AgentConfig) -> dict[str, Any]:
    with pytest.raises(Became):
        launch.main(configured, launch.Given())
    plan: dict[str, Any] = became["plan"]
    return plan


def test_one_command_serves_one_machine_with_a_supernode_of_its_own(tmp_path: Path, became: dict[str, Any]) -> None:
    plan = launched(became, made(tmp_path, plain_http=("reg:5000",), stop_timeout_s=7.0))
    assert [child["role"] for child in plan["children"]] == ["supernode", "view", "agent"]
    assert plan["sockets"].pop() == {"name": "mirror", "tcp": "127.0.0.1:7650", "type": "stream"}
    assert {item["name"]: (item["path"], item["type"]) for item in plan["sockets"]} == {
        "snapshotter": (f"{tmp_path}/run/snapshotter.sock", "stream"),
        "api": (f"{tmp_path}/run/api.sock", "stream"),
        "view": (f"{tmp_path}/run/view.sock", "seqpacket"),
        "holder": (f"{tmp_path}/run/holder.sock", "seqpacket"),
        "supernode": (f"{tmp_path}/run/supernode.sock", "stream"),
        "chunks": (f"{tmp_path}/run/chunks.sock", "stream"),
    }
    assert (plan["run"], plan["root"], plan["fuse"]) == (f"{tmp_path}/run", f"{tmp_path}/root", True)
    assert plan["stop_timeout_s"] == 7.0
    assert (tmp_path / "root").is_dir() and list((tmp_path / "run").iterdir()) == []


def test_the_supernode_of_its_own_understands_what_it_is_told(tmp_path: Path, became: dict[str, Any]) -> None:
    """Its command line, read back by the same code that reads it at its start."""
    settings = AgentConfig(
        root=str(tmp_path),
        run=str(tmp_path),
        plain_http=("a", "b:1"),
        log_format="json",
        registry=RegistryConfig(
            docker_config='/x "y".json',
            allow=("a/*", "b"),
            hosts={"r:1": RegistryHost(plain_http=True, mirrors=("https://m/p",), rewrite={'a "b"': "c/"})},
        ),
        access=AccessConfig(shared=("a/*",), outage_s=0),
        convert=ConvertConfig(threads=5),
        space=SpaceConfig(high=0.5, low=0.4),
    )
    words = launched(became, settings)["children"][0]["argv"]
    assert words[:4] == [sys.executable, "-m", "imgdist.cli", "supernode"]
    flags = list(zip(words[4::2], words[5::2], strict=True))
    told = config.load(
        SupernodeConfig,
        None,
        tuple(value for flag, value in flags if flag == "--set"),
        {
            "plain_http": tuple(value for flag, value in flags if flag == "--plain-http"),
            **{flag[2:].replace("-", "_"): value for flag, value in flags if flag not in ("--set", "--plain-http")},
        },
    )
    assert told.access == settings.access
    assert (told.registry, told.convert, told.plain_http) == (settings.registry, settings.convert, ("a", "b:1"))
    assert (told.space.high, told.space.low) == (0.5, 0.4)
    assert told.listen == f"unix://{tmp_path}/supernode.sock" and told.root == f"{tmp_path}/supernode"


def test_the_agent_gets_its_whole_configuration_with_absolute_paths(
    tmp_path: Path, became: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = launched(became, AgentConfig(root="r", run="n", supernode=("http://s:1",)))
    assert [child["role"] for child in plan["children"]] == ["view", "agent"]
    *_, settings, how = plan["children"][-1]["argv"]
    told = msgspec.json.decode(settings, type=AgentConfig)
    assert (told.root, told.run, how) == (f"{tmp_path}/r", f"{tmp_path}/n", "lazy")
    assert told.snapshotter_socket == f"{tmp_path}/n/snapshotter.sock"
    assert launch.supernode_urls(told) == ("http://s:1",)
    assert launch.supernode_urls(msgspec.structs.replace(told, supernode=())) == (
        f"unix://{tmp_path}/n/supernode.sock",
    )


def test_with_supernodes_of_others_a_port_for_other_agents_is_held(tmp_path: Path, became: dict[str, Any]) -> None:
    peer = {"name": "peer", "tcp": "127.0.0.1:7651", "type": "stream"}
    assert peer in launched(became, made(tmp_path, supernode=("http://s:1",)))["sockets"]
    for told, meant in {":7000": "0.0.0.0:7000", "http://[::]:7000": "[::]:7000"}.items():
        configured = made(tmp_path, supernode=("http://s:1",), peer_listen=told, allow_plain=True)
        assert peer | {"tcp": meant} in launched(became, configured)["sockets"]
    alone = [
        made(tmp_path),
        made(tmp_path, supernode=("http://s:1",), swarm=SwarmConfig(enabled=False)),
    ]
    for configured in alone:
        assert peer not in launched(became, configured)["sockets"]


def test_the_view_keeps_the_configured_deadline(tmp_path: Path, became: dict[str, Any]) -> None:
    plan = launched(became, made(tmp_path, read=ReadConfig(deadline_s=4.5)))
    view = plan["children"][1]["argv"]
    assert view[view.index("--deadline") + 1] == "4.5"


@pytest.mark.parametrize(
    ("made_before", "kept", "optimized"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_view_and_agent_do_without_docstrings_where_that_costs_no_start(
    made_before: bool,
    kept: bool,
    optimized: bool,
    tmp_path: Path,
    became: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PYTHONOPTIMIZE", "PYTHONPYCACHEPREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", not kept)
    if made_before:
        (tmp_path / "bytecode").mkdir()
    children = launched(became, made(tmp_path))["children"]
    found = {child["role"]: child["environment"].get("PYTHONOPTIMIZE") for child in children}
    assert found == {"supernode": None} | dict.fromkeys(("view", "agent"), "2" if optimized else None)
    kept_at = {child["environment"].get("PYTHONPYCACHEPREFIX") for child in children[1:]}
    assert kept_at == {str(tmp_path / "bytecode") if optimized else None}


def test_outside_of_a_virtual_environment_docstrings_stay(
    tmp_path: Path, became: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONOPTIMIZE", raising=False)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    children = launched(became, made(tmp_path))["children"]
    assert all("PYTHONOPTIMIZE" not in child["environment"] for child in children)


def test_bytecode_without_docstrings_is_made_where_it_is_looked_for(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    path = os.pathsep.join([str(Path(launch.__file__).parent.parent), *filter(None, sys.path)])
    environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [tmp_path / "bin/python", "-m", "agent.bytecode"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=60)
    made = {path.name.split(".")[0] for path in (tmp_path / "bytecode").rglob("*.opt-2.pyc")}
    assert {"app", "lazynode", "view", "connector", "selectors"} <= made


def test_a_view_that_holds_reads_has_no_deadline(tmp_path: Path, became: dict[str, Any]) -> None:
    plan = launched(became, made(tmp_path, read=ReadConfig(on_no_source="hold")))
    (view,) = [child["argv"] for child in plan["children"] if child["role"] == "view"]
    assert view[view.index("--deadline") + 1] == "0"


def test_a_machine_without_fuse_gets_an_agent_that_says_so(
    tmp_path: Path, became: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "missing_features", lambda: ["fuse"])
    plan = launched(became, made(tmp_path))
    assert [child["role"] for child in plan["children"]] == ["agent"] and plan["fuse"] is False
    assert plan["children"][0]["argv"][-1] == "plain"
    assert capsys.readouterr().err == "imgdist: no fuse on this machine: every image is pulled the ordinary way\n"


def test_modules_come_from_this_release_whatever_lies_in_the_current_directory(
    tmp_path: Path, became: dict[str, Any]
) -> None:
    launched(became, made(tmp_path))
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/__init__.py").write_text("raise SystemExit(9)")
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    script = [became["path"], *became["arguments"][1:-1], "no plan"]
    ran = subprocess.run(script, cwd=tmp_path, env=became["environment"], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 2 and ran.stderr.startswith("holder: expected one argument, the plan as JSON")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"supernode": ("ftp://x",)}, ConfigError, "--supernode ftp://x"),
        ({"supernode": ("http://nowhere",)}, ConfigError, "host:port"),
        ({"supernode": ("http://s:1",), "peer_listen": "0.0.0.0:7651"}, ConfigError, "--allow-plain"),
        ({"supernode": ("http://s:1",), "peer_listen": "unix:///p"}, ConfigError, "expected host:port"),
        ({"supernode": ("http://s:1",), "peer_listen": "7651"}, ConfigError, "--peer-listen 7651"),
        ({"mirror_listen": "0.0.0.0:7650"}, ConfigError, "--allow-plain"),
        ({"mirror_listen": "unix:///m"}, ConfigError, "expected host:port"),
        ({"mirror_listen": "7650"}, ConfigError, "--mirror-listen 7650"),
        ({"supernode": ("http://s:1",), "peer_advertise": "a:1"}, ConfigError, "--peer-advertise a:1"),
        ({"supernode": ("http://s:1",), "zone": "rack\n1"}, ConfigError, "--zone"),
        ({"require_agreement": 2}, ConfigError, "require_agreement = 2: expected as many supernodes, found 0"),
        ({"supernode": ("http://s:1", "http://s:1"), "require_agreement": 2}, ConfigError, "found 1"),
        ({"root": "/tmp/a:b"}, ConfigError, "without :"),
        ({"root": "/tmp/a,b"}, ConfigError, "without ,"),
        ({"root": "/proc/nothing"}, ImgdistError, "/proc/nothing: expected a writable directory"),
        ({"run": "/proc/nothing"}, ImgdistError, "/proc/nothing: expected a writable directory"),
        ({"snapshotter_socket": "/" + "x" * 107}, ImgdistError, "at most 107 bytes, got 108"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    tmp_path: Path, became: dict[str, Any], settings: dict[str, Any], error: type[ImgdistError], words: str
) -> None:
    plain = {"root": str(tmp_path / "root"), "run": str(tmp_path / "run")}
    with pytest.raises(error, match=words) as raised:
        launch.main(AgentConfig(**{**plain, **settings}), launch.Given())
    assert raised.value.exit_code == (2 if error is ConfigError else 1)
    assert became == {}


def test_only_root_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnsupportedError, match="running as user 1000") as raised:
        launch.main(AgentConfig(), launch.Given())
    assert raised.value.exit_code == 3
