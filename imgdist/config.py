"""Configuration of the two daemons: one TOML file each, the same keys as the command line's flags.

Order of precedence: flag, `--set section.key=value`, file, default. A key that does not exist or a value that is not
allowed is refused when the daemon starts, naming file, key, value and what is allowed.
"""

from __future__ import annotations

import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from imgdist.errors import ConfigError
from imgdist.limits import DEFAULT_LIMITS, Limits


class ConvertConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How layers become packs at a supernode."""

    threads: Annotated[int, Meta(ge=1, le=64, description="compression threads of one layer's conversion")] = 2
    layers: Annotated[int, Meta(ge=1, le=64, description="layers downloaded and converted at the same time")] = 3
    level: Annotated[int, Meta(ge=1, le=19, description="zstd level of chunks while a node waits")] = 1
    keep_blobs: Annotated[
        bool,
        Meta(description="also keep layers as the registry has them, so that pulls do not read them again"),
    ] = True


class RegistryHost(Struct, frozen=True, forbid_unknown_fields=True):
    """How one registry, or a host that it redirects to, is reached. What is empty is as in [registry]."""

    plain_http: bool = False
    ca: str = ""
    client_certificate: str = ""
    client_key: str = ""
    proxy: str = ""
    mirrors: tuple[str, ...] = ()
    rewrite: dict[str, str] = {}
    requests_per_s: Annotated[float, Meta(ge=0)] = 0.0


class LimitsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What one layer may cost to convert; beyond it, containerd pulls the layer the ordinary way. docs/limits.md says
    why each is what it is."""

    tar_bytes: Annotated[int, Meta(ge=1, description="bytes of the uncompressed layer")] = DEFAULT_LIMITS.tar_bytes
    image_bytes: Annotated[int, Meta(ge=1, description="bytes of the layer image")] = DEFAULT_LIMITS.image_bytes
    free_bytes: Annotated[int, Meta(ge=0, description="bytes of tar below which `expansion` does not matter")] = (
        DEFAULT_LIMITS.free_bytes
    )
    expansion: Annotated[int, Meta(ge=1, description="bytes of tar a byte of compressed layer")] = (
        DEFAULT_LIMITS.expansion
    )
    hole_bytes: Annotated[int, Meta(ge=0, description="bytes of holes in sparse files")] = DEFAULT_LIMITS.hole_bytes
    header_bytes: Annotated[int, Meta(ge=512, description="bytes of one extension header or sparse map")] = (
        DEFAULT_LIMITS.header_bytes
    )
    members: Annotated[int, Meta(ge=1, description="members of the tar")] = DEFAULT_LIMITS.members
    records: Annotated[
        int, Meta(ge=1, description="extension headers, pax records, sparse segments; zstd frames and blocks")
    ] = DEFAULT_LIMITS.records
    metadata_bytes: Annotated[int, Meta(ge=1, description="bytes of memory for names, small files, xattrs")] = (
        DEFAULT_LIMITS.metadata_bytes
    )
    implied_bytes: Annotated[int, Meta(ge=0, description="bytes of paths of directories that no member describes")] = (
        DEFAULT_LIMITS.implied_bytes
    )
    link_steps: Annotated[int, Meta(ge=1, description="path components looked up behind symlinks")] = (
        DEFAULT_LIMITS.link_steps
    )
    memory_bytes: Annotated[
        int, Meta(ge=64 << 20, description="bytes of memory of the worker; 16 MiB more a thread beyond two")
    ] = DEFAULT_LIMITS.memory_bytes
    cpu_s: Annotated[
        int, Meta(ge=1, description="CPU-seconds of the worker, and `convert.level` more a MiB of layer")
    ] = DEFAULT_LIMITS.cpu_s

    def limits(self) -> Limits:
        """As the converter takes them."""
        return Limits(**msgspec.structs.asdict(self))


class RegistryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How registries are reached (docs/registries.md)."""

    docker_config: Annotated[
        str, Meta(description="docker config.json with credentials and credential helpers; empty: none")
    ] = ""
    pull_secrets: Annotated[
        tuple[str, ...], Meta(description="Kubernetes pull secrets as files, or directories of them")
    ] = ()
    kubernetes_secrets: Annotated[
        tuple[str, ...], Meta(description="pull secrets, namespace/name, read with this pod's service account")
    ] = ()
    ca: Annotated[str, Meta(description="PEM file of CAs trusted beside the system's; empty: none")] = ""
    proxy: Annotated[
        str, Meta(description='proxy, http://host:port, or "direct"; empty: HTTP_PROXY, HTTPS_PROXY and NO_PROXY')
    ] = ""
    allow: Annotated[
        tuple[str, ...], Meta(description="images that may be had, host/repository, * for anything; none: all")
    ] = ()
    deny: Annotated[tuple[str, ...], Meta(description="images that may not, as in `allow`, and before it")] = ()
    requests_per_s: Annotated[float, Meta(ge=0, description="most requests a second to one registry; 0: no cap")] = 0.0
    hosts: Annotated[
        dict[str, RegistryHost],
        Meta(
            description='one registry\'s own, [registry.hosts."host:port"]: plain_http, ca, client_certificate, '
            "client_key, proxy, mirrors, rewrite, requests_per_s"
        ),
    ] = {}


class AccessConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may have what (docs/registries.md)."""

    key_file: Annotated[
        str, Meta(description="file with the cluster's key, by which nodes know each other; empty: the network is")
    ] = ""
    shared: Annotated[
        tuple[str, ...],
        Meta(description="images that registry clients get with our own credentials, host/repository, * for anything"),
    ] = ()
    remember_s: Annotated[
        float, Meta(ge=0, le=3600, description="seconds that a registry's yes to a client is remembered")
    ] = 60.0
    outage_s: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds that it counts while the registry does not answer")
    ] = 600.0


class TagsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How long what a registry said of a tag stands, for those that pull through a mirror. Digests stand for ever."""

    ttl_s: Annotated[
        float, Meta(ge=0, le=31_536_000, description="seconds until the registry is asked about a tag again")
    ] = 60.0
    rules: Annotated[
        tuple[str, ...],
        Meta(description='"PATTERN=SECONDS" for tags like host/repository:tag; * and ? fit, the first one counts'),
    ] = ()
    stale_if_error_s: Annotated[
        float, Meta(ge=0, description="seconds that a tag stands at most while its registry does not answer")
    ] = 86_400.0

    def __post_init__(self) -> None:
        for rule in self.rules:
            if not re.fullmatch(r"\S+=[0-9]+(\.[0-9]+)?", rule):
                raise ValueError(f"rule {rule!r}: expected PATTERN=SECONDS, such as 'docker.io/library/*:latest=10'")

    @property
    def ttls(self) -> tuple[tuple[str, float], ...]:
        """The rules as (pattern, seconds)."""
        return tuple((pattern, float(seconds)) for pattern, _, seconds in (rule.rpartition("=") for rule in self.rules))


class TrackerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How a supernode keeps account of which agents are in which swarms."""

    probe: Annotated[bool, Meta(description="tell agents only of others whose address answers from here")] = True


class SpaceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of its disk a node's packs may take. The kubelet begins to remove images at 85 % of a file system and
    ends at 80 %: what nothing uses has gone by then."""

    high: Annotated[
        float, Meta(gt=0, le=1, description="share of the file system in use above which what nothing uses goes")
    ] = 0.80
    low: Annotated[float, Meta(ge=0, lt=1, description="share of the file system in use at which that ends")] = 0.75
    max_bytes: Annotated[
        int, Meta(ge=0, description="most bytes of all packs together; 0: no limit but the shares")
    ] = 0
    min_age_s: Annotated[
        float, Meta(ge=0, description="seconds that a pack stays after its last use, unless the disk is full")
    ] = 300.0


class SupernodeSpaceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of its disk a supernode's packs may take. What goes is converted anew when somebody asks for it."""

    high: Annotated[float, Meta(gt=0, le=1, description="share of the file system in use above which packs go")] = 0.85
    low: Annotated[float, Meta(ge=0, lt=1, description="share of the file system in use at which that ends")] = 0.80
    max_bytes: Annotated[
        int, Meta(ge=0, description="most bytes of all packs together; 0: no limit but the shares")
    ] = 0
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
    neighbours: Annotated[int, Meta(ge=1, le=256, description="agents this one keeps a connection with")] = 24
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
        float, Meta(gt=0, le=600, description="seconds after a container's creation that are its start")
    ] = 30.0


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


ConfigT = TypeVar("ConfigT", bound=SupernodeConfig | AgentConfig)


def load(
    kind: type[ConfigT],
    file: str | None = None,
    settings: tuple[str, ...] = (),
    flags: Mapping[str, Any] | None = None,
) -> ConfigT:
    """The configuration from `file` (TOML), then `settings` ("section.key=value"), then `flags` ("section.key": value).

    Raises ConfigError naming the place, the key, the value and what is allowed.
    """
    document: dict[str, Any] = {}
    if file is not None:
        document = _read(file)
        _convert(kind, document, file)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: expected section.key=value")
        _put(kind, document, key.strip(), _value(text.strip()), f"--set {setting}")
    for key, value in (flags or {}).items():
        _put(kind, document, key, value, "--" + key.rpartition(".")[2].replace("_", "-"))
    return _convert(kind, document, file or "command line")


