"""A virtual machine that boots one kernel, runs the suite and ends: initramfs, scratch disk, qemu and its console.

The processor is emulated: /dev/kvm inside a machine that is itself virtual may exist and fail, and qemu hangs then.
So nothing that a guest says about time means anything.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packages import Kernel
from root import PACKAGES, PROJECT, PYTHON

QEMU = "qemu-system-x86_64"
_MEMORY_MIB = 2048
_SCRATCH_BYTES = 2 << 30  # sparse
_ATTEMPTS = 3
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)
"""An emulator that crashes before the kernel's first word (seen once in ten boots, qemu 7.2) is started again."""
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in /modules/*; do insmod $module || echo "cannot load $module"; done
mount -t erofs -o ro /dev/vdb /base
mount -t tmpfs none /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/base,upperdir=/over/upper,workdir=/over/work none /new
mount -t ext4 /dev/vda /new/tmp
mount -t fusectl none /sys/fs/fuse/connections
for directory in proc sys dev; do mount --move /$directory /new/$directory; done
ip link set lo up
exec switch_root /new /bin/sh /run-tests
"""
# The kernel's own complaints count: a right answer beside a deadlock report is no success.
_RUN = """export PATH=/bin HOME=/tmp CI=true IMGDIST_KILLS={kills}
export PYTHONPATH={project}:{packages} PYTHONDONTWRITEBYTECODE=1
cd {project}
{python} -m pytest --color=no -p no:cacheprovider --timeout={timeout_s:.0f} -rfE {arguments}
code=$?
dmesg | grep -E 'BUG:|WARNING:|Oops|blocked for more than|general protection' && code=99
echo rc=$code
sync
echo o >/proc/sysrq-trigger
sleep 60
"""

_machines: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Outcome:
    """How a guest ended: its exit code (None: it never said), what it reported, and in a word how it ended."""

    code: int | None
    report: dict[str, str]
    ended: str


def run_script(arguments: Sequence[str], kills: int, timeout_s: float) -> str:
    """What the guest executes once its root is mounted: pytest with `arguments`, none of whose tests may take longer
    than `timeout_s`; `kills` of view and agent each."""
    return _RUN.format(
        project=PROJECT,
        packages=PACKAGES,
        python=PYTHON,
        arguments=shlex.join(arguments),
        kills=kills,
        timeout_s=timeout_s,
    )


def run(kernel: Kernel, root: Path, console: Path, timeout_s: float) -> Outcome:
    """Boot, run, power off; the console goes to the file `console`. Never longer than `timeout_s`."""
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        initramfs, scratch = Path(name) / "initramfs", Path(name) / "scratch"
        _write_initramfs(kernel, Path(name) / "tree", initramfs)
        with scratch.open("wb") as file:
            file.truncate(_SCRATCH_BYTES)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", scratch], check=True)
        status, said = None, ""
        for _ in range(_ATTEMPTS):
            with console.open("wb") as log:
                status = _boot(_command(kernel, initramfs, scratch, root), log, timeout_s)
            said = console.read_text(errors="replace")
            if said or status not in _CRASHES:
                break
    return _outcome(said, f"ended after {timeout_s:.0f} s" if status is None else f"qemu ended with {status}")


def _write_initramfs(kernel: Kernel, tree: Path, target: Path) -> None:
    for directory in ("bin", "proc", "sys", "dev", "base", "over", "new", "modules"):
        (tree / directory).mkdir(parents=True)
    shutil.copy2(_which("busybox"), tree / "bin/busybox")
    for module in kernel.modules:
        shutil.copy2(module, tree / "modules")
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in [tree, *sorted(tree.rglob("*"))])
    with target.open("wb") as file:
        argv = ["busybox", "cpio", "-o", "-H", "newc"]
        subprocess.run(argv, cwd=tree, input=names.encode(), stdout=file, stderr=subprocess.DEVNULL, check=True)


def _command(kernel: Kernel, initramfs: Path, scratch: Path, root: Path) -> list[str]:
    argv = [QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(_MEMORY_MIB), "-smp", "2"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(kernel.image), "-initrd", str(initramfs)]
    argv += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    return argv + _disk("scratch", scratch, "cache=unsafe") + _disk("root", root, "readonly=on")


def _disk(name: str, file: Path, option: str) -> list[str]:
    drive = f"file={file},format=raw,if=none,id={name},{option}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _boot(argv: list[str], log: BinaryIO, timeout_s: float) -> int | None:
    """qemu's exit status, None if it was ended for taking too long."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT) as machine:
        _machines.append(machine)
        try:
            return machine.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            machine.kill()
            _machines.remove(machine)


def kill_all() -> None:
    """End every machine that runs now."""
    for machine in list(_machines):
        machine.kill()


def _outcome(console: str, ended: str) -> Outcome:
    codes = re.findall(r"^rc=(\d+)\r?$", console, re.MULTILINE)
    report = dict(re.findall(r"^kernel: (.+?) = (.+?)\r?$", console, re.MULTILINE))
    if not codes:
        return Outcome(None, report, f"{ended} without a word about its tests")
    return Outcome(int(codes[-1]), report, "passed" if codes[-1] == "0" else f"pytest ended with {codes[-1]}")


def _which(program: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is missing; scripts/parts kernels installs it"
    return found
