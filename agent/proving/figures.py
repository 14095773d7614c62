"""What came of looks at packs, and which are revoked, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from agent.proving.prover import Prover
from agent.withdrawal import Withdrawal
from imgdist.proving.verdict import OUTCOMES


class ProofFigures(Collector):
    """Looks when it is asked. `revoked()` counts the revoked packs that are on this node."""

    def __init__(self, prover: Prover, withdrawal: Withdrawal, revoked: Callable[[], int]) -> None:
        self._prover = prover
        self._withdrawal = withdrawal
        self._revoked = revoked

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """As prometheus_client wants it."""
        proved = CounterMetricFamily(
            "imgdist_packs_proved", "Packs held against their layers, by what came of it", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            proved.add_metric([outcome], self._prover.outcomes[outcome])
        yield proved
        yield GaugeMetricFamily("imgdist_packs_revoked", "Revoked packs on this node", value=self._revoked())
        users = {user for users in self._withdrawal.used_by.values() for user in users}
        yield GaugeMetricFamily("imgdist_revoked_users", "Containers and mounts on revoked packs", value=len(users))
