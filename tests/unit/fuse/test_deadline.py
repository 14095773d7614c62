"""What the view says of its deadline at the start, beside the kernel's limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse import deadline


@pytest.mark.parametrize(
    ("hung_s", "most_s", "default_s", "deadline_s", "expected"),
    [
        (120, None, None, 60.0, (True, "after 60 s (kernel: hung-task watch 120 s, limit of FUSE requests none)")),
        (0, 0, 0, 0.0, (True, "held for ever (kernel: hung-task watch none, limit of FUSE requests none)")),
        (30, 0, 0, 60.0, (False, "kernel.hung_task_timeout_secs")),
        (120, 0, 0, 0.0, (False, "kernel.hung_task_timeout_secs")),
        (120, 40, 0, 60.0, (False, "limit of FUSE requests 40 s: it ends the session")),
        (120, 0, 40, 60.0, (False, "fs.fuse.*_request_timeout")),
        (120, 90, 40, 60.0, (False, "limit of FUSE requests 40 s")),
        (120, 90, 0, 60.0, (True, "limit of FUSE requests 90 s")),
        (120, 5, 0, 10.0, (True, "limit of FUSE requests 15 s")),
    ],
)
def test_the_deadline_is_held_against_the_kernels_limits(
    tmp_path: Path,
    hung_s: int,
    most_s: int | None,
    default_s: int | None,
    deadline_s: float,
    expected: tuple[bool, str],
) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "fs/fuse").mkdir(parents=True)
    (tmp_path / "kernel/hung_task_timeout_secs").write_text(f"{hung_s}\n")
    for name, value in (("max", most_s), ("default", default_s)):
        if value is not None:
            (tmp_path / f"fs/fuse/{name}_request_timeout").write_text(f"{value}\n")
    bounded, line = deadline.in_words(deadline_s, tmp_path)
    assert bounded is expected[0] and expected[1] in line, line


def test_a_kernel_without_any_of_them(tmp_path: Path) -> None:
    assert deadline.in_words(60.0, tmp_path)[0]
