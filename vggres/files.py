"""Files that are either whole or absent."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`; a crash at any moment leaves either the old file or the new one, whole.

    Raises:
        OSError: it cannot be written, as on a full disk; the error names `path`.
    """
    file, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with open(file, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(file)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as e:
        Path(name).unlink(missing_ok=True)  # an interrupt may come just after it was renamed
        if isinstance(e, OSError):  # on a full disk the error does not name the file
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise
