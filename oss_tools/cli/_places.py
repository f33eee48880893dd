"""Whether a place that is to be written to can be, before there is anything to write."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from oss_tools.errors import BadRequest

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def require_writable(folder: Path, option: str) -> None:
    """Raises BadRequest, naming the option, for a folder that is read-only, or that cannot be made. Makes nothing."""
    try:
        place = next(part for part in (folder, *folder.absolute().parents) if part.exists())
        if not place.is_dir():
            raise BadRequest(f"{option} {folder}: {place} is a file, not a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        what = "is read-only" if error.errno in READ_ONLY else f"cannot be written to ({error.strerror or error})".lower()
        raise BadRequest(f"{option} {folder}: this place {what}; name another") from None
