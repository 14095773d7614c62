"""The directories of one layer while it is unpacked, and where paths through its symlinks lead."""

from __future__ import annotations

from collections.abc import Iterator

from imgdist.erofs import paths
from imgdist.erofs.inodes import Inodes
from imgdist.erofs.layout import S_IFDIR, S_IFLNK
from imgdist.errors import DeclinedError


class Directory:
    """A directory's names. `implied`: no member has described it yet; `described_late`: it had to be there before one
    did; `default_acl`: what new files in it inherit."""

    __slots__ = ("default_acl", "described_late", "implied", "inode", "names", "parent", "path")

    def __init__(self, inode: int, path: bytes, parent: Directory | None) -> None:
        self.inode = inode
        self.path = path
        self.parent = parent or self
        self.names: dict[bytes, int] = {}
        self.implied, self.described_late = True, False
        self.default_acl: bytes | None = None

    def path_of(self, name: bytes) -> bytes:
        """Return the path of `name` in it, without a leading slash."""
        return self.path + b"/" + name if self.path else name


class Directories:
    """All of them, the root from the beginning. `by_path` has real paths: no symlink in them, no leading slash."""

    def __init__(self, inodes: Inodes, link_steps: int) -> None:
        """`link_steps` is what following symlinks may take, in path components."""
        self._inodes = inodes
        self._link_steps_max = link_steps
        self._link_steps = 0
        self.root = Directory(inodes.add(S_IFDIR | 0o755, 0, 0, 0, 0), b"", None)
        self.by_path: dict[bytes, Directory] = {b"": self.root}

    def walk(self) -> Iterator[Directory]:
        """Yield every directory, parents first."""
        pending = [self.root]
        for directory in pending:
            yield directory
            pending.extend(self.below(directory))

    def below(self, directory: Directory) -> list[Directory]:
        """Return the directories in `directory`, in the order of its names."""
        prefix = directory.path + b"/" if directory.path else b""
        is_directory = self._inodes.is_directory
        return [self.by_path[prefix + name] for name, child in directory.names.items() if is_directory(child)]

    def child(self, directory: Directory, name: bytes) -> Directory:
        """Return the directory that `name` is in `directory`."""
        return self.by_path[directory.path_of(name)]

    def inode(self, path: bytes) -> int | None:
        """Return the inode at a real path, of whatever kind."""
        directory = self.by_path.get(path)
        if directory is not None:
            return directory.inode
        above, _, name = path.rpartition(b"/")
        holder = self.by_path.get(above)
        return holder.names.get(name) if holder else None

    def resolve(self, path: bytes) -> bytes:
        """Return the real path that `path` leads to, as `paths.resolve`; it need not exist.

        Raises:
            DeclinedError: it leads nowhere, or following symlinks takes too much.
        """
        return path if path in self.by_path else paths.resolve(path, self._look_up, self._spend)

    def _look_up(self, path: bytes) -> bytes | bool | None:
        number = self.inode(path)
        if number is None:
            return None
        if self._inodes.kind(number) != S_IFLNK:
            return self._inodes.is_directory(number)
        payload = self._inodes.kept_payload(number)
        assert payload is not None
        return bytes(payload)

    def _spend(self, steps: int) -> None:
        self._link_steps += steps
        if self._link_steps > self._link_steps_max:
            raise DeclinedError(f"layer: following symlinks takes more than {self._link_steps_max} steps")
