"""Prove one pack of a store: `python -m supernode.proving.worker idle|soon DIRECTORY` (imgdist.proving.worker)."""

from __future__ import annotations

import sys
from pathlib import Path

from imgdist.pack.index import Index
from imgdist.pack.kinds import Kind
from imgdist.proving.proof import prove, prove_blob
from imgdist.proving.worker import Progress, report
from supernode.store.layout import INDEX
from supernode.store.scrub import open_tar_split, stored_image


def main(when: str, directory: Path) -> int:
    """Look at the pack in `directory`. Returns the exit code."""

    def work(progress: Progress) -> None:
        index = Index.load((directory / INDEX).read_bytes())
        progress.expect = 2 * index.image_size
        image = stored_image(directory, index)
        image.check(progress.looked)
        if index.kind is Kind.RAW:
            prove_blob(image, progress.looked)
            return
        with open_tar_split(directory) as split:
            prove(image, split, progress.looked)

    return report(when, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
