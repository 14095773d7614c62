"""Images whose layers are legal and nasty, by name: base first. What is right for each is containerd's to say."""

# ruff: noqa: E501 - a table

from __future__ import annotations

import gzip
import zlib
from itertools import product
from struct import pack

import zstandard
from raw_tar import END, directory, file, hard_link, header, long_name, padded, pax, record, symlink

_X = b"SCHILY.xattr."


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return pack("<I", 2) + b"".join(pack("<HHI", *entry) for entry in entries)


_NAMED = _acl((1, 7, 0xFFFFFFFF), (2, 6, 1000), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
_ACCESS, _DEFAULT = _X + b"system.posix_acl_access", _X + b"system.posix_acl_default"


def _with(records: dict[bytes, bytes], member: bytes) -> bytes:
    return pax(records) + member


def _named(name: bytes, kind: bytes = b"0", data: bytes = b"", **fields: int | bytes) -> bytes:
    """A member whose name does not fit a header."""
    return pax({b"path": name}) + header(b"x", kind, len(data), **fields) + padded(data)  # type: ignore[arg-type]


# Attributes that layers above inherit: /d, /d/e, /d/e/f and /t, none of them plain.
_LOWER = (
    directory(b"d", mode=0o700, uid=7, gid=8, mtime=1_000) + _with({_X + b"user.note": b"d"}, directory(b"d/e", mode=0o1777, uid=70_000, mtime=2_000))
    + directory(b"d/e/f", mode=0o2711, gid=5, mtime=3_000) + file(b"d/e/f/low", b"low") + directory(b"t", mode=0o750, uid=3) + file(b"t/x", b"t")
)  # fmt: skip
_OVER = file(b"d/e/f/new", b"new")

IMPLIED: dict[str, list[bytes]] = {
    "implied": [_LOWER, _OVER],
    "implied_listed_later_acl": [_with({_ACCESS: _NAMED}, directory(b"d", mode=0o750)), file(b"d/x") + directory(b"d", mode=0o711)],
    "implied_in_sgid": [_LOWER, directory(b"s", mode=0o2770, gid=9) + file(b"s/i/j/f", gid=0xFFFFFFFF) + directory(b"s/k") + file(b"s/.wh.w") + symlink(b"s/l", b"x", gid=0xFFFFFFFF)],
    "implied_in_implied_sgid": [_LOWER, file(b"d/e/f/new/er/x"), file(b"d/e/f/new/er/est/y")],
    "implied_nothing_below": [file(b"other"), _OVER],
    "implied_listed_ancestor": [_LOWER, directory(b"d", mode=0o711, mtime=55) + _OVER],
    "implied_listed_between": [_LOWER, directory(b"d/e", mode=0o711, mtime=55) + _OVER],
    "implied_listed_later": [_LOWER, _OVER + directory(b"d/e/f", mode=0o711, mtime=55)],
    "implied_listed_later_xattr": [_LOWER, _OVER + directory(b"d/e", mode=0o711, mtime=55)],
    "implied_listed_in_between_layer": [_LOWER, directory(b"d/e", mode=0o700, uid=9), _OVER],
    "implied_again_and_again": [_LOWER, _OVER, file(b"d/e/f/2"), file(b"d/e/3"), directory(b"d/e", mode=0o500), file(b"d/e/f/4")],
    "implied_by_whiteout": [_LOWER, file(b"d/e/f/.wh.low")],
    "implied_by_opaque": [_LOWER, file(b"d/e/.wh..wh..opq") + file(b"d/e/new")],
    "implied_by_symlink": [_LOWER, symlink(b"d/e/f/l", b"../x") + header(b"d/e/f/p", b"6")],
    "implied_by_global": [_LOWER, pax({b"comment": b"x"}, b"g", b"d/e/global")],
    "implied_by_hard_link": [_LOWER, file(b"a", b"1") + hard_link(b"d/e/f/l", b"a", mode=0o600)],
    "implied_many": [
        _LOWER, *(file(b"d/e/f/%d" % number) + directory(b"n%d" % number, mode=0o700 + number) + file(b"n%d/x" % (number - 1)) for number in range(1, 13)),
    ],
    "implied_over_file": [file(b"d", b"a file"), _OVER],
    "implied_over_whiteout": [_LOWER, file(b".wh.d"), file(b"d/new")],
    "implied_twice_over_whiteout": [_LOWER, file(b".wh.d"), _OVER],
    "implied_twice_over_file": [_LOWER, file(b"d", b"a file"), _OVER],
    "implied_over_whiteout_above": [_LOWER, file(b".wh.d"), directory(b"d", mode=0o701) + file(b"d/x"), file(b"d/e/y")],
    "implied_over_opaque": [_LOWER, directory(b"d", mode=0o711) + file(b"d/.wh..wh..opq"), file(b"d/e/new")],
    "implied_in_opaque": [_LOWER, directory(b"d", mode=0o711) + file(b"d/.wh..wh..opq") + file(b"d/e/new")],
    "implied_over_symlink": [_LOWER + symlink(b"l", b"t"), file(b"l/new")],
    "implied_over_absolute_symlink": [_LOWER + symlink(b"l", b"/d/e"), file(b"l/f/new")],
    "implied_over_symlinks": [_LOWER + symlink(b"l", b"m") + symlink(b"m", b"d/e/../e"), file(b"l/new")],
    "implied_over_symlink_dotdot": [_LOWER + symlink(b"s", b"d/e") + symlink(b"l", b"s/../t"), file(b"l/new")],
    "implied_over_symlink_out": [_LOWER + symlink(b"l", b"../../../t"), file(b"l/new")],
    "implied_over_dangling": [symlink(b"l", b"nowhere"), file(b"l/new")],
    "implied_over_symlink_to_file": [file(b"f", b"1") + symlink(b"l", b"f"), file(b"l/new")],
    "implied_twice_over_symlink_to_file": [file(b"f", b"1") + symlink(b"l", b"f"), file(b"l/a/new")],
    "implied_over_loop": [symlink(b"a", b"b") + symlink(b"b", b"a"), file(b"a/new")],
    "implied_over_symlink_of_between": [_LOWER, symlink(b"l", b"t"), file(b"l/new")],
    "implied_over_symlink_to_implied": [_LOWER, symlink(b"l", b"t") + file(b"t/y"), file(b"l/new")],
    "implied_below_symlink": [_LOWER, directory(b"t", mode=0o700) + symlink(b"l", b"t/n"), symlink(b"l", b"d/e") + file(b"l/g/new")],
    "implied_over_symlink_to_root": [_LOWER + symlink(b"l", b"/"), file(b"l/new"), file(b"l/d/new")],
    "implied_access_acl": [_with({_ACCESS: _NAMED}, directory(b"d", mode=0o750)), file(b"d/new", b"1")],
    "implied_default_acl": [_with({_DEFAULT: _NAMED}, directory(b"d")), file(b"d/new", b"1")],
    "implied_in_default_acl": [_LOWER, _with({_DEFAULT: _NAMED}, directory(b"d")) + _OVER],
    "implied_in_default_acl_over_acl": [
        directory(b"d") + _with({_ACCESS: _NAMED}, directory(b"d/e", mode=0o700)), _with({_DEFAULT: _NAMED}, directory(b"d", mode=0o777)) + file(b"d/e/f/g"),
    ],
    "implied_security_xattr": [_with({_X + b"security.x": b"\0\1", _X + b"user.b": b""}, directory(b"d")), file(b"d/new")],
    "implied_times_above": [_LOWER, _OVER, directory(b"d/e", mtime=77) + directory(b"d/e/f", mtime=78)],
}  # fmt: skip

HIDING: dict[str, list[bytes]] = {
    "whiteout_of_each": [
        file(b"f", b"1") + directory(b"d") + file(b"d/x", b"2") + symlink(b"l", b"f") + header(b"p", b"6") + header(b"c", b"3", major=1, minor=3) + file(b"kept", b"k"),
        b"".join(file(b".wh." + name) for name in (b"f", b"d", b"l", b"p", b"c", b"absent")),
    ],
    "whiteout_and_back": [directory(b"d", mode=0o700) + file(b"d/x", b"1"), file(b".wh.d"), directory(b"d", mode=0o711) + file(b"d/y", b"2")],
    "whiteout_and_again": [file(b"f", b"1"), file(b".wh.f"), file(b".wh.f"), file(b"f", b"2"), file(b".wh.f")],
    "whiteout_merges": [directory(b"d", mode=0o700) + file(b"d/x", b"1"), file(b".wh.d") + directory(b"d", mode=0o711) + file(b"d/y", b"2")],
    "whiteout_then_other": [directory(b"d") + file(b"d/x"), file(b".wh.d") + symlink(b"d", b"e") + directory(b"e") + file(b"d/new")],
    "whiteout_in_new_directory": [file(b"f"), directory(b"n") + file(b"n/.wh.x") + file(b"n/y")],
    "whiteout_in_implied_directory": [file(b"f"), file(b"n/o/.wh.x")],
    "whiteout_deep": [_LOWER, file(b"d/e/f/.wh.low") + file(b"t/.wh.x"), file(b"d/e/.wh.f")],
    "whiteout_below_symlink": [_LOWER, directory(b"t") + symlink(b"l", b"t") + file(b"l/.wh.x")],
    "whiteout_of_hard_link": [file(b"a", b"1") + hard_link(b"b", b"a"), file(b".wh.a")],
    "whiteout_by_device": [file(b"f", b"1") + directory(b"d") + file(b"d/x"), header(b"f", b"3", mode=0o600) + header(b"d", b"3", mode=0o644)],
    "whiteout_names": [file(b".wh", b"1") + file(b".whx", b"2") + file(b"x.wh.y", b"3"), file(b".wh..wh") + file(b".wh..whx") + file(b".wh.x.wh.y")],
    "whiteout_of_marker": [file(b"f"), file(b".wh..wh.f"), file(b"d/.wh..wh..wh..opq")],
    "whiteout_fields": [_LOWER, _with({_X + b"user.a": b"1", b"mtime": b"1.5"}, header(b"d/e/f/.wh.low", b"2", link=b"t", uid=4))],
    "opaque": [_LOWER, directory(b"d", mode=0o711) + file(b"d/.wh..wh..opq") + file(b"d/new")],
    "opaque_last": [_LOWER, directory(b"d", mode=0o711) + file(b"d/new") + file(b"d/.wh..wh..opq")],
    "opaque_before_directory": [_LOWER, file(b"d/.wh..wh..opq") + file(b"d/new") + directory(b"d", mode=0o711)],
    "opaque_and_whiteout": [_LOWER, file(b"d/.wh..wh..opq") + file(b"d/.wh.e")],
    "opaque_nested": [_LOWER, directory(b"d") + directory(b"d/e") + directory(b"d/e/f") + file(b"d/e/.wh..wh..opq") + file(b"d/e/f/new")],
    "opaque_then_merged": [_LOWER, directory(b"d") + file(b"d/.wh..wh..opq"), directory(b"d/e") + file(b"d/e/new"), file(b"d/e/newer")],
    "opaque_twice": [_LOWER, directory(b"d") + file(b"d/.wh..wh..opq") + file(b"d/a"), directory(b"d") + file(b"d/.wh..wh..opq") + file(b"d/b")],
    "opaque_root": [_LOWER, file(b"new") + file(b".wh..wh..opq")],
    "opaque_of_nothing": [file(b"f"), file(b"n/.wh..wh..opq") + file(b"n/x")],
    "opaque_over_file": [file(b"d", b"1"), directory(b"d") + file(b"d/.wh..wh..opq") + file(b"d/x")],
    "opaque_replaced": [_LOWER, file(b"d/.wh..wh..opq") + file(b"d", b"1"), directory(b"d") + file(b"d/x")],
    "opaque_below_symlink": [_LOWER, directory(b"t") + symlink(b"l", b"t") + file(b"l/.wh..wh..opq")],
    "opaque_kinds": [_LOWER, directory(b"d/.wh..wh..opq"), symlink(b"t/.wh..wh..opq", b"x")],
    "aufs": [file(b"base"), file(b".wh..wh.aufs") + directory(b".wh..wh.plnk") + file(b".wh..wh.plnk/1.2", b"x"), file(b".wh..wh.orph")],
    "first_whiteout": [directory(b"d") + file(b"d/.wh.x") + file(b"f", b"1"), file(b"g")],
    "first_whiteout_of_own": [file(b"f", b"1") + file(b".wh.f")],
    "first_opaque": [directory(b"d", mode=0o700) + file(b"d/.wh..wh..opq") + file(b"d/x", b"1"), file(b"d/y")],
    "first_opaque_around_implied": [file(b"d/e/x", b"1") + file(b"d/.wh..wh..opq") + file(b"d/y")],
    "first_opaque_root": [file(b".wh..wh..opq") + file(b"d/x", b"1") + file(b"f")],
    "first_opaque_root_last": [file(b"d/x", b"1") + file(b"f") + file(b".wh..wh..opq")],
    "first_device_zero": [header(b"c", b"3", mode=0o600) + directory(b"d") + header(b"d/c", b"3", mode=0o644), file(b"f")],
}  # fmt: skip


def _of_kind(kind: str, name: bytes) -> bytes:
    return {
        "file": file(name, b"of " + name, mode=0o640, mtime=11),
        "directory": directory(name, mode=0o750, mtime=12) + file(name + b"/in", b"in"),
        "symlink": symlink(name, b"target", mtime=13),
        "hard_link": hard_link(name, b"origin", mode=0o604, mtime=14),
        "fifo": header(name, b"6", mode=0o620, mtime=15),
        "device": header(name, b"4", major=8, minor=1, mode=0o660, mtime=16),
    }[kind]


_KINDS = ("file", "directory", "symlink", "hard_link", "fifo", "device")
_PAIRS = [(before, after, f"{before}-{after}".encode()) for before, after in product(_KINDS, _KINDS)]
_TARGET = directory(b"target") + file(b"origin", b"origin")

SHAPES: dict[str, list[bytes]] = {
    "types_replaced": [
        _TARGET + b"".join(_of_kind(before, name) for before, _, name in _PAIRS), _TARGET + b"".join(_of_kind(after, name) for _, after, name in _PAIRS),
    ],
    "types_replaced_in_layer": [file(b"base"), _TARGET + b"".join(_of_kind(before, name) + _of_kind(after, name) for before, after, name in _PAIRS)],
    "types_replaced_below": [
        b"".join(_of_kind(kind, kind.encode()) for kind in _KINDS if kind != "hard_link"), b"".join(file(kind.encode() + b"/x/y", b"1") for kind in ("directory",)),
    ],
    "below_lower_symlink": [_LOWER + symlink(b"l", b"t"), directory(b"l", mode=0o700) + file(b"l/new", b"1"), file(b"l/newer")],
    "below_lower_file": [file(b"f", b"1"), directory(b"f") + file(b"f/x")],
    "below_own_symlink": [_LOWER, symlink(b"l", b"d/e") + file(b"l/f/new", b"1") + directory(b"l/g", mode=0o700, mtime=9)],
    "symlink_dotdot": [
        file(b"base"), directory(b"a/b") + symlink(b"s", b"a/b") + symlink(b"l", b"s/../x") + file(b"l/f", b"1") + symlink(b"m", b"/s/../y") + file(b"m/f", b"2")
        + file(b"/l/g", b"1") + directory(b"/l/d", mtime=3) + directory(b"q") + symlink(b"q/l", b"../s/../z") + file(b"q/l/f", b"3"),
    ],
    "symlink_in_symlink": [
        file(b"base"), directory(b"a/b/c") + symlink(b"p", b"a") + symlink(b"a/q", b"b/../b") + symlink(b"r", b"p/q/c/../../w") + file(b"r/f", b"1") + hard_link(b"h", b"r/f"),
    ],
    "symlink_retargeted": [file(b"base"), directory(b"a") + directory(b"b") + symlink(b"l", b"a") + file(b"l/1") + symlink(b"l", b"b") + file(b"l/2") + directory(b"l/d", mtime=8)],
    "directory_below_retargeted": [file(b"base"), directory(b"a") + symlink(b"l", b"a") + directory(b"l/d", mtime=8) + symlink(b"l", b"c") + directory(b"c") + directory(b"c/d", mtime=9)],
    "hard_links": [
        file(b"base"),
        _with({_X + b"user.a": b"1"}, file(b"a", b"x" * 700, mode=0o600, uid=1)) + _with({_X + b"user.b": b"2"}, hard_link(b"d/b", b"a", mode=0o4755, uid=2, mtime=5))
        + hard_link(b"c", b"d/b", mode=0o640, gid=9, mtime=6) + symlink(b"l", b"a") + hard_link(b"m", b"l", mtime=7) + header(b"p", b"6") + hard_link(b"q", b"p", mode=0o611),
        file(b"a", b"new"), file(b".wh.c"), file(b"d/b", b"other"),
    ],
    "hard_link_to_lower": [file(b"a", b"1"), hard_link(b"b", b"a")],
    "hard_link_inherits": [file(b"base"), _with({_DEFAULT: _NAMED}, directory(b"d")) + file(b"d/a", mode=0o640) + hard_link(b"b", b"d/a", mode=0o604)],
    "default_acl": [
        file(b"base"), _with({_DEFAULT: _NAMED, _ACCESS: _NAMED}, directory(b"d")) + file(b"d/f", mode=0o640) + directory(b"d/e", mode=0o711) + file(b"d/e/i/j/k", mode=0o604)
        + symlink(b"d/l", b"f") + header(b"d/p", b"6", mode=0o622) + file(b"d/.wh.w") + _with({_DEFAULT: b""}, directory(b"d")) + file(b"d/after"),
        directory(b"d") + file(b"d/no-more"),
    ],
    "times": [
        file(b"a", mtime=-1) + directory(b"early", mtime=-5) + directory(b"late", mtime=9_223_372_037) + symlink(b"l", b"a", mtime=1 << 40)
        + _with({b"mtime": b"0.000000001"}, file(b"tick")) + _with({b"mtime": b"9223372036.854775807"}, directory(b"last")) + _with({b"mtime": b"1600000000.5", b"atime": b"1700000000"}, file(b"b")),
        file(b"early/x"), directory(b"late", mtime=7) + file(b"late/x"),
    ],
    "ids": [b"".join(file(b"%d" % uid, uid=uid, gid=uid) for uid in (65_534, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)) + directory(b"d", uid=(1 << 32) - 2)],
    "names": [
        b"".join(_named(name, data=b"1") for name in (b"\xff\xfe\x80", b"new\nline", b"back\\slash", b"-dash", b" ", b"a,b:c=d", b"...", b"..x", b"\x01\x1b[31m", b"%s", b"\xc3\xa9"))
        + _named(b"\xe9" * 255, data=b"2") + _named(b"\xfe" * 255 + b"/" + b"\xfd" * 255 + b"/x") + _named(b"dir\xff/", b"5", mode=0o700),
        _named(b".wh.\xff\xfe\x80") + _named(b"dir\xff/x") + _named(b".wh." + b"w" * 251),
    ],
    "paths": [
        _named(b"/".join([b"%03d" % number + b"p" * 96 for number in range(38)]), data=b"deep") + long_name(b"/".join([b"q" * 7] * 200)) + file(b"x", b"narrow"),
        _named(b"/".join([b"%03d" % number + b"p" * 96 for number in range(37)]) + b"/new"),
    ],
    "sparse": [
        pax([(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.offset", b"1000"), (b"GNU.sparse.numbytes", b"3"), (b"GNU.sparse.offset", b"8000"), (b"GNU.sparse.numbytes", b"1000")]) + file(b"s00", b"abc" + b"d" * 1000)
        + pax({b"GNU.sparse.size": b"500000", b"GNU.sparse.numblocks": b"2", b"GNU.sparse.name": b"s01", b"GNU.sparse.map": b"0,5,499000,1000"}) + file(b"x", b"hello" + b"e" * 1000)
        + pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"s10", b"GNU.sparse.realsize": b"900000"}) + file(b"x", padded(b"2\n1000\n5\n400000\n700\n") + b"hello" + b"e" * 700)
        + pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"empty", b"GNU.sparse.realsize": b"70000"}) + file(b"x", padded(b"0\n"))
        + pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"many", b"GNU.sparse.realsize": b"2000"}) + file(b"x", padded(b"300\n" + b"".join(b"%d\n1\n" % (6 * at) for at in range(300))) + b"m" * 300),
    ],
    "xattrs": [
        pax(b"".join(record(_X + b"user.%03d" % number, b"v") for number in range(60))) + file(b"many")
        + _with({_X + b"user." + b"n" * 250: b"1"}, file(b"longest")) + _with({_X + b"user.v": b"v" * 3_900}, file(b"largest", b"1" * 600))
        + _with({_X + b"security.capability": pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, 100_000), _X + b"security.ima": b"\3" * 40}, file(b"cap", mode=0o755))
        + _with({_X + b"trusted.overlay.opaque": b"y", _X + b"trusted.overlay.redirect": b"/etc", _X + b"user.overlay.opaque": b"y", _X + b"user.kept": b"1"}, directory(b"forged"))
        + _with({_X + b"trusted.overlay.metacopy": b"", _X + b"user.kept": b"1"}, file(b"forged/f", b"1")) + _with({_X + b"security.s": b"1", _X + b"user.dropped": b"1"}, symlink(b"l", b"x")),
        file(b"forged/g") + _with({_X + b"user.new": b"1"}, directory(b"forged")),
    ],
    "modes": [file(b"suid", mode=0o6755, uid=5) + directory(b"sgid", mode=0o2755, gid=4) + file(b"sgid/f", gid=0) + directory(b"sgid/d") + file(b"sgid/i/f") + file(b"none", mode=0), file(b"sgid/i/g")],
    "many_layers": [directory(b"n", mode=0o700) + file(b"n/0")] + [file(b"n/%d" % number, b"%d" % number) + file(b"n/.wh.%d" % (number - 2)) for number in range(2, 25)],
    "empty_layers": [END, file(b"f", b"1"), END, b"", file(b".wh.f"), END],
    "same_layer_twice": [file(b"f", b"1"), file(b".wh.f"), file(b"f", b"1"), file(b".wh.f"), file(b"f", b"1")],
}  # fmt: skip

_TAR = file(b"d/f", b"data" * 5_000) + directory(b"d", mode=0o711) + END


def _gzip_with_everything(data: bytes) -> bytes:
    """One member with every optional header field: FEXTRA, FNAME, FCOMMENT and FHCRC."""
    head = b"\x1f\x8b\x08\x1e" + pack("<IBB", 5, 2, 3) + pack("<H", 4) + b"ex\0\0" + b"name\0" + b"comment\0"
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = pack("<II", zlib.crc32(data), len(data))
    return head + pack("<H", zlib.crc32(head) & 0xFFFF) + raw.compress(data) + raw.flush() + tail


def _skippable(data: bytes, number: int = 0) -> bytes:
    return pack("<II", 0x184D2A50 + number, len(data)) + data


def _zstd(data: bytes, **parameters: int | bool) -> bytes:
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, **parameters)
    ).compress(data)


_RLE = b"\x28\xb5\x2f\xfd" + b"\x20\xff" + (1 | 1 << 1 | 255 << 3).to_bytes(3, "little") + b"\0"
_HALF = len(_TAR) // 2

COMPRESSED: dict[str, list[bytes]] = {
    "gzip": [gzip.compress(_TAR, 9, mtime=0)],
    "gzip_members": [b"".join(gzip.compress(_TAR[at : at + 700], 1) for at in range(0, len(_TAR), 700))],
    "gzip_empty_members": [gzip.compress(b"") + gzip.compress(_TAR[:_HALF]) + gzip.compress(b"") * 3 + gzip.compress(_TAR[_HALF:]) + gzip.compress(b"")],
    "gzip_fields": [_gzip_with_everything(_TAR)],
    "gzip_stored": [gzip.compress(_TAR, 0)],
    "gzip_zeros_behind": [gzip.compress(_TAR) + bytes(512)],
    "gzip_garbage_behind": [gzip.compress(_TAR) + b"garbage"],
    "gzip_cut": [gzip.compress(_TAR)[:-9]],
    "gzip_garbage_in_tar": [gzip.compress(_TAR + b"garbage" * 100)],
    "tar_garbage_behind": [_TAR + b"garbage" * 100],
    "tar_no_end": [_TAR[:-1024]],
    "zstd": [zstandard.compress(_TAR, 3)],
    "zstd_frames": [b"".join(zstandard.compress(_TAR[at : at + 700], 1) for at in range(0, len(_TAR), 700))],
    "zstd_skippable": [_skippable(b"first") + zstandard.compress(_TAR[:_HALF]) + _skippable(b"", 15) + zstandard.compress(_TAR[_HALF:]) + _skippable(b"last" * 9, 7)],
    "zstd_empty_frames": [zstandard.compress(b"") + zstandard.compress(_TAR) + zstandard.compress(b"")],
    "zstd_no_size": [_zstd(_TAR, write_content_size=False, write_checksum=True)],
    "zstd_rle": [zstandard.compress(_TAR[: -1024]) + _zstd(bytes(300_000))],
    "zstd_rle_block": [zstandard.compress(_TAR) + _RLE * 4],
    "zstd_window_128m": [_zstd(_TAR, window_log=27, write_content_size=False)],
    "zstd_only_skippable": [_skippable(b"no tar"), file(b"f", b"1")],
    "zstd_window_8m": [_zstd(_TAR, window_log=23, write_content_size=False)],
    "zstd_cut": [zstandard.compress(_TAR)[:-3]],
    "zstd_garbage_behind": [zstandard.compress(_TAR) + b"garbage"],
    "mixed": [_TAR, gzip.compress(file(b"g", b"1")), zstandard.compress(file(b"d/.wh.f") + END)],
}  # fmt: skip

IMAGES = IMPLIED | HIDING | SHAPES | COMPRESSED

ACCEPTED = {
    "gzip_zeros_behind": "containerd's own gunzip refuses zero padding, the unpigz that it prefers does not",
}
"""Images that this project takes and these containerds refuse, with the reason."""

DECLINED = {
    "opaque_replaced": "containerd refuses what the layer replaces if something in a layer below is in its way",
    "implied_default_acl": "what the layer puts into the directory inherits an ACL that only the layer below has",
    "implied_listed_later": "files in the directory may have the group of a set-group-id directory below",
    "implied_listed_later_acl": "the directory keeps an ACL that only the layer below has",
    "first_whiteout": "a first layer's whiteouts act on the layer itself",
    "first_whiteout_of_own": "a first layer's whiteouts act on the layer itself",
    "first_opaque_around_implied": "a first layer's opaque markers act on the layer itself",
    "first_opaque_root_last": "a first layer's opaque markers act on the layer itself",
}
"""Images that containerd takes and this project leaves to it, with what it cannot know."""
