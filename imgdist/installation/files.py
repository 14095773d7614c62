"""Files that install writes: each replaced in one step, and known again by a first line that vouches for the rest."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import itertools
import os
import tempfile
from pathlib import Path

from imgdist.errors import ImgdistError

_MARK = "# Written by imgdist install, digest "
_ASIDE = ".edited"


class Standing(enum.Enum):
    """What stands at a path."""

    NOTHING = "nothing"
    OURS = "ours"
    EDITED = "edited"
    """Ours once; somebody has changed it since."""
    FOREIGN = "foreign"


def standing(path: Path) -> Standing:
    """Whose file it is. ImgdistError if it cannot be read."""
    text = read(path)
    if text is None:
        return Standing.NOTHING
    first, _, rest = text.partition("\n")
    if not first.startswith(_MARK):
        return Standing.FOREIGN
    return Standing.OURS if first == _mark(rest) else Standing.EDITED


def marked(text: str) -> str:
    """`text` under the line that makes it known as ours."""
    return f"{_mark(text)}\n{text}"


def read(path: Path) -> str | None:
    """The file's text; None if there is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends as they are
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ImgdistError(f"{path}: cannot be read: {error}") from None


def replace(path: Path, text: str) -> bool:
    """Put `text` there, all or nothing, keeping owner and mode of what it replaces, and symlinks to it; False if it
    was there already."""
    if read(path) == text:
        return False
    try:
        path = path.resolve()
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                _as_before(path, file.fileno())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ImgdistError(f"{path}: cannot be written: {error.strerror}") from None
    return True


def remove(path: Path) -> None:
    """Take a file away, and its directory if that is empty then."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ImgdistError(f"{path}: cannot be removed: {error.strerror}") from None
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def give_back(path: Path, text: str) -> None:
    """A file as it was; none if there was none."""
    if text.strip() or path.is_symlink():
        replace(path, text)
    else:
        remove(path)


def set_aside(path: Path) -> Path:
    """Rename a file so that nobody reads it any more; its new path. What was set aside before stays."""
    names = (f"{path.name}{_ASIDE}{number or ''}" for number in itertools.count())
    aside = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    try:
        path.replace(aside)
    except OSError as error:
        raise ImgdistError(f"{path}: cannot be renamed to {aside}: {error.strerror}") from None
    return aside


def _mark(text: str) -> str:
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]}; imgdist uninstall removes it."


def _as_before(path: Path, descriptor: int) -> None:
    try:
        before = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, 0o644)
        return
    os.fchmod(descriptor, before.st_mode & 0o7777)
    os.fchown(descriptor, before.st_uid, before.st_gid)
