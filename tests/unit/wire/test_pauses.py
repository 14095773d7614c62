"""A client says when it is about to wait for more of an answer, and only then."""

from __future__ import annotations

import socket
import threading

from imgdist.wire.address import Address
from imgdist.wire.client import ChunkClient, ignore
from imgdist.wire.messages import FRAME_SIZE, Frame, Priority, encode_frame
from imgdist.wire.requests import ChunkRequest
from imgdist.wire.responses import encode_head

BODIES = [bytes([number]) * 50_000 for number in range(3)]


def test_the_thread_tells_before_it_waits() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    events: list[str] = []
    paused = threading.Event()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            frames = [encode_frame(Frame(number, 0, len(body), len(body))) + body for number, body in enumerate(BODIES)]
            head = encode_head(200, sum(map(len, frames)))
            connection.sendall(head + frames[0] + frames[1] + frames[2][: FRAME_SIZE + 1000])
            assert paused.wait(10)
            connection.sendall(frames[2][FRAME_SIZE + 1000 :])
            connection.recv(1)

    def pause() -> None:
        if events[-1:] == ["1"]:
            events.append("pause")
            paused.set()

    thread = threading.Thread(target=answer)
    thread.start()
    client = ChunkClient(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"))
    try:
        request = ChunkRequest("00" * 32, (0, 1, 2), Priority.FILL)

        def chunk(number: int, encoding: int, body: memoryview) -> None:
            assert body == BODIES[number]
            events.append(str(number))

        client.fetch(request, chunk, ignore, ignore, pause)
    finally:
        client.close()
        listener.close()
        thread.join()
    assert events[:4] == ["0", "1", "pause", "2"]
