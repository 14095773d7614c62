"""The metadata region: where every inode goes, and its bytes.

One contiguous region behind the data: inodes (the root at slot 2, then each directory's children together, sorted by
name), then blocks of large directories and long symlinks, then the shared xattrs. No inode with what is inline behind
it crosses a block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from imgdist.erofs import layout
from imgdist.erofs.attributes import OPAQUE
from imgdist.erofs.directories import Directory
from imgdist.erofs.layout import INODE, INODE_BYTES, S_IFCHR, S_IFDIR, S_IFMT, S_IFREG, SLOT
from imgdist.erofs.tree import Tree
from imgdist.pack import BLOCK
from imgdist.pack.chunker import Chunker

ROOT_NID = 2
_FLUSH = 64 * 1024


@dataclass(frozen=True, slots=True)
class Region:
    """Where the metadata ended up. `xattr_block` is 0 if there are no xattrs."""

    first_block: int
    blocks: int
    xattr_block: int
    inodes: int
    files: int
    implied: tuple[bytes, ...]
    hides: bytes


class MetadataWriter:
    """Lays out the finished tree and writes it through the chunker, once, with `write`."""

    def __init__(self, tree: Tree, chunker: Chunker) -> None:
        self._tree = tree
        self._inodes = tree.inodes
        self._chunker = chunker
        self._nids = array("Q", bytes(8 * len(tree.inodes)))
        self._order = array("I")
        self._directories: dict[int, Directory] = {}
        self._blocks: dict[int, tuple[int, int]] = {}  # what needs blocks: (first one in the block area, bytes in them)
        self._block_count = 0
        self._end = ROOT_NID * SLOT  # bytes of the inode area so far
        self._xattr_ids: list[tuple[int, ...]] = []
        self._whiteout = b""

    def write(self) -> Region:
        """Write the region and return where it is."""
        shared = self._number_xattrs()
        self._place_all()
        first = self._chunker.begin_metadata()
        block_area = first + -(-self._end // BLOCK)
        blocks = self._write_inodes(block_area)
        assert len(blocks) == self._block_count * BLOCK
        self._chunker.write(blocks)
        xattr_block = block_area + self._block_count if shared else 0
        self._chunker.write(shared)
        end = self._chunker.finish()
        files = sum(1 for number in self._order if self._inodes.kind(number) == S_IFREG)
        return Region(first, end - first, xattr_block, len(self._order), files, self._implied(), self._hides())

    def _implied(self) -> tuple[bytes, ...]:
        """Name the directories that the layers below have a say in, as `LayerSummary` does."""
        found = (item for item in self._directories.values() if item.path and (item.implied or item.described_late))
        return tuple(sorted(item.path if item.implied else item.path + b"/" for item in found))

    def _hides(self) -> bytes:
        """What only unpacking could show if this were an image's first layer, as `LayerSummary` says."""
        if self._whiteout:
            return self._whiteout
        for item in self._directories.values():
            if item.implied or item.described_late:
                while (item := item.parent) is not self._tree.directories.root:
                    if any(name == OPAQUE for name, _ in self._tree.xattr_sets.sets[self._inodes.xattrs[item.inode]]):
                        return item.path
        return b""

    def _number_xattrs(self) -> bytes:
        """Encode the shared area: each distinct (name, value) of a live inode once, sorted."""
        sets = self._tree.xattr_sets.sets
        used = {number for number, links in zip(self._inodes.xattrs, self._inodes.links, strict=True) if links}
        ids: dict[tuple[bytes, bytes], int] = {}
        area = bytearray()
        for item in sorted({item for number in used for item in sets[number]}):
            ids[item] = len(area) // 4
            area += layout.xattr_entry(*item)
        self._xattr_ids = [
            tuple(ids[item] for item in items) if number in used else () for number, items in enumerate(sets)
        ]
        return bytes(area)

    # Pass 1: places.

    def _place_all(self) -> None:
        directories, inodes = self._tree.directories, self._inodes
        self._place_directory(directories.root)
        pending = [directories.root]
        for directory in pending:
            for name, number in directory.names.items():
                if self._nids[number]:
                    continue  # a hard link to what stands already
                if inodes.is_directory(number):
                    child = directories.child(directory, name)
                    self._place_directory(child)
                    pending.append(child)
                else:
                    if inodes.mode[number] == S_IFCHR and not inodes.place[number]:
                        self._whiteout = self._whiteout or directory.path_of(name)
                    payload = inodes.kept_payload(number)
                    self._place(number, len(payload) if payload else 0)

    def _place_directory(self, directory: Directory) -> None:
        names = directory.names
        directory.names = {name: names[name] for name in sorted(names)}
        size = layout.directory_size(sorted([b".", b"..", *names]))
        self._directories[directory.inode] = directory
        self._place(directory.inode, size)

    def _place(self, number: int, payload: int) -> None:
        """Give an inode its slot; `payload` bytes of directory, symlink or small file go behind it or into blocks."""
        need = INODE_BYTES + layout.xattr_body_size(len(self._xattr_ids[self._inodes.xattrs[number]]))
        tail = payload % BLOCK
        room = BLOCK - self._end if number == 0 else BLOCK  # the root cannot move to the next block
        if need + tail > room:
            tail = 0
        need += tail
        if payload > tail:
            self._blocks[number] = self._block_count, payload - tail
            self._block_count += -((tail - payload) // BLOCK)
        if self._end % BLOCK + need > BLOCK:
            self._end += -self._end % BLOCK
        self._nids[number] = self._end // SLOT
        self._end += need + -need % SLOT
        self._order.append(number)

    # Pass 2: bytes.

    def _write_inodes(self, block_area: int) -> bytearray:
        """Write the inode area; return the bytes of the block area, which stands behind it."""
        blocks = bytearray()
        out = bytearray()
        done = 0
        for number in self._order:
            out += bytes(self._nids[number] * SLOT - done - len(out))
            out += self._inode(number, block_area, blocks)
            if len(out) >= _FLUSH:
                self._chunker.write(out)
                done += len(out)
                out = bytearray()
        out += bytes(-(done + len(out)) % BLOCK)
        self._chunker.write(out)
        return blocks

    def _inode(self, number: int, block_area: int, blocks: bytearray) -> bytes:
        inodes = self._inodes
        mode = inodes.mode[number]
        xattrs = layout.xattr_body(self._xattr_ids[inodes.xattrs[number]])
        data_format, size, place = layout.EXTENDED_PLAIN, inodes.size[number], inodes.place[number]
        payload: bytes | memoryview | None
        if mode & S_IFMT == S_IFDIR:
            directory = self._directories[number]
            payload = layout.directory(list(self._entries(directory)))
            size = len(payload)
            links = 2 + len(self._tree.directories.below(directory))
        else:
            payload = inodes.kept_payload(number)
            links = inodes.links[number]
        if payload is None:
            payload = b""
        elif number in self._blocks:
            first, length = self._blocks[number]
            place = block_area + first
            blocks += payload[:length]
            blocks += bytes(-len(blocks) % BLOCK)
            payload = payload[length:]
        else:
            place = 0
        if payload:
            data_format = layout.EXTENDED_INLINE
        head = INODE.pack(
            data_format,
            layout.xattr_icount(len(xattrs)),
            mode,
            0,
            size,
            place,
            number + 1,
            inodes.uid[number],
            inodes.gid[number],
            inodes.mtime_s[number],
            inodes.mtime_ns[number],
            links,
        )
        return b"".join((head, xattrs, payload))

    def _entries(self, directory: Directory) -> Iterator[tuple[bytes, int, int]]:
        inodes, nids = self._inodes, self._nids
        entries = [
            (name, nids[number], layout.file_type(inodes.mode[number])) for name, number in directory.names.items()
        ]
        entries.append((b".", nids[directory.inode], 2))
        entries.append((b"..", nids[directory.parent.inode], 2))
        return iter(sorted(entries))
