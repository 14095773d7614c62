"""The file tree of one layer, built member by member as containerd's unpacking onto overlayfs would build it.

The rules, and what is refused, were tried against containerd 1.6 and 2.4; tests/conformance/test_erofs_containerd.py
holds this file to them.
"""

from __future__ import annotations

from collections.abc import Callable

from imgdist.erofs import acl, attributes, paths
from imgdist.erofs.attributes import OPAQUE, Xattrs, XattrSets
from imgdist.erofs.directories import Directories, Directory
from imgdist.erofs.inodes import INLINE_MAX, Inodes
from imgdist.erofs.layout import NAME_MAX, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG
from imgdist.erofs.tar import reader
from imgdist.erofs.tar.header import OUT_OF_RANGE, Member
from imgdist.erofs.tar.whiteouts import PREFIX, hidden_name
from imgdist.errors import DeclinedError
from imgdist.limits import Limits

NO_BODY = -1
S_ISGID = 0o2000
_UNCHANGED = 0xFFFFFFFF  # chown(2): leave this id
# What stands in memory beside the bytes themselves, at the end of a conversion, when it is most. Measured with 100,000
# of each: a file 210 to 340 bytes (all in one directory), a directory 640, one named again 150, a set of one xattr 520.
_NAME_BYTES = 340
_DIRECTORY_BYTES = 320
_LISTED_BYTES = 150
_XATTR_BYTES = 500
_KINDS = {
    reader.REGULAR: S_IFREG,
    reader.SYMLINK: S_IFLNK,
    reader.CHAR: S_IFCHR,
    reader.BLOCK_DEVICE: S_IFBLK,
    reader.FIFO: S_IFIFO,
}


class Tree:
    """Takes members in tar order with `apply`, then `finish`.

    `place(size)` returns the first block for the data of a regular file larger than INLINE_MAX.
    Every method raises DeclinedError for what containerd refuses and for what is beyond the limits.
    """

    def __init__(self, place: Callable[[int], int], limits: Limits) -> None:
        self.inodes = Inodes()
        self.xattr_sets = XattrSets()
        self.directories = Directories(self.inodes, limits.link_steps)
        self._by_path = self.directories.by_path
        self._place = place
        self._limits = limits
        self._listed: list[tuple[bytes, int, int]] = []  # directory members: their times are set again at the end
        self._implies = False  # any directory, ever
        self._times_moved = False  # one of those paths may lead elsewhere by then
        self._metadata_bytes = 0

    def apply(self, member: Member) -> int:
        """Do what unpacking `member` does; return the inode that takes its data, or NO_BODY."""
        path = paths.clean(member.name)
        if not path:
            return NO_BODY
        parent_path, _, base = path.rpartition(b"/")
        rooted = b"/" if member.name.startswith(b"/") else b""  # symlinks on the way are resolved in another way then
        parent = self._by_path.get(parent_path) or self._parent(rooted + parent_path)
        if len(base) > NAME_MAX:
            paths.check_name(base)
        if base.startswith(PREFIX):
            self._whiteout(parent, base, member)
            return NO_BODY
        kind = member.kind
        if base in parent.names and not (kind == reader.DIRECTORY and self._is_directory(parent, base)):
            self._remove(parent, base)
        if kind == reader.REGULAR:
            return self._regular(parent, base, member)
        if kind == reader.DIRECTORY:
            self._directory(parent, base, path, member)
        elif kind == reader.LINK:
            self._link(parent, base, member)
        elif kind in _KINDS:
            self._special(parent, base, member, _KINDS[kind])
        elif kind != reader.PAX_GLOBAL:
            raise DeclinedError(f"layer: member {path[:200]!r} has type {chr(kind)!r}, as containerd refuses")
        return NO_BODY

    def finish(self) -> None:
        """Set the times that are known last: of listed directories as containerd does, of implied ones."""
        if self._times_moved:
            for path, seconds, nanoseconds in self._listed:
                self._touch(path, seconds, nanoseconds)
        inodes = self.inodes
        for directory in reversed(list(self.directories.walk())):
            if directory.implied and directory.names:
                newest = max((inodes.mtime_s[child], inodes.mtime_ns[child]) for child in directory.names.values())
                inodes.mtime_s[directory.inode], inodes.mtime_ns[directory.inode] = newest

    # Making files.

    def _regular(self, parent: Directory, base: bytes, member: Member) -> int:
        size = member.size
        place = self._place(size) if size > INLINE_MAX else len(self.inodes.payload)
        if size <= INLINE_MAX:
            self._charge(size)
        return self._new(parent, base, member, S_IFREG, size, place)

    def _special(self, parent: Directory, base: bytes, member: Member, kind: int) -> None:
        if kind != S_IFLNK:
            if member.device == OUT_OF_RANGE:
                raise DeclinedError(f"layer: device {base!r} has a number beyond 32 bits, as containerd 2 refuses")
            self._new(parent, base, member, kind, 0, 0 if kind == S_IFIFO else member.device)
            return
        target = member.link
        if not 0 < len(target) <= paths.PATH_MAX:
            raise DeclinedError(f"layer: a symlink has a target of {len(target)} bytes, as the kernel refuses")
        self._charge(len(target))
        self._new(parent, base, member, kind, len(target), len(self.inodes.payload))
        self.inodes.payload += target

    def _new(self, parent: Directory, base: bytes, member: Member, kind: int, size: int, place: int) -> int:
        self._charge(_NAME_BYTES + len(base))
        uid, gid = member.uid & 0xFFFFFFFF, member.gid & 0xFFFFFFFF
        mode = kind | (0o777 if kind == S_IFLNK else member.mode & 0o7777)
        number = self.inodes.add(
            mode,
            0 if uid == _UNCHANGED else uid,
            self._group(parent) if gid == _UNCHANGED else gid,
            member.mtime_s,
            member.mtime_ns,
            size,
            place,
        )
        parent.names[base] = number
        if member.xattrs or parent.default_acl:
            self._set_xattrs(number, self._inherited(parent, mode), member.xattrs or {})
        return number

    def _directory(self, parent: Directory, base: bytes, path: bytes, member: Member) -> None:
        if base in parent.names:
            directory = self.directories.child(parent, base)
            self._change(directory.inode, member)
            directory.described_late |= directory.implied
        else:
            directory = self._make_directory(parent, base, self._new(parent, base, member, S_IFDIR, 0, 0))
        directory.implied = False
        directory.default_acl = self._xattrs(directory.inode).get(acl.DEFAULT)
        if path == directory.path:
            path = directory.path  # one object for both tables
        else:
            self._times_moved = True
        self._charge(_LISTED_BYTES)
        self._listed.append((path, member.mtime_s, member.mtime_ns))

    def _make_directory(self, parent: Directory, base: bytes, inode: int) -> Directory:
        path = parent.path + b"/" + base if parent.path else base
        self._charge(_DIRECTORY_BYTES + len(path))
        directory = self._by_path[path] = Directory(inode, path, parent)
        directory.default_acl = parent.default_acl
        return directory

    def _link(self, parent: Directory, base: bytes, member: Member) -> None:
        above, _, name = member.link.rpartition(b"/")
        number = self.directories.inode(paths.clean(self.directories.resolve(above) + b"/" + name))
        if number is None:
            raise DeclinedError(
                f"layer: hard link {base!r} -> {member.link[:200]!r}: no such file in this layer before it; "
                "containerd refuses it, and one of a lower layer cannot be converted alone"
            )
        if self.inodes.is_directory(number):
            raise DeclinedError(f"layer: hard link {base!r} -> {member.link[:200]!r} is to a directory")
        self._charge(_NAME_BYTES + len(base))
        parent.names[base] = number
        self.inodes.links[number] += 1
        self._change(number, member)

    def _whiteout(self, parent: Directory, base: bytes, member: Member) -> None:
        name = hidden_name(base)
        if name is None:
            self._make_opaque(parent)
            return
        if name in parent.names:
            raise DeclinedError(f"layer: whiteout {base!r} comes after its file or twice, as containerd refuses")
        marker = Member(reader.CHAR, name, b"", 0, member.uid, member.gid, member.mtime_s, member.mtime_ns, 0, 0)
        self._new(parent, name, marker, S_IFCHR, 0, 0)

    def _make_opaque(self, directory: Directory) -> None:
        if directory is not self.directories.root:
            xattrs = self._xattrs(directory.inode)
            xattrs[OPAQUE] = b"y"
            self.inodes.xattrs[directory.inode] = self.xattr_sets.number(xattrs)
        elif self._implies:  # overlayfs does not look at the root's, so nothing would tell of it
            raise DeclinedError(
                "layer: it makes the root opaque behind members in directories that it does not describe: containerd"
                " removes those if it is the first of an image, and only then"
            )

    # Changing and removing files.

    def _change(self, number: int, member: Member) -> None:
        """Apply a member's owner, xattrs, mode and time to a file that exists (a hard link's, a directory's)."""
        inodes = self.inodes
        kind = inodes.kind(number)
        uid, gid = member.uid & 0xFFFFFFFF, member.gid & 0xFFFFFFFF
        if uid != _UNCHANGED:
            inodes.uid[number] = uid
        if gid != _UNCHANGED:
            inodes.gid[number] = gid
        if kind != S_IFLNK:
            inodes.mode[number] = kind | member.mode & 0o7777
        inodes.mtime_s[number], inodes.mtime_ns[number] = member.mtime_s, member.mtime_ns
        if member.xattrs or inodes.xattrs[number]:
            current = self._xattrs(number)
            if kind != S_IFDIR:
                current.pop(attributes.CAPABILITY, None)  # chown(2) drops a file's capabilities
            self._set_xattrs(number, current, member.xattrs or {})

    def _xattrs(self, number: int) -> Xattrs:
        return dict(self.xattr_sets.sets[self.inodes.xattrs[number]])

    def _set_xattrs(self, number: int, current: Xattrs, wanted: Xattrs) -> None:
        xattrs = attributes.merged(current, wanted, self.inodes.mode[number])
        known = len(self.xattr_sets.sets)
        self.inodes.xattrs[number] = self.xattr_sets.number(xattrs)
        if len(self.xattr_sets.sets) > known:
            self._charge(sum(_XATTR_BYTES + 2 * (len(name) + len(value)) for name, value in xattrs.items()))

    def _inherited(self, parent: Directory, mode: int) -> Xattrs:
        """Return the ACLs that the kernel gives a new file in `parent`."""
        if parent.default_acl is None or mode & S_IFMT == S_IFLNK:
            return {}
        xattrs = {acl.ACCESS: parent.default_acl}
        if mode & S_IFMT == S_IFDIR:
            xattrs[acl.DEFAULT] = parent.default_acl
        return xattrs

    def _group(self, parent: Directory) -> int:
        """Return the group of a new file in `parent`: root's, or that of a set-group-id directory."""
        return self.inodes.gid[parent.inode] if self.inodes.mode[parent.inode] & S_ISGID else 0

    def _is_directory(self, parent: Directory, base: bytes) -> bool:
        return self.inodes.is_directory(parent.names[base])

    def _remove(self, parent: Directory, base: bytes) -> None:
        """Remove a file, or a directory with all below it."""
        pending = [(parent, base)]
        while pending:
            holder, name = pending.pop()
            number = holder.names.pop(name)
            if self.inodes.is_directory(number):
                directory = self._by_path.pop(holder.path + b"/" + name if holder.path else name)
                if directory.implied or directory.described_late:
                    raise DeclinedError(
                        f"layer: {directory.path[:200]!r} is replaced after something was put into it before it was"
                        " described; whether containerd took that depends on the layers below"
                    )
                pending.extend((directory, child) for child in list(directory.names))
                self._times_moved = True
            self.inodes.links[number] -= 1

    # Finding directories.

    def _parent(self, path: bytes) -> Directory:
        """Return the directory at `path`, following this layer's symlinks and making what is missing."""
        path = self.directories.resolve(path)
        directory = self.directories.root
        done = b""
        for part in path.split(b"/") if path else ():
            done = done + b"/" + part if done else part
            below = self._by_path.get(done)
            if below is None:
                if part in directory.names:
                    raise DeclinedError(f"layer: a member lies below {done[:200]!r}, which is no directory")
                if len(done) > paths.PATH_MAX:
                    raise DeclinedError(f"layer: a path has more than {paths.PATH_MAX} bytes")
                below = self._imply(directory, part)
            directory = below
        return directory

    def _imply(self, parent: Directory, name: bytes) -> Directory:
        self._charge(_NAME_BYTES + len(name))
        self._implies = True
        inode = self.inodes.add(S_IFDIR | 0o755, 0, self._group(parent), 0, 0)
        parent.names[name] = inode
        if parent.default_acl:
            self._set_xattrs(inode, self._inherited(parent, S_IFDIR), {})
        return self._make_directory(parent, name, inode)

    def _touch(self, path: bytes, seconds: int, nanoseconds: int) -> None:
        """Set the time at the end of the path of a directory member, whatever is there now."""
        path = self.directories.resolve(path)
        number = self.directories.inode(path)
        if number is None:
            raise DeclinedError(f"layer: directory {path[:200]!r} was replaced by what leads nowhere, as refused")
        self.inodes.mtime_s[number], self.inodes.mtime_ns[number] = seconds, nanoseconds

    def _charge(self, count: int) -> None:
        self._metadata_bytes += count
        if self._metadata_bytes > self._limits.metadata_bytes:
            raise DeclinedError(
                f"layer: its names, small files and xattrs take more than {self._limits.metadata_bytes} bytes of memory"
            )
