"""POSIX ACLs as xattr values (Linux include/uapi/linux/posix_acl_xattr.h), and what chmod does to them.

containerd sets xattrs first and the mode last; the kernel then writes the mode into the access ACL. An ACL that says
no more than a mode is not kept at all.
"""

from __future__ import annotations

from struct import Struct, iter_unpack

from imgdist.errors import DeclinedError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = Struct("<I")
_ENTRY = Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
# What may follow each tag; None is the start.
_FOLLOWS: dict[int | None, tuple[int, ...]] = {
    None: (_USER_OBJ,),
    _USER_OBJ: (_USER, _GROUP_OBJ),
    _USER: (_USER, _GROUP_OBJ),
    _GROUP_OBJ: (_GROUP, _MASK, _OTHER),
    _GROUP: (_GROUP, _MASK),
    _MASK: (_OTHER,),
    _OTHER: (),
}

Entry = tuple[int, int, int]
"""(tag, permissions, id)"""


def parse(value: bytes) -> list[Entry] | None:
    """Decode an ACL; [] is "no ACL", None one of a version that the kernel does not know (it is then ignored).

    Raises:
        DeclinedError: the kernel, and with it containerd, refuses this value.
    """
    if not value:
        return []
    if len(value) < _VERSION.size:
        raise DeclinedError("layer: a POSIX ACL is cut short, as containerd refuses")
    if _VERSION.unpack_from(value)[0] != 2:
        return None
    if (len(value) - _VERSION.size) % _ENTRY.size:
        raise DeclinedError("layer: a POSIX ACL is cut short, as containerd refuses")
    entries: list[Entry] = list(iter_unpack(_ENTRY.format, value[_VERSION.size :]))
    last: int | None = None
    named = False
    for tag, permissions, _ in entries:
        if tag not in _FOLLOWS[last] or permissions & ~7 or (tag == _OTHER and named and last != _MASK):
            raise DeclinedError("layer: a POSIX ACL is not valid, as containerd refuses")
        named |= tag in (_USER, _GROUP)
        last = tag
    if entries and last != _OTHER:
        raise DeclinedError("layer: a POSIX ACL is not valid, as containerd refuses")
    return [(tag, permissions, number if tag in (_USER, _GROUP) else _NO_ID) for tag, permissions, number in entries]


def encode(entries: list[Entry]) -> bytes:
    """Encode entries as the kernel returns them."""
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def with_mode(value: bytes, mode: int) -> bytes | None:
    """Return the access ACL after chmod(mode), or None if the mode alone says as much.

    The same holds for a new file's access ACL, which starts as its directory's default ACL.
    """
    entries = parse(value) or []
    if not any(tag in (_USER, _GROUP, _MASK) for tag, _, _ in entries):
        return None
    masked = any(tag == _MASK for tag, _, _ in entries)
    now = {_USER_OBJ: mode >> 6 & 7, _MASK if masked else _GROUP_OBJ: mode >> 3 & 7, _OTHER: mode & 7}
    return encode([(tag, now.get(tag, permissions), number) for tag, permissions, number in entries])
