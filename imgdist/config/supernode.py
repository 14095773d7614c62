"""`imgdist supernode`: its keys and sections."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from imgdist.config.conversion import ConvertConfig, LimitsConfig
from imgdist.config.registries import AccessConfig, RegistryConfig, TagsConfig
from imgdist.config.space import High, Low, MaxBytes


class TrackerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How a supernode keeps account of which agents are in which swarms."""

    probe: Annotated[bool, Meta(description="tell agents only of others whose address answers from here")] = True


class SupernodeSpaceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of its disk a supernode's packs may take. What goes is converted anew when somebody asks for it."""

    high: High = 0.85
    low: Low = 0.80
    max_bytes: MaxBytes = 0
    retention_s: Annotated[
        float, Meta(ge=0, description="seconds that a pack stays after it was last resolved or served")
    ] = 3600.0


class ProofConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How a supernode holds its packs against the layers that they are made of."""

    every_s: Annotated[
        float, Meta(ge=0, description="seconds after which a pack is proved again, when nothing is converted; 0: never")
    ] = 604_800.0


class SupernodeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`imgdist supernode`."""

    root: Annotated[str, Meta(description="directory of packs, tables and traces")] = "/var/lib/imgdist-supernode"
    listen: Annotated[str, Meta(description="control API, host:port or unix:///path")] = "127.0.0.1:7600"
    chunk_listen: Annotated[
        str, Meta(description="chunk bodies, host:port or unix:///path; empty: the port after `listen`'s")
    ] = ""
    chunk_advertise: Annotated[
        str, Meta(description="chunk address that agents are told; empty: what they reached `listen` by")
    ] = ""
    plain_http: Annotated[
        tuple[str, ...], Meta(description="registries (host or host:port) spoken to without TLS")
    ] = ()
    allow_plain: Annotated[bool, Meta(description="listen without TLS on addresses other than loopback")] = False
    metrics_listen: Annotated[str, Meta(description="/metrics on an address of its own; empty: only on `listen`")] = ""
    log_format: Annotated[Literal["text", "json"], Meta(description="log lines on stderr")] = "text"
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    tags: TagsConfig = field(default_factory=TagsConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    space: SupernodeSpaceConfig = field(default_factory=SupernodeSpaceConfig)
    proof: ProofConfig = field(default_factory=ProofConfig)
