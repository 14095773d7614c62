"""Layers with every odd member there is, by name. What is right for each is containerd's to say, not this file's."""

# ruff: noqa: E501 - a table

from __future__ import annotations

from struct import pack

from raw_tar import END, directory, file, hard_link, header, long_name, padded, pax, symlink

_X = b"SCHILY.xattr."
_CAP2 = pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
_CAP3 = pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, 100_000)


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return pack("<I", 2) + b"".join(pack("<HHI", *entry) for entry in entries)


_U, _G, _M, _O = (1, 7, 0xFFFFFFFF), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)
_NAMED = _acl(_U, (2, 6, 1000), _G, _M, _O)
_PLAIN = _acl((1, 6, 0), (4, 4, 0), (32, 4, 0))
_ACCESS, _DEFAULT = _X + b"system.posix_acl_access", _X + b"system.posix_acl_default"


def _sparse(records: dict[bytes, bytes], body: bytes, name: bytes = b"s") -> bytes:
    return pax(records) + file(name, body)


_SPARSE_10 = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"real"}
_MAP_10 = padded(b"2\n1000\n5\n400000\n700\n")

TARS: dict[str, bytes] = {
    # Names
    "absolute": file(b"/abs", b"x") + file(b"//abs2//deep", b"y"),
    "dotdot": file(b"../up", b"x") + file(b"a/../../b/./c", b"y") + file(b"..", b"z"),
    "root_members": directory(b"./", mode=0o700, uid=5) + file(b".", b"no") + symlink(b"/", b"x") + file(b"f", b"x"),
    "empty_name": file(b"", b"x") + file(b"f", b"y"),
    "name_255": long_name(b"n" * 255) + file(b"x", b"1"),
    "name_256": long_name(b"n" * 256) + file(b"x", b"1"),
    "parent_256": long_name(b"n" * 256 + b"/f") + file(b"x", b"1"),
    "path_deep": long_name(b"/".join([b"d" * 100] * 38)) + file(b"x", b"1"),
    "path_too_deep": long_name(b"/".join([b"d" * 100] * 41)) + file(b"x", b"1"),
    "not_utf8": file(b"caf\xe9", b"1") + symlink(b"l", b"\xff\xfe"),
    "prefix": file(b"name", b"1", prefix=b"some/where"),
    "gnu_no_prefix": file(b"name", b"1", magic=b"ustar  \0"),
    "v7": file(b"name", b"1", magic=bytes(8)) + header(b"dir/", b"\0", 0, magic=bytes(8)),
    "old_directory": header(b"old/", b"\0", 0) + file(b"old/f", b"1"),
    "regular_with_slash": file(b"f/", b"1"),
    "gnu_longlink": long_name(b"t" * 150, b"K") + long_name(b"l" * 120) + symlink(b"x", b"y"),
    "gnu_beats_pax": pax({b"path": b"by-pax"}) + long_name(b"by-gnu") + file(b"x", b"1"),
    "pax_empty_path": pax({b"path": b""}) + file(b"kept", b"1"),
    "parent_before": file(b"d/e/f", b"1", mtime=5) + directory(b"d/", mode=0o711, uid=7, mtime=9),
    "repeated": file(b"f", b"one", mode=0o600) + file(b"f", b"two" * 300, mode=0o640) + file(b"f", b"3" * 9000),
    "directory_merges": directory(b"d", mode=0o700) + file(b"d/f", b"1") + directory(b"d", mode=0o755, gid=3, mtime=44),
    "directory_then_file": directory(b"d", mtime=77) + file(b"d/x", b"1") + file(b"d", b"f", mtime=99),
    "directory_then_symlink": directory(b"t", mtime=3) + directory(b"d", mtime=77) + symlink(b"d", b"t", mtime=99),
    "directory_then_dangling": directory(b"d", mtime=77) + symlink(b"d", b"nowhere"),
    "directory_lost": directory(b"d") + directory(b"d/e") + file(b"d", b"f") + directory(b"d"),
    "file_then_directory": file(b"d", b"1") + directory(b"d") + file(b"d/f", b"2"),
    "member_below_file": file(b"d", b"1") + file(b"d/f", b"2"),
    # Numbers and times
    "ids": file(b"a", uid=70_000, gid=4_000_000_000) + file(b"b", uid=0xFFFFFFFF, gid=5) + file(b"c", uid=5, gid=0xFFFFFFFF),
    "ids_absurd": file(b"a", uid=(1 << 32) + 7, gid=1 << 40) + pax({b"uid": b"-2", b"gid": b"99999999999"}) + file(b"b"),
    "id_minus_one_again": directory(b"d", uid=5, gid=6) + directory(b"d", uid=0xFFFFFFFF, gid=7),
    "modes": file(b"a", mode=0o7777) + directory(b"d", mode=0o1777) + directory(b"e", mode=0o2750) + file(b"g", mode=0o170644),
    "times": file(b"a", mtime=-5) + file(b"b", mtime=9_223_372_036) + file(b"c", mtime=9_223_372_037)
    + pax({b"mtime": b"1600000000.123456789999"}) + file(b"d") + pax({b"mtime": b"-1.5"}) + file(b"e")
    + pax({b"mtime": b"9223372036.854775807"}) + file(b"f") + pax({b"mtime": b"9223372036.854775808"}) + file(b"g")
    + pax({b"mtime": b"1.5"}) + symlink(b"s", b"x") + pax({b"mtime": b"2.25", b"atime": b"3.5"}) + directory(b"dir"),
    "time_nan": pax({b"mtime": b"nan"}) + file(b"f"),
    "atime_nan": pax({b"atime": b"x"}) + file(b"f"),
    "mode_not_octal": file(b"f", mode=b"0009\0\0\0\0"),
    "spaces_in_numbers": file(b"f", mode=b"   644 \0", uid=b"      7\0"),
    "base256_too_big": file(b"f", uid=b"\x81" + b"\xff" * 7, mtime=b"\x80\x01" + bytes(10)),
    "size_negative": header(b"f", b"0", -1),
    "size_pax": pax({b"size": b"5"}) + header(b"f", b"0", 0) + padded(b"hello") + file(b"g", b"x"),
    "size_of_symlink": header(b"l", b"2", 600, link=b"t") + file(b"g", b"x"),
    "size_of_directory": header(b"d", b"5", 600, mode=0o755) + file(b"g", b"x"),
    "checksum": file(b"f", b"1")[:148] + b"0000000\0" + file(b"f", b"1")[156:],
    # Kinds
    "devices": header(b"c", b"3", major=1, minor=3) + header(b"b", b"4", major=259, minor=300, mode=0o660) + header(b"p", b"6"),
    "device_large": header(b"c", b"3", major=5000, minor=3_000_000) + header(b"d", b"3", major=b"777777\0", minor=1),
    "device_zero": header(b"c", b"3", mode=0o600),
    "contiguous": header(b"f", b"7", 0),
    "unknown_kind": header(b"f", b"Z", 0),
    "solaris_kind": header(b"f", b"X", 0),
    "global": pax({b"comment": b"x", b"path": b"other"}, b"g", b"pax_global_header") + file(b"f", b"1"),
    "global_implies": pax({b"comment": b"x"}, b"g", b"PaxHeaders.0/global") + file(b"f", b"1"),
    "global_removes": file(b"f", b"1") + pax({b"comment": b"x"}, b"g", b"f"),
    "global_forgets": pax({b"path": b"lost"}) + pax({b"comment": b"x"}, b"g", b"g") + file(b"f", b"1"),
    "symlink_empty": symlink(b"l", b""),
    "symlink_long": pax({b"linkpath": b"t" * 4095}) + symlink(b"l", b"x"),
    "symlink_4000": pax({b"linkpath": b"t" * 4000}) + symlink(b"l", b"x"),
    "symlink_too_long": pax({b"linkpath": b"t" * 4096}) + symlink(b"l", b"x"),
    # Symlinks on the way
    "below_symlink": directory(b"t") + symlink(b"l", b"t") + file(b"l/f", b"1") + directory(b"l/d", mtime=8),
    "below_absolute": directory(b"t") + symlink(b"l", b"/t") + file(b"l/f", b"1"),
    "below_escape": symlink(b"l", b"../../../t") + file(b"l/f", b"1"),
    "below_dangling": symlink(b"l", b"no/where") + file(b"l/f", b"1"),
    "below_chain": directory(b"a") + symlink(b"a/b", b"../c") + symlink(b"c", b"/a/d") + file(b"a/b/x/../f", b"1"),
    "below_file_dotdot": file(b"f", b"1") + symlink(b"l", b"f/../d") + file(b"l/g", b"2"),
    "symlink_loop": symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/f", b"1"),
    "directory_over_symlink": directory(b"t") + symlink(b"l", b"t") + directory(b"l", mtime=6),
    # Hard links
    "hard_link": file(b"a", b"1" * 600, mode=0o600) + hard_link(b"b", b"a", mode=0o640, uid=4, mtime=12),
    "hard_links_small": file(b"z", b"x") + hard_link(b"d/b", b"z") + hard_link(b"c", b"/d/b") + hard_link(b"y", b"./c"),
    "hard_link_missing": hard_link(b"b", b"a"),
    "hard_link_lower": hard_link(b"b", b"base-file"),
    "hard_link_later": hard_link(b"b", b"a") + file(b"a"),
    "hard_link_self": file(b"a") + hard_link(b"a", b"a"),
    "hard_link_directory": directory(b"d") + hard_link(b"b", b"d"),
    "hard_link_symlink": symlink(b"l", b"t") + hard_link(b"m", b"l", uid=9, mtime=5),
    "hard_link_below_symlink": directory(b"d") + file(b"d/f", b"1") + symlink(b"l", b"d") + hard_link(b"m", b"l/f"),
    "hard_link_device": header(b"c", b"3", major=1, minor=3) + hard_link(b"m", b"c", mode=0o600),
    "hard_link_data": file(b"a", b"1") + header(b"b", b"1", 5, link=b"a") + padded(b"hello"),
    "hard_link_size": file(b"a", b"1") + header(b"b", b"1", 5, link=b"a"),
    "hard_link_out": hard_link(b"b", b"../../../../../../../../etc/passwd"),
    "hard_link_outlives": file(b"a", b"1") + hard_link(b"b", b"a") + file(b"a", b"2"),
    "hard_link_dotdot": directory(b"d") + file(b"f", b"1") + hard_link(b"m", b"d/../f"),
    "hard_link_to_root": hard_link(b"m", b".."),
    "hard_link_capability": pax({_X + b"security.capability": _CAP2, _X + b"user.a": b"1"}) + file(b"a") + hard_link(b"b", b"a"),
    "hard_link_empty": hard_link(b"m", b""),
    # Whiteouts
    "whiteout": file(b".wh.gone", uid=3, gid=4) + directory(b"d") + file(b"d/.wh.x"),
    "whiteout_implies": file(b"d/.wh.x"),
    "whiteout_then_file": file(b".wh.f") + file(b"f", b"1"),
    "whiteout_then_directory": file(b".wh.d") + directory(b"d") + file(b"d/f"),
    "whiteout_after": file(b"f") + file(b".wh.f"),
    "whiteout_twice": file(b".wh.f") + file(b".wh.f"),
    "whiteout_below": file(b".wh.d") + file(b"d/f"),
    "whiteout_data": file(b".wh.f", b"data" * 1000) + file(b"g", b"1"),
    "whiteout_kinds": directory(b".wh.a") + symlink(b".wh.b", b"t") + header(b".wh.c", b"7", 0) + header(b".wh.d", b"1", link=b"x"),
    "whiteout_dot": file(b".wh.."),
    "whiteout_dotdot": file(b".wh..."),
    "whiteout_empty": file(b".wh."),
    "whiteout_global": pax({b"comment": b"x"}, b"g", b".wh.g"),
    "aufs": file(b".wh..wh.aufs") + directory(b".wh..wh.plnk") + file(b".wh..wh.plnk/x", b"1"),
    "opaque": directory(b"d", mode=0o700) + file(b"d/.wh..wh..opq") + file(b"d/f", b"1"),
    "opaque_first": file(b"d/.wh..wh..opq") + directory(b"d", mode=0o700),
    "opaque_twice": file(b"d/.wh..wh..opq") + file(b"d/.wh..wh..opq"),
    "opaque_replaced": file(b"d/.wh..wh..opq") + file(b"d", b"1") + directory(b"d"),
    # Extended attributes
    "xattrs": pax({_X + b"user.a": b"1", _X + b"user.b": b"", _X + b"security.x": b"\0\xff=\n", _X + b"trusted.t": b"1"})
    + file(b"f") + pax({_X + b"other.x": b"1", _X + b"user.d": b"dir", b"LIBARCHIVE.xattr.user.l": b"eA"}) + directory(b"d"),
    "xattrs_special": pax({_X + b"user.a": b"1", _X + b"security.s": b"2"}) + symlink(b"l", b"t")
    + pax({_X + b"user.a": b"1", _X + b"security.s": b"2"}) + header(b"p", b"6"),
    "xattr_no_name": pax({_X + b"user.": b"1"}) + file(b"f"),
    "xattr_no_security_name": pax({_X + b"security.": b"1"}) + file(b"f"),
    "xattr_no_key": pax({_X: b"1"}) + file(b"f"),
    "xattr_long_name": pax({_X + b"user." + b"n" * 251: b"1"}) + file(b"f"),
    "xattr_255": pax({_X + b"user." + b"n" * 250: b"v" * 900}) + file(b"f"),
    "xattr_merge": pax({_X + b"user.a": b"1"}) + directory(b"d") + pax({_X + b"user.b": b"2"}) + directory(b"d"),
    "xattr_odd_system": pax({_X + b"system.odd": b"1", _X + b"user": b"1", _X + b"system.posix_acl_accessx": b"1"}) + file(b"f"),
    "capability_2": pax({_X + b"security.capability": _CAP2}) + file(b"f", mode=0o755),
    "capability_3": pax({_X + b"security.capability": _CAP3}) + file(b"f", mode=0o755),
    "capability_bad": pax({_X + b"security.capability": b"x"}) + file(b"f"),
    "capability_symlink": pax({_X + b"security.capability": _CAP2}) + symlink(b"l", b"t"),
    "capability_directory": pax({_X + b"security.capability": _CAP2}) + directory(b"d") + directory(b"d"),
    "acl": pax({_ACCESS: _NAMED}) + file(b"f", mode=0o640) + pax({_ACCESS: _PLAIN}) + file(b"g", mode=0o600),
    "acl_default": pax({_DEFAULT: _NAMED}) + directory(b"d") + file(b"d/f", mode=0o640) + directory(b"d/e")
    + file(b"d/i/j") + symlink(b"d/l", b"t") + header(b"d/p", b"6") + file(b"d/.wh.w"),
    "acl_default_plain": pax({_DEFAULT: _PLAIN}) + directory(b"d") + file(b"d/f", mode=0o641) + directory(b"d/e"),
    "acl_default_file": pax({_DEFAULT: _NAMED}) + file(b"f"),
    "acl_default_empty": pax({_DEFAULT: b""}) + file(b"f") + pax({_ACCESS: b""}) + directory(b"d"),
    "acl_version": pax({_ACCESS: pack("<I", 3)}) + file(b"f"),
    "acl_short": pax({_ACCESS: b"\2\0"}) + file(b"f"),
    "acl_order": pax({_ACCESS: _acl(_G, _U, _O)}) + file(b"f"),
    "acl_no_mask": pax({_ACCESS: _acl(_U, (2, 6, 1000), _G, _O)}) + file(b"f"),
    "acl_mask_only": pax({_ACCESS: _acl(_U, _G, _M, _O)}) + file(b"f", mode=0o600),
    "acl_header_only": pax({_ACCESS: pack("<I", 2)}) + file(b"f", mode=0o600),
    "acl_symlink": pax({_ACCESS: _NAMED, _DEFAULT: _PLAIN}) + symlink(b"l", b"t"),
    "acl_symlink_short": pax({_DEFAULT: b"x"}) + symlink(b"l", b"t"),
    "acl_relinked": pax({_ACCESS: _NAMED}) + file(b"f", mode=0o640) + hard_link(b"g", b"f", mode=0o751),
    # Pax framing
    "pax_bad_length": pax(b"99 path=x\n") + file(b"f"),
    "pax_no_equals": pax(b"8 pathx\n") + file(b"f"),
    "pax_no_newline": pax(b"9 path=xx") + file(b"f"),
    "pax_nul_path": pax({b"path": b"a\0b"}) + file(b"f"),
    "pax_chain": pax({b"path": b"lost", b"uid": b"9"}) + pax({b"path": b"kept"}) + file(b"f"),
    "pax_last_wins": pax([(b"uid", b"1"), (b"uid", b"2")]) + file(b"f"),
    "pax_without_member": pax({b"path": b"lost"}),
    "pax_huge": pax({b"comment": b"c" * (1 << 20)}) + file(b"f"),
    "longname_huge": long_name(b"n" * ((1 << 20) + 1)) + file(b"f"),
    # Sparse
    "sparse_00": pax([(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.offset", b"1000"),
                      (b"GNU.sparse.numbytes", b"3"), (b"GNU.sparse.offset", b"8000"), (b"GNU.sparse.numbytes", b"1000")])
    + file(b"s", b"abc" + b"d" * 1000),
    "sparse_01": _sparse({b"GNU.sparse.size": b"500000", b"GNU.sparse.numblocks": b"2", b"GNU.sparse.name": b"real",
                          b"GNU.sparse.map": b"0,5,499000,1000"}, b"hello" + b"e" * 1000),
    "sparse_10": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"900000"}, _MAP_10 + b"hello" + b"e" * 700),
    "sparse_small": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"300"}, padded(b"1\n100\n5\n") + b"hello"),
    "sparse_empty": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"70000"}, padded(b"0\n")),
    "sparse_overlap": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"900"}, padded(b"2\n0\n5\n3\n5\n") + b"hellohello"),
    "sparse_past_size": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"900"}, padded(b"1\n899\n5\n") + b"hello"),
    "sparse_less_data": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"900"}, padded(b"1\n0\n9\n") + b"hello"),
    "sparse_more_data": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"900"}, padded(b"1\n0\n3\n") + b"hello"),
    "sparse_cut_map": _sparse({**_SPARSE_10, b"GNU.sparse.realsize": b"900"}, b"5\n0\n3\n"),
    "sparse_bad_count": _sparse({b"GNU.sparse.size": b"9", b"GNU.sparse.numblocks": b"3", b"GNU.sparse.map": b"0,1"}, b"x"),
    "sparse_unknown": _sparse({b"GNU.sparse.major": b"2", b"GNU.sparse.minor": b"0"}, b"as it is"),
    "sparse_gnu": header(b"f", b"S", 0, magic=b"ustar  \0"),
    # The end of the archive
    "no_end": file(b"f", b"1")[:-512] + padded(b"1"),
    "one_zero_block": file(b"f", b"1") + bytes(512),
    "zero_block_inside": file(b"f", b"1") + bytes(512) + file(b"g", b"2"),
    "after_the_end": file(b"f", b"1") + END + file(b"hidden", b"2") + b"garbage",
    "no_padding": header(b"f", b"0", 700) + b"x" * 700,
    "cut_in_data": header(b"f", b"0", 700) + b"x" * 600,
    "cut_in_header": file(b"f", b"1") + header(b"g")[:300],
    "cut_in_pax": pax({b"comment": b"x" * 600})[:900],
    "no_tar": b"this is no tar" * 100,
    "empty": END,
    "nothing": b"",
    "data": file(b"a", b"x" * 4096) + file(b"b", b"y" * 262144) + file(b"c", b"z" * 300_000) + file(b"d", b"w" * 513)
    + file(b"e", b"v" * 512) + file(b"g", b""),
}  # fmt: skip