def _read(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected TOML: {error}") from None


def _value(text: str) -> Any:
    """A setting's value: TOML where it parses as TOML (3, true, ["a"]), else the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _put(kind: type[Any], document: dict[str, Any], key: str, value: Any, where: str) -> None:
    known = dict(keys(kind))
    if key not in known:
        raise ConfigError(f"{where}: there is no key {key!r}; known: {', '.join(known)}")
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[last] = value


def _convert(kind: type[ConfigT], document: dict[str, Any], where: str) -> ConfigT:
    try:
        converted = msgspec.convert(document, kind)
        if converted.space.low >= converted.space.high:
            raise ConfigError(
                f"{where}: space.low = {converted.space.low}: expected less than space.high, which is"
                f" {converted.space.high}"
            )
        _check_registries(converted, where)
        return converted
    except msgspec.ValidationError as error:
        message = str(error)
        reason, _, path = message.partition(" - at `$")
        key = path.strip("`").lstrip(".") if path else ""
        raise ConfigError(f"{where}: {_explain(kind, document, key, reason)}") from None


def _check_registries(converted: SupernodeConfig | AgentConfig, where: str) -> None:
    """What only the registry client understands: proxies, mirrors, lists. It is loaded for those who set any of it."""
    if converted.registry == RegistryConfig() and converted.access == AccessConfig():
        return
    from imgdist.oci import settings

    try:
        settings.check(converted.registry)
        settings.check_list(converted.access.shared, "access.shared")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _explain(kind: type[Any], document: dict[str, Any], key: str, reason: str) -> str:
    if key.startswith("registry.hosts["):  # whose name the validator does not tell
        return _explain_host(document["registry"]["hosts"])
    if "unknown field" in reason:
        names = [name for name, _ in keys(kind) if name.rpartition(".")[0] == key]
        prefix = f"[{key}] " if key else ""
        return f"{prefix}{reason[0].lower()}{reason[1:]}; known: {', '.join(names)}"
    seen: Any = document
    for part in key.split("."):
        seen = seen.get(part) if isinstance(seen, dict) else seen
    return f"{key} = {seen!r}: {reason[0].lower()}{reason[1:]}"


def _explain_host(hosts: dict[str, Any]) -> str:
    """Which registry's settings are wrong, and how."""
    for host, settings in hosts.items():
        try:
            msgspec.convert(settings, RegistryHost)
        except msgspec.ValidationError as error:
            reason, _, path = str(error).partition(" - at `$.")
            known = ", ".join(RegistryHost.__struct_fields__)
            key = path.strip("`") or "keys"
            return f'[registry.hosts."{host}"] {key}: {reason[0].lower()}{reason[1:]}; known: {known}'
    return "registry.hosts: expected tables of settings by host[:port]"


class Key(typing.NamedTuple):
    """One configuration key: its default, its type as TOML users know it, and its meaning."""

    default: Any
    type_name: str
    description: str


def keys(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every key of a daemon's configuration as ("section.key", Key), in the order of the file."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for info in msgspec.structs.fields(kind):
        hint = hints[info.name]
        if isinstance(hint, type) and issubclass(hint, Struct):
            yield from keys(hint, f"{prefix}{info.name}.")
            continue
        base, meta = hint.__origin__, hint.__metadata__[0]
        default = info.default if info.default is not msgspec.NODEFAULT else info.default_factory()
        yield prefix + info.name, Key(default, _type_name(base, meta), meta.description or "")


def _type_name(base: Any, meta: Meta) -> str:
    origin = typing.get_origin(base)
    if origin is Literal:
        return " | ".join(f'"{choice}"' for choice in typing.get_args(base))
    if isinstance(base, types.GenericAlias):
        return "tables" if origin is dict else "list of strings"
    name = {int: "integer", float: "number", bool: "true | false", str: "string"}[base]
    bounds = [
        f"{sign} {value}" for sign, value in ((">=", meta.ge), (">", meta.gt), ("<=", meta.le)) if value is not None
    ]
    return " ".join([name, " and ".join(bounds)]).strip()


def toml(kind: type[Any]) -> str:
    """The defaults as a commented TOML file."""
    lines: list[str] = []
    section = ""
    for name, key in keys(kind):
        head, _, last = name.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{section}]"]
        lines += [f"# {key.description} ({key.type_name})", f"{last} = {toml_value(key.default)}"]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML on one line; what `--set` reads."""
    if isinstance(value, Mapping):
        items = (f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return msgspec.json.encode(value).decode()
