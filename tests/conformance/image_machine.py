"""A state machine that builds images: odd members, one after another, layers over layers of the same few names.

It knows only as much of what it has built as makes most images legal: what is right is containerd's to say.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import pack

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from raw_tar import END, header, padded, pax

LAYERS_MAX = 6

_NAMES = st.sampled_from([b"a", b"a", b"b", b"b", b"c", b"\xff\xe9", b"n" * 255])
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map(b"/".join)
_TARGETS = st.one_of(
    _PATHS,
    _PATHS.map(lambda path: b"/" + path),
    st.tuples(st.sampled_from([b"..", b"../..", b"a/..", b"./b", b"../../../.."]), _PATHS).map(b"/".join),
    st.sampled_from([b".", b"..", b"/", b"nowhere", b"t" * 4000]),
)
_IDS = st.sampled_from([0, 0, 7, 65_536, (1 << 32) - 2, (1 << 32) - 1])
_MODES = st.sampled_from([0o755, 0o644, 0o700, 0o1777, 0o2775, 0o4711, 0o2644, 0])
_TIMES = st.sampled_from([b"0", b"1700000000", b"1600000000.000000001", b"-1.5", b"9223372036.9", b"1.25"])
_SIZES = st.sampled_from([0, 1, 511, 512, 513, 4096, 10_000])
_DEVICES = st.sampled_from([(b"3", 1, 3), (b"4", 259, 70_000), (b"6", 0, 0), (b"3", 0, 0)])
_ACL = pack("<I", 2) + b"".join(
    pack("<HHI", *entry) for entry in ((1, 7, ~0 & 0xFFFFFFFF), (2, 6, 1000), (4, 5, 0), (16, 7, 0), (32, 0, 0))
)
_XATTRS = {
    b"user.a": b"1",
    b"user.b": b"\0\xff",
    b"security.x": b"s",
    b"trusted.overlay.opaque": b"y",
    b"security.capability": pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0),
    b"system.posix_acl_access": _ACL,
}
_FEW_XATTRS = st.one_of(st.just(()), st.just(()), st.lists(st.sampled_from(sorted(_XATTRS)), max_size=2, unique=True))


class ImageMachine(RuleBasedStateMachine):
    """Ends with a call of `check(layers)`, which raises where an image is not as it should be."""

    def __init__(self, check: Callable[[list[bytes]], None]) -> None:
        super().__init__()
        self._check = check
        self._layers: list[bytes] = [b""]
        self._kinds: dict[bytes, str] = {}  # of this layer, symlinks not followed

    def teardown(self) -> None:
        if any(self._layers):
            self._check([layer + END for layer in self._layers])

    @initialize(mode=_MODES, uid=_IDS, mtime=_TIMES, xattrs=_FEW_XATTRS)
    def begin(self, mode: int, uid: int, mtime: bytes, xattrs: list[bytes]) -> None:
        self._put(b"a", "directory", b"5", mode=mode, uid=uid, mtime=mtime, xattrs=xattrs)

    @rule(path=_PATHS, size=_SIZES, mode=_MODES, uid=_IDS, gid=_IDS, mtime=_TIMES, xattrs=_FEW_XATTRS)
    def file(self, path: bytes, size: int, mode: int, uid: int, gid: int, mtime: bytes, xattrs: list[bytes]) -> None:
        data = (path * size)[:size]
        self._put(path, "file", b"0", data, mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)

    @rule(path=_PATHS, mode=_MODES, uid=_IDS, gid=_IDS, mtime=_TIMES, xattrs=_FEW_XATTRS)
    def directory(self, path: bytes, mode: int, uid: int, gid: int, mtime: bytes, xattrs: list[bytes]) -> None:
        self._put(path, "directory", b"5", mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs)

    @rule(path=_PATHS, mode=_MODES)
    def directory_with_default_acl(self, path: bytes, mode: int) -> None:
        if len(self._layers) > 2:  # below others it has most images declined
            self._put(path, "directory", b"5", mode=mode, xattrs=[b"system.posix_acl_default"])

    @rule(path=_PATHS, leads_to=_TARGETS, uid=_IDS, mtime=_TIMES)
    def symlink(self, path: bytes, leads_to: bytes, uid: int, mtime: bytes) -> None:
        self._put(path, "symlink", b"2", link=leads_to, uid=uid, mtime=mtime)

    @precondition(lambda self: any(kind != "directory" for kind in self._kinds.values()))
    @rule(path=_PATHS, number=st.integers(0, 50), mode=_MODES, uid=_IDS, mtime=_TIMES, xattrs=_FEW_XATTRS)
    def hard_link(self, path: bytes, number: int, mode: int, uid: int, mtime: bytes, xattrs: list[bytes]) -> None:
        targets = sorted(path for path, kind in self._kinds.items() if kind not in ("directory", "whiteout"))
        if targets and (target := targets[number % len(targets)]) != path and not target.startswith(path + b"/"):
            kind = self._kinds[target]
            xattrs = [] if kind == "symlink" else xattrs
            self._put(path, kind, b"1", link=target, mode=mode, uid=uid, mtime=mtime, xattrs=xattrs)

    @rule(path=_PATHS, device=_DEVICES, mode=_MODES, gid=_IDS)
    def special(self, path: bytes, device: tuple[bytes, int, int], mode: int, gid: int) -> None:
        kind, major, minor = device
        self._put(path, "special", kind, mode=mode, gid=gid, device=(major, minor))

    @precondition(lambda self: len(self._layers) > 1)
    @rule(path=_PATHS, uid=_IDS)
    def whiteout(self, path: bytes, uid: int) -> None:
        above, _, name = path.rpartition(b"/")
        if path not in self._kinds and not self._is_around(path) and len(name) < 250:
            self._add(path[: len(above) + bool(above)] + b".wh." + name, b"0", uid=uid)
            self._kinds[path] = "whiteout"

    @precondition(lambda self: len(self._layers) > 1)
    @rule(path=_PATHS)
    def opaque(self, path: bytes) -> None:
        self._put(path + b"/.wh..wh..opq", "marker", b"0")

    @precondition(lambda self: self._layers[-1] and len(self._layers) < LAYERS_MAX)
    @rule()
    def next_layer(self) -> None:
        self._layers.append(b"")
        self._kinds.clear()

    def _put(self, path: bytes, kind: str, flag: bytes, data: bytes = b"", **fields: object) -> None:
        """Add a member unless it lies below what is no directory, or (but for an empty file) takes one's place."""
        if kind not in ("directory", "marker") and (kind != "file" or data) and self._is_around(path):
            return
        above = path.rpartition(b"/")[0]
        while above:
            if self._kinds.get(above, "directory") not in ("directory", "symlink"):
                return
            above = above.rpartition(b"/")[0]
        self._add(path, flag, data, **fields)  # type: ignore[arg-type]
        if kind == "marker":
            return
        if kind != "directory":
            self._kinds = {other: known for other, known in self._kinds.items() if not other.startswith(path + b"/")}
        self._kinds[path] = kind

    def _is_around(self, path: bytes) -> bool:
        return any(other.startswith(path + b"/") for other in self._kinds)

    def _add(
        self,
        path: bytes,
        flag: bytes,
        data: bytes = b"",
        *,
        link: bytes = b"",
        mode: int = 0o755,
        uid: int = 0,
        gid: int = 0,
        mtime: bytes = b"1700000000",
        device: tuple[int, int] = (0, 0),
        xattrs: list[bytes] | tuple[()] = (),
    ) -> None:
        records = {b"path": path, b"mtime": mtime} | ({b"linkpath": link} if link else {})
        records |= {b"SCHILY.xattr." + name: _XATTRS.get(name, _ACL) for name in xattrs}
        member = header(b"x", flag, len(data), mode=mode, uid=uid, gid=gid, major=device[0], minor=device[1])
        self._layers[-1] += pax(records) + member + padded(data)
