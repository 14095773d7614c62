"""What transfers count for the agent's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_WAIT_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 60)


class Figures:
    """Counters with their label children kept: a look-up by label costs as much as the count itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bytes = Counter(
            "imgdist_chunk_bytes",
            "Bytes of verified chunks that came in, as received (dedup: raw)",
            ["source"],
            registry=registry,
        )
        self._shared = Counter(
            "imgdist_dedup_shared_bytes",
            "Of the bytes copied from other packs, those that take no disk space of their own (reflinks)",
            registry=registry,
        )
        self._rejected = Counter(
            "imgdist_chunk_rejected",
            "Chunks refused: wrong digest or broken encoding",
            ["source", "reason"],
            registry=registry,
        )
        self._repeated = Counter(
            "imgdist_chunk_repeated_bytes",
            "Bytes of chunks that had come from another source already, as received",
            ["source"],
            registry=registry,
        )
        self._refused = Counter(
            "imgdist_disk_refused_bytes",
            "Bytes of verified chunks that the disk did not take: readers had them from memory",
            registry=registry,
        )
        self._hedges = Counter(
            "imgdist_hedges",
            "Second requests for a chunk that a reader waits for: asked, and won (first with it)",
            ["result"],
            registry=registry,
        )
        self._read_wait = Histogram(
            "imgdist_read_wait_seconds",
            "How long a read of the view waited for a chunk, from its arrival here to the answer",
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._by_source = {kind: self._bytes.labels(kind) for kind in ("dedup", "peer", "supernode")}

    def landed(self, source: str, count: int) -> None:
        """A verified chunk of `count` bytes came from a source of this kind."""
        self._by_source[source].inc(count)

    def shared(self, count: int) -> None:
        """A chunk of `count` bytes shares its blocks with another pack."""
        self._shared.inc(count)

    def repeated(self, source: str, count: int) -> None:
        """A chunk of `count` bytes came from a source of this kind, too late."""
        self._repeated.labels(source).inc(count)

    def refused(self, count: int) -> None:
        """The disk did not take a chunk of `count` bytes."""
        self._refused.inc(count)

    def hedge_asked(self) -> None:
        """A second source was asked."""
        self._hedges.labels("asked").inc()

    def hedge_won(self) -> None:
        """It brought the chunk first."""
        self._hedges.labels("won").inc()

    def rejected(self, source: str, reason: str) -> None:
        """A chunk was refused for `reason`: digest or encoding; or an answer: protocol."""
        self._rejected.labels(source, reason).inc()

    def waited(self, seconds: float) -> None:
        """A reader was answered."""
        self._read_wait.observe(seconds)
