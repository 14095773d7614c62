"""The supernode's figures, as Prometheus reads them."""

from __future__ import annotations

import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import imgdist
from imgdist.pack import FORMAT_VERSION
from imgdist.proving.verdict import OUTCOMES
from imgdist.wire.messages import Priority
from supernode.tracker.members import Census

_CONVERT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

REGISTRIES_MAX = 200
"""Registries with figures of their own, the first ones; of all others together: whoever may use the registry endpoint
can name any host."""


class Metrics:
    """Counters of one supernode. Also the registry client's Meter."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._registries: set[str] = set()
        self._requests = counter("imgdist_registry_requests", "Requests to registries", "registry", "status")
        self._bytes = counter("imgdist_registry_bytes", "Body bytes from registries", "registry")
        text = "Requests to registries made again, or elsewhere, by reason (docs/registries.md)"
        self._retries = counter("imgdist_registry_retries", text, "registry", "reason")
        text = "Questions whether a client may have something, by answer"
        self._authorised = counter("imgdist_access", text, "answer")
        self._uploads = counter("imgdist_upload_bytes", "Chunk bytes sent, by kind of request", "kind")
        for kind in Priority:
            self._uploads.labels(kind.value)
        text = "Download and conversion of a layer"
        self._convert = Histogram("imgdist_convert_seconds", text, buckets=_CONVERT_BUCKETS, registry=registry)
        self._layers = gauge("imgdist_layers", "Layers by state", "state")
        self._store = gauge("imgdist_store_bytes", "Bytes on disk", "what")
        self._freed = counter("imgdist_space_freed_bytes", "Bytes of packs removed for space")
        self._members = gauge("imgdist_swarm_members", "Agents that the tracker knows")
        text = "Agents whose address answered, so that others are told"
        self._reachable = gauge("imgdist_swarm_members_reachable", text)
        self._swarms = gauge("imgdist_swarms", "Swarms that an agent takes part in")
        self._tracked = counter("imgdist_tracker_messages", "Messages of agents, and agents refused", "kind")
        self._probes = counter("imgdist_tracker_probes", "Looks at agents' addresses", "answered")
        text = "Packs held against their layers, by what came of it"
        self._proved = counter("imgdist_packs_proved", text, "outcome")
        for outcome in OUTCOMES:
            self._proved.labels(outcome)
        self._revoked = gauge("imgdist_packs_revoked", "Packs that no layer is any more")
        text = "Questions about tags: fresh (answered from here), confirmed, moved (or new), stale (no answer came)"
        self._tags = counter("imgdist_tags", text, "outcome")
        for how in ("fresh", "confirmed", "moved", "stale"):
            self._tags.labels(how)
        self._pulls = counter("imgdist_mirror_requests", "Answers to registry clients", "endpoint", "status")
        build = gauge("imgdist_build_info", "Always 1", "version", "format_version", "python")
        build.labels(imgdist.__version__, str(FORMAT_VERSION), platform.python_version()).set(1)

    def request(self, registry: str, status: str) -> None:
        """A registry answered, or did not ("error")."""
        self._requests.labels(self._named(registry), status).inc()

    def received(self, registry: str, size_bytes: int) -> None:
        """Body bytes came from a registry."""
        self._bytes.labels(self._named(registry)).inc(size_bytes)

    def retried(self, registry: str, reason: str) -> None:
        """Something was asked of a registry again, or elsewhere."""
        self._retries.labels(self._named(registry), reason).inc()

    def _named(self, registry: str) -> str:
        if registry in self._registries or len(self._registries) < REGISTRIES_MAX:
            self._registries.add(registry)
            return registry
        return "other"

    def sent(self, kind: str, size_bytes: int) -> None:
        """The chunk server sent bytes of chunks for requests of a kind (`Priority`)."""
        self._uploads.labels(kind).inc(size_bytes)

    def converted(self, seconds: float) -> None:
        """A layer was downloaded and converted."""
        self._convert.observe(seconds)

    def authorised(self, answer: str) -> None:
        """Whether a client may have something was "remembered", "asked" of its registry, or taken to be so during an
        "outage"; "refused": it may not, or nobody knows."""
        self._authorised.labels(answer).inc()

    def freed(self, size_bytes: int) -> None:
        """A pack was removed for space."""
        self._freed.inc(size_bytes)

    def proved(self, outcome: str) -> None:
        """A pack was held against its layer, with one of imgdist.proving.verdict.OUTCOMES."""
        self._proved.labels(outcome).inc()

    def revoked(self, count: int) -> None:
        """So many packs are revoked."""
        self._revoked.set(count)

    def tag_asked(self, outcome: str) -> None:
        """What a tag names was asked (supernode/tags.py says what the outcomes are)."""
        self._tags.labels(outcome).inc()

    def pulled(self, endpoint: str, status: int) -> None:
        """A client of the registry API was answered."""
        self._pulls.labels(endpoint, str(status)).inc()

    def tracked(self, kind: str) -> None:
        """The tracker got a message of a kind, or refused an agent ("refused")."""
        self._tracked.labels(kind).inc()

    def probed(self, answered: bool) -> None:
        """The tracker looked whether an agent answers."""
        self._probes.labels("yes" if answered else "no").inc()

    def exposition(self, layers: dict[str, int], store_bytes: dict[str, int], census: Census) -> bytes:
        """Everything, with the layers by state, the bytes on disk and the swarms' members as they are now."""
        self._members.set(census.members)
        self._reachable.set(census.reachable)
        self._swarms.set(census.swarms)
        for state, count in layers.items():
            self._layers.labels(state).set(count)
        for what, size in store_bytes.items():
            self._store.labels(what).set(size)
        return generate_latest(self._registry)
