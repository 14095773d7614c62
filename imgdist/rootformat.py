"""ROOT/format: the version of everything below a daemon's root directory, as a number and a newline.

A release reads what it and the one before write. It raises the number only for what the one before cannot read, which
then refuses the directory instead of misreading it.
"""

from __future__ import annotations

import os
from pathlib import Path

from imgdist.errors import ImgdistError, NewerFormatError

VERSION = 1
_NAME = "format"


def check(root: Path) -> None:
    """NewerFormatError if a newer release has written there; a directory without the file is new, or from before it.
    Only looks: another process may be using it."""
    file = root / _NAME
    try:
        text = file.read_text("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):  # what is no directory is refused by whoever makes it one
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ImgdistError(f"{file}: expected a format version, cannot be read: {error}") from None
    if not text.isdigit():
        raise ImgdistError(f"{file}: expected a format version, found {text[:40]!r}; another program's directory?")
    if int(text) > VERSION:
        raise NewerFormatError(
            f"{root} is of format {text}, this release reads up to {VERSION}: go on with the newer release that wrote "
            "it, or choose another --root"
        )


def mark(root: Path) -> None:
    """Say that this release writes there. OSError if the disk refuses."""
    file, text = root / _NAME, f"{VERSION}\n"
    if file.exists() and file.read_text("ascii") == text:
        return
    fresh = root / f"{_NAME}.new"
    with fresh.open("w", encoding="ascii") as written:
        written.write(text)
        written.flush()
        os.fsync(written.fileno())  # a power cut must not leave the name without the number: no start would go on
    os.replace(fresh, file)
