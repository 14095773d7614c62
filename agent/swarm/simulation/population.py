"""The supernode and the nodes of a scenario, and who knows whom."""

from __future__ import annotations

from random import Random

from agent.swarm.policy import Policy, SourceKind
from agent.swarm.simulation.actors import LAYER, Node, Source
from agent.swarm.simulation.graph import neighbours
from agent.swarm.simulation.scenario import Scenario
from agent.swarm.simulation.seeder import Seeder


def new_supernode(scenario: Scenario, random: Random) -> Source:
    """It has all chunks, and knows of no receivers."""
    seeder = Seeder(scenario.chunks, random.random, scenario.super_seeding)
    return Source(scenario.supernode_bits * _goodput(scenario) / 8, seeder)


def new_nodes(scenario: Scenario, supernode: Source, random: Random) -> list[Node]:
    """Strangers to each other; the first ones are the slow ones."""
    nodes = []
    for number in range(scenario.nodes):
        is_slow = number < scenario.slow_nodes
        factor = _goodput(scenario) / 8 * (scenario.slow_factor if is_slow else 1.0)
        policy = Policy(random.random, scenario.limits)
        policy.join(supernode, SourceKind.SUPERNODE)
        source = Source(scenario.up_bits * factor)
        nodes.append(Node(scenario.chunks, scenario.down_bits * factor, is_slow, source, policy))
    return nodes


def introduce(nodes: list[Node], scenario: Scenario, random: Random) -> int:
    """Make neighbours of them; how many each has, in all."""
    zones = [random.randrange(scenario.zone_count) for _ in nodes]
    linked = neighbours(scenario.nodes, zones, scenario.random_neighbours, scenario.zone_neighbours, random)
    for number, node in enumerate(nodes):
        for other in linked[number]:
            source = nodes[other].source
            near = zones[number] == zones[other] and scenario.zone_count > 1
            node.policy.join(source, SourceKind.PEER, near=near)
            node.policy.opened(source, LAYER, source.have)
    return sum(map(len, linked))


def _goodput(scenario: Scenario) -> float:
    return 1.0 - scenario.loss
