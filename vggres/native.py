"""The C sources of this package, compiled for this processor where there is a C compiler."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor


@functools.cache
def compiled(name: str) -> ctypes.CDLL | None:
    """`name`.c, compiled within a second; None if `cc` cannot compile it, or not for this processor."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, target = Path(__file__).with_name(f"{name}.c"), Path(folder) / f"{name}.so"
        flags = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
        try:
            subprocess.run(["cc", *flags, "-o", target, source], check=True, capture_output=True)
            return ctypes.CDLL(str(target))
        except (OSError, subprocess.CalledProcessError):
            return None


def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Where the tensors' numbers begin; a null pointer for None."""
    return [ctypes.c_void_p(t.data_ptr() if t is not None else None) for t in tensors]
