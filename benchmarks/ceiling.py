"""What the machine could do at best: its measured ceilings, and what a training step needs of them."""

import statistics
import time

import torch

from vggres.models import build, count_parameters, layers

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device: torch.device, repeats: int = 7) -> float:
    """Median seconds of a call; the first two calls warm up."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def matrix_product(device: torch.device, precision: str) -> float:
    """Operations a second of the best square matrix product, on random data."""
    best = 0.0
    for n in (4096, 8192) if device.type == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))
        best = max(best, 2 * n**3 / seconds(lambda a=a, b=b: a @ b, device))
    return best


def copy(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy far larger than the caches."""
    source = torch.ones((2 << 30 if device.type == "cuda" else 256 << 20) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def needs(model: str, precision: str, batch: int) -> tuple[float, float]:
    """Operations and bytes of a training step, for each image.

    Counted are the convolutions and the linear layer: two operations a multiply-add, forward, for the gradient of
    the input and for that of the weight; each tensor that one of these three reads or writes moves once, as if all
    between two layers were fused into them. The first layer needs no gradient of its input. Adam adds
    four float32 numbers read and three written for each parameter, once a batch.
    """
    net, found = build(model, seed=0).eval(), []
    for _, layer in layers(net):
        layer.register_forward_hook(lambda m, i, z: found.append((m.weight.numel() * z[0, 0].numel(), i[0], z)))
    net(torch.zeros(1, 3, 32, 32))
    operations = moved = 0
    for k, (multiply_adds, x, z) in enumerate(found):
        passes = 3 if k else 2
        operations += 2 * passes * multiply_adds
        moved += passes * (x.numel() + z.numel())
    return operations, moved * DTYPES[precision].itemsize + 7 * 4 * count_parameters(net) / batch


def floor(model: str, precision: str, batch: int, product: float, copied: float) -> float:
    """Seconds an image that no way of training can go below, on a machine of these two ceilings."""
    operations, moved = needs(model, precision, batch)
    return max(operations / product, moved / copied)
