"""What every daemon does around its work."""

from __future__ import annotations

import subprocess
import sys

FAULT = """
import threading
from imgdist import daemon

def work():
    raise MemoryError

daemon.configure_logging("json")
daemon.end_with_threads()
threading.Thread(target=work, name="worker").start()
threading.Event().wait(60)
"""


def test_a_thread_that_ends_by_a_fault_ends_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, timeout=30, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert b"thread worker cannot go on" in line and b"MemoryError" in line
