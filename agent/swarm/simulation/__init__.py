"""A swarm of any size on one machine: the very policy of the agents, over links that are modelled."""

from __future__ import annotations

from collections.abc import Callable

from agent.swarm.simulation.outcome import Outcome
from agent.swarm.simulation.plot import drawing
from agent.swarm.simulation.scenario import Scenario
from agent.swarm.simulation.world import World

__all__ = ["Outcome", "Scenario", "drawing", "simulate"]


def simulate(scenario: Scenario, watch: Callable[[float, float], None] | None = None) -> Outcome:
    """Run a scenario. `watch(seconds, share)` hears how far it is, some times a T*."""
    return Outcome(scenario, World(scenario, watch).run())
