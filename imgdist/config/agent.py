"""`imgdist agent`: its keys and sections."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from imgdist.config.conversion import ConvertConfig, LimitsConfig
from imgdist.config.registries import AccessConfig, RegistryConfig, TagsConfig
from imgdist.config.space import High, Low, MaxBytes


class ReadConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What a reader of an absent block is promised."""

    deadline_s: Annotated[float, Meta(gt=0, le=110, description="seconds until a read without any source gets EIO")] = (
        60.0
    )
    on_no_source: Annotated[
        Literal["error", "hold"],
        Meta(description="EIO at the deadline, or wait for a source however long (as NFS's hard mounts do)"),
    ] = "error"

    @property
    def wait_s(self) -> float:
        """Seconds that a read may wait; infinite where it is held."""
        return math.inf if self.on_no_source == "hold" else self.deadline_s


class FillConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The background fill of layers that are mounted but not complete."""

    mode: Annotated[
        Literal["full", "trace", "none"],
        Meta(description="what is fetched unread: whole layers, only what earlier starts touched, nothing"),
    ] = "full"
    delay_s: Annotated[float, Meta(ge=0, description="seconds from a layer's first mount to its fill")] = 0.0
    quiet_s: Annotated[float, Meta(ge=0, description="seconds without a miss on the node before fill goes on")] = 0.3
    patience_s: Annotated[float, Meta(ge=0, description="seconds after which fill takes a low share all the same")] = (
        10.0
    )


class SwarmConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How this node exchanges chunks with others. Rates are of chunk bodies, over all layers."""

    enabled: Annotated[bool, Meta(description="fetch chunks from other agents and serve them")] = True
    neighbours: Annotated[int, Meta(ge=1, le=256, description="agents this one keeps a connection with")] = 10
    up_bytes_per_s: Annotated[int, Meta(ge=0, description="most bytes a second to other agents; 0: no cap")] = 0
    down_bytes_per_s: Annotated[
        int, Meta(ge=0, description="most bytes a second of what no reader waits for; 0: no cap")
    ] = 0
    start_jitter_s: Annotated[
        float, Meta(ge=0, le=3600, description="a layer's fill begins at random within so many seconds")
    ] = 0.0


class SwitchConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """When a complete layer leaves the view for the local file."""

    idle_s: Annotated[float, Meta(ge=0, description="seconds without a read of the layer before the switch")] = 2.0


class TraceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The start-up trace: which chunks a start touched, in order."""

    enabled: Annotated[bool, Meta(description="record starts and fetch recorded ones first")] = True
    window_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="seconds from a container's creation on that are its start, without its waits",
        ),
    ] = 30.0


class SpaceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of its disk a node's packs may take. The kubelet begins to remove images at 85 % of a file system and
    ends at 80 %: what nothing uses has gone by then."""

    high: High = 0.80
    low: Low = 0.75
    max_bytes: MaxBytes = 0
    min_age_s: Annotated[
        float, Meta(ge=0, description="seconds that a pack stays after its last use, unless the disk is full")
    ] = 300.0


class VerifyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How a node proves, when it is idle, that its packs are what their layers convert to."""

    mode: Annotated[
        Literal["none", "some", "all"],
        Meta(description="which nodes prove a pack: none, three of each swarm, each that has it"),
    ] = "some"
    action: Annotated[
        Literal["report", "block"],
        Meta(description="about a revoked pack: name and replace it; and let nothing new run on it meanwhile"),
    ] = "report"
    delay_s: Annotated[float, Meta(ge=0, description="seconds that a pack is whole before it is proved, or twice")] = (
        60.0
    )


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`imgdist agent`."""

    root: Annotated[str, Meta(description="directory of packs, layer mounts and snapshots")] = "/var/lib/imgdist"
    run: Annotated[str, Meta(description="directory of sockets and of the view's mount")] = "/run/imgdist"
    supernode: Annotated[tuple[str, ...], Meta(description="URLs of supernodes; none: an embedded one")] = ()
    snapshotter_socket: Annotated[
        str, Meta(description="containerd's proxy plugin address; empty: RUN/snapshotter.sock")
    ] = ""
    plain_http: Annotated[
        tuple[str, ...], Meta(description="registries (host or host:port) spoken to without TLS")
    ] = ()
    mirror_listen: Annotated[
        str, Meta(description="registry mirror for this node's clients, host:port; empty: none")
    ] = "127.0.0.1:7650"
    mirror_registries: Annotated[
        tuple[str, ...],
        Meta(description="registries that imgdist install sends Podman and CRI-O to the mirror for (others know all)"),
    ] = ("docker.io", "quay.io", "ghcr.io", "registry.k8s.io", "gcr.io", "public.ecr.aws", "mcr.microsoft.com")
    peer_listen: Annotated[
        str, Meta(description="chunks for other agents, host:port; with configured supernodes only")
    ] = "127.0.0.1:7651"
    peer_advertise: Annotated[
        str, Meta(description="IP:port that other agents are told; empty: the IP a supernode sees, that port")
    ] = ""
    zone: Annotated[str, Meta(description="rack or zone; agents of the same one are preferred")] = ""
    allow_plain: Annotated[bool, Meta(description="use addresses other than loopback without TLS")] = False
    log_format: Annotated[Literal["text", "json"], Meta(description="log lines on stderr")] = "text"
    require_agreement: Annotated[
        int, Meta(ge=1, le=16, description="supernodes that must name the same pack for a layer")
    ] = 1
    stop_timeout_s: Annotated[
        float, Meta(ge=0, le=3600, description="seconds to complete layers in use on SIGTERM")
    ] = 30.0
    watchdog_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="seconds without a sign of life of the agent until it is killed; 0: never"),
    ] = 20.0
    prepare_timeout_s: Annotated[
        float, Meta(gt=0, description="seconds a layer's Prepare may take before it is declined")
    ] = 90.0
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    tags: TagsConfig = field(default_factory=TagsConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    fill: FillConfig = field(default_factory=FillConfig)
    swarm: SwarmConfig = field(default_factory=SwarmConfig)
    switch: SwitchConfig = field(default_factory=SwitchConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
