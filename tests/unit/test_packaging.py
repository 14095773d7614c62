"""What is shipped: locks that cover what is declared, a wheel that works beside mfusepy, units that systemd accepts."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from parts import require

from imgdist import __version__
from imgdist.config import AgentConfig, SupernodeConfig, load

_TOP = Path(__file__).parents[2]
_DEPLOY = _TOP / "deploy"
_HELP_LIMIT_CPU_S = 0.5  # measured: 0.15 on an idle machine; 0.25 of aiohttp's import must not creep in


def _locked(name: str) -> set[str]:
    text = (_TOP / name).read_text(encoding="utf-8")
    return {_canonical(match) for match in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def _canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", requirement)[0]).lower()


def test_locks_cover_every_declared_dependency() -> None:
    project = tomllib.loads((_TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = {_canonical(item) for item in project["dependencies"]}
    develop = {_canonical(item) for item in project["optional-dependencies"]["dev"]}
    assert runtime - _locked("requirements.lock") == set()
    assert (runtime | develop) - _locked("requirements-dev.lock") == set()


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_locks_name_no_place(name: str) -> None:
    for number, line in enumerate((_TOP / name).read_text(encoding="utf-8").splitlines(), 1):
        assert re.fullmatch(r"[a-z0-9._-]+==[^/]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), f"{name}:{number}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with nothing but the wheel and what requirements.lock names; its bin directory."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", ".*_cache", "dist")
    shutil.copytree(_TOP, source, ignore=ignore)
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place],
        cwd=source,
        capture_output=True,
        text=True,
    )
    require("No module named hatchling" not in built.stderr, "hatchling (make setup)")
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    pip = [place / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", _TOP / "requirements.lock"], check=True)
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    return place / "venv/bin"


def _children_cpu_s() -> float:
    """CPU time of ended children: other work on the machine does not add to it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(installed: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([installed / argv[0], *argv[1:]], cwd=installed, capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_wheel_lives_beside_mfusepy(installed: Path) -> None:
    """The fork of fusepy may not take the name of our room `fuse`, nor we its own."""
    script = "import fuse, mfusepy, fuse.libfuse; print(fuse.__file__); print(mfusepy.FUSE.__module__)"
    done = _run(installed, "python", "-c", script)
    assert done.returncode == 0, done.stderr
    ours, theirs = done.stdout.splitlines()
    assert ours.endswith("/site-packages/fuse/__init__.py") and theirs == "mfusepy"


@pytest.mark.timeout(300)
def test_every_module_of_the_wheel_loads(installed: Path) -> None:
    """Nothing imports what only the development environment has."""
    script = (
        "import importlib, pkgutil\n"
        "for room in ('imgdist', 'supernode', 'agent', 'fuse'):\n"
        "    for module in pkgutil.walk_packages(importlib.import_module(room).__path__, room + '.'):\n"
        "        if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    done = _run(installed, "python", "-W", "error", "-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
def test_command_starts_and_helps_at_once(installed: Path) -> None:
    assert __version__ in _run(installed, "imgdist", "--version").stdout
    took = []
    for _ in range(5):
        start = _children_cpu_s()
        done = _run(installed, "imgdist", "--help")
        took.append(_children_cpu_s() - start)
        assert done.returncode == 0 and "agent" in done.stdout and "supernode" in done.stdout
    assert min(took) < _HELP_LIMIT_CPU_S, f"imgdist --help took {min(took):.2f} s of CPU at best"
    loaded = _run(installed, "python", "-c", "import imgdist.cli, sys; print('\\n'.join(sys.modules))").stdout.split()
    assert not {"aiohttp", "grpclib", "rich", "zstandard", "mfusepy"} & set(loaded)


def test_what_is_installed_can_install_a_node(installed: Path, tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    words = ("--prefix", str(tmp_path), "--containerd", "2")
    assert "next: restart containerd" in _run(installed, "imgdist", "install", *words).stdout
    unit = (tmp_path / "etc/systemd/system/imgdist-agent.service").read_text(encoding="utf-8")
    assert re.search(rf"^ExecStart={installed}/\S*imgdist agent", unit, re.MULTILINE)
    assert "imgdist.toml" in _run(installed, "imgdist", "uninstall", *words[:2]).stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("unit", sorted(path.name for path in _DEPLOY.glob("systemd/*.service")))
def test_systemd_accepts_the_unit(unit: str, tmp_path: Path) -> None:
    """Unknown keys are only printed, with exit code 0: any word is a failure."""
    require(shutil.which("systemd-analyze"), "systemd-analyze (Debian: systemd)")
    text = (_DEPLOY / "systemd" / unit).read_text(encoding="utf-8")
    program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)
    assert program and program[1] == "/opt/imgdist/bin/imgdist"
    (tmp_path / unit).write_text(text.replace(program[1], sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_agent_unit_keeps_its_mounts_visible() -> None:
    """Any of these gives the service a mount namespace: containerd would not see a single layer."""
    text = (_DEPLOY / "systemd/imgdist-agent.service").read_text(encoding="utf-8")
    keys = {line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")}
    assert not {
        key
        for key in keys
        if re.match(r"Private|Protect|ReadOnly|ReadWrite|Inaccessible|Bind|DynamicUser|RootDir", key)
    }
    assert "Before=containerd.service" in text and "Type=notify" in text


def test_example_configurations_are_accepted(tmp_path: Path) -> None:
    """As they stand and with every commented key switched on."""
    for name, kind in (("agent", AgentConfig), ("supernode", SupernodeConfig)):
        file = _DEPLOY / "imgdist" / f"{name}.toml"
        load(kind, str(file))
        full = tmp_path / file.name
        full.write_text(re.sub(r"^# (\w+ = )", r"\1", file.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert load(kind, str(full)) != load(kind, str(file))


def test_containerd_parts_are_toml_and_never_ask_for_rebase() -> None:
    files = sorted(_DEPLOY.glob("containerd/*.toml"))
    assert [file.name for file in files] == ["imgdist-1.6.toml", "imgdist-2.toml"]
    for file in files:
        plugin = tomllib.loads(file.read_text(encoding="utf-8"))["proxy_plugins"]["imgdist"]
        assert plugin["address"] == "/run/imgdist/snapshotter.sock"
        capabilities = plugin.get("capabilities", [])
        assert "rebase" not in capabilities, f"{file.name}: rebase destroys images together with layers on demand"
    assert capabilities == ["remap-ids"]


def test_setup_is_done_once(tmp_path: Path) -> None:
    """With an environment whose stamp fits, `scripts/setup` starts no Python at all."""
    tree = tmp_path / "tree"
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / "scripts").mkdir()
    for name in ("requirements-dev.lock", "pyproject.toml", "scripts/setup"):
        shutil.copy2(_TOP / name, tree / name)
    (tree / ".venv/bin/imgdist").write_text("#!/bin/sh\n")
    (tree / ".venv/bin/imgdist").chmod(0o755)
    stamp = subprocess.run(
        "cat requirements-dev.lock pyproject.toml scripts/setup | sha256sum", shell=True, cwd=tree, capture_output=True
    ).stdout
    (tree / ".venv/.installed").write_bytes(stamp)
    environment = {**os.environ, "PYTHON": "/bin/false"}
    assert subprocess.run([tree / "scripts/setup"], env=environment, check=False).returncode == 0
