"""Which xattrs of a tar member reach the file, as the kernel and containerd decide it."""

from __future__ import annotations

from imgdist.erofs import acl
from imgdist.erofs.layout import INLINE_XATTRS_MAX, NAME_MAX, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, XATTR_VALUE_MAX
from imgdist.errors import DeclinedError

CAPABILITY = b"security.capability"
OPAQUE = b"trusted.overlay.opaque"

Xattrs = dict[bytes, bytes]


class XattrSets:
    """Every distinct set of xattrs once, as a number; 0 is the empty set. Inodes hold numbers."""

    def __init__(self) -> None:
        self.sets: list[tuple[tuple[bytes, bytes], ...]] = [()]
        self._numbers: dict[tuple[tuple[bytes, bytes], ...], int] = {(): 0}

    def number(self, xattrs: Xattrs) -> int:
        """Return the number of this set, sorted by name.

        Raises:
            DeclinedError: more xattrs than an EROFS inode takes.
        """
        if not xattrs:
            return 0
        if len(xattrs) > INLINE_XATTRS_MAX:
            raise DeclinedError(f"layer: a file has {len(xattrs)} xattrs, an EROFS inode takes {INLINE_XATTRS_MAX}")
        key = tuple(sorted(xattrs.items()))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.sets)
            self.sets.append(key)
        return number


def merged(current: Xattrs, wanted: Xattrs, mode: int) -> Xattrs:
    """Return a file's xattrs after those of a member were set on it and then its mode (type bits included).

    Raises:
        DeclinedError: containerd refuses one of them, or EROFS cannot hold it.
    """
    result = dict(current)
    for name, value in wanted.items():
        if _accepted(name, value, mode):
            result[name] = value
    if acl.DEFAULT in wanted and acl.DEFAULT in result:
        entries = acl.parse(result.pop(acl.DEFAULT))
        if entries:
            result[acl.DEFAULT] = acl.encode(entries)
    if acl.ACCESS in result:
        access = acl.with_mode(result.pop(acl.ACCESS), mode)
        if access is not None:
            result[acl.ACCESS] = access
    return result


def _accepted(name: bytes, value: bytes, mode: int) -> bool:
    """Return whether setting the xattr takes effect; False where containerd drops it silently."""
    if name.startswith(b"trusted."):
        return False
    if not name or len(name) > NAME_MAX or b"\0" in name or name in (b"user.", b"security."):
        raise DeclinedError(f"layer: {name[:64]!r} is no name of an xattr, as containerd refuses")
    if len(value) > XATTR_VALUE_MAX:
        raise DeclinedError(f"layer: xattr {name!r} has {len(value)} bytes, EROFS takes {XATTR_VALUE_MAX}")
    kind = mode & S_IFMT
    if name.startswith(b"user."):
        return kind in (S_IFREG, S_IFDIR)
    if name in (acl.ACCESS, acl.DEFAULT):
        entries = acl.parse(value)
        if kind == S_IFLNK:
            return False
        if name == acl.DEFAULT and kind != S_IFDIR and entries:
            raise DeclinedError("layer: a file that is no directory has a default ACL, as containerd refuses")
        return entries is not None and (name == acl.ACCESS or kind == S_IFDIR)
    if name == CAPABILITY:
        _check_capability(value)
    return name.startswith(b"security.")


def _check_capability(value: bytes) -> None:
    """Refuse what the kernel refuses (validheader in security/commoncap.c): neither revision 2 nor 3."""
    revision = int.from_bytes(value[:4], "little") & 0xFF000000
    if (len(value), revision) not in ((20, 0x02000000), (24, 0x03000000)):
        raise DeclinedError(f"layer: {CAPABILITY!r} has no known form, as containerd refuses: {value[:24]!r}")
