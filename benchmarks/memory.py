"""Peak memory of a small training (on CUDA: reserved on the device), in a process of its own.

`python -m benchmarks.memory MODEL DEVICE`
"""

import os
import resource
import sys
import tempfile
from pathlib import Path

import torch

from vggres import data, training
from vggres.runs import Run


def main(model: str, device: str) -> None:
    os.environ.setdefault("VGGRES_COMMIT", "0" * 40)  # the record is thrown away
    loaded = data.load("cifar100" if data.available() else "synthetic")
    with tempfile.TemporaryDirectory() as results:
        training.train(Run(model, epochs=1, limit=1000), 0, loaded, results, device)
    if device.startswith("cuda"):
        print(torch.cuda.max_memory_reserved(device))
    else:
        print(high_water_mark())


def high_water_mark() -> int:
    """Of this process's resident memory, in bytes. Linux's `ru_maxrss` would count the parent's too."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
