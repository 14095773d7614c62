"""The supernode's side of the chunk server process: what it has sent reaches /metrics, across its restarts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from imgdist.wire.address import Address
from supernode.chunkprocess import ChunkProcess
from supernode.metrics import Metrics
from supernode.tracker.members import Census

LIFE = """
import time
print('{"address": "http://127.0.0.1:1"}', flush=True)
print('{"sent": {"demand": 5, "trace": 0, "fill": 100}}', flush=True)
print('{"sent": {"demand": 7, "trace": 0, "fill": 100}}', flush=True)
print('{"sent": {"dem', end="", flush=True)
"""


async def test_uploads_add_up_over_the_lives_of_the_process(tmp_path: Path) -> None:
    metrics = Metrics()
    process = ChunkProcess(tmp_path, Address.parse("127.0.0.1:0"), metrics.sent)
    process._command = [sys.executable, "-c", LIFE]
    running = asyncio.create_task(process.run())

    def sent(kind: str) -> float:
        lines = metrics.exposition({}, {}, Census(0, 0, 0)).decode().splitlines()
        return next(float(line.split()[1]) for line in lines if f'upload_bytes_total{{kind="{kind}"}}' in line)

    assert sent("demand") == 0
    try:
        async with asyncio.timeout(20):
            while sent("demand") < 14:
                assert not running.done()
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert sent("fill") == sent("demand") / 7 * 100
