"""The installed command is found again by the path by which it was called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TOP = Path(__file__).parents[2]


def test_a_symlink_to_a_release_stays_one(tmp_path: Path) -> None:
    """As pip makes it: the script's first line names the release's own directory."""
    script = tmp_path / "release-1/bin/imgdist"
    script.parent.mkdir(parents=True)
    says = "from imgdist import command; print(*command.installed())"
    script.write_text(f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(_TOP)!r})\n{says}\n")
    script.chmod(0o755)
    (tmp_path / "current").symlink_to("release-1")
    called = subprocess.run(["current/bin/imgdist"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert called.stdout.strip() == str(tmp_path / "current/bin/imgdist")
    module = subprocess.run([sys.executable, "-c", says], cwd=_TOP, capture_output=True, text=True, check=True)
    assert module.stdout.strip() == f"{sys.executable} -m imgdist.cli"
