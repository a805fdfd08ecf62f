"""The layers of `fused` on a GPU: convolutions that apply bias, shortcut and activation as they go, or collect sums for
the batch normalisation. The arithmetic is in `kernels`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    from vggres import kernels
except ImportError:  # Triton comes with torch where torch has CUDA
    kernels = None

CHANNELS = 32
BLOCK, STEP = 128, 64  # pixels per program, and per step of those that sum over many
COPIES = 16  # of the sums over a batch, so that fewer programs add to the same one


def available(dtype: torch.dtype = torch.bfloat16) -> str | None:
    """ "triton", if it is there and, on a GPU, what launches its kernels: a C compiler, Python's headers, libcuda."""
    try:
        ready = kernels is not None and (not torch.cuda.is_available() or bool(kernels.triton.runtime.driver.active))
    except Exception:  # its class depends on what is missing
        ready = False
    return "triton" if ready else None


def reads(*tensors: Tensor) -> bool:
    """Whether all are where the kernels can read them; without a GPU, Triton interprets."""
    return all(t.is_cuda for t in tensors) or not torch.cuda.is_available()


def prepared(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The weights as the other functions here take them."""
    return weight.contiguous(memory_format=torch.channels_last)


def pool(x: Tensor) -> Tensor:
    """The mean of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def pool_back(dy: Tensor) -> Tensor:
    """The gradient of `pool`. Torch's own takes four times as long."""
    n, c, h, w = dy.shape
    dy = (dy / 4).permute(0, 2, 3, 1)[:, :, None, :, None]
    return dy.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float) -> Tensor:
    """Convolution, shortcut, activation. Shapes: (N, 32, H, H), (out, in, 3, 3), (32,), as x -> as x"""
    return _convolve(x, weight, bias=bias, shortcut=shortcut, slope=slope)


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Convolution, batch normalisation, shortcut, activation. Returns: the convolution's results, the final
    results, and what `back` needs of the batch."""
    sums, moments = torch.zeros(2, COPIES, 2, CHANNELS, device=x.device), norm.weight.new_empty(2 * CHANNELS)
    z = _convolve(x, weight, bias=bias, sums=sums[0])
    y, pixels = torch.empty_like(z), z.numel() // CHANNELS
    kernels.normalise[_programs(pixels)](
        *(z, sums, norm.weight, norm.bias, shortcut, y, moments, norm.running_mean, norm.running_var),
        *(norm.num_batches_tracked, pixels, norm.eps, norm.momentum, slope, COPIES, BLOCK),
    )
    return z, y, [moments, sums[1]]


def back(x: Tensor, weight: Tensor, known: list, slope: float, dx: Tensor | None, wanted: tuple[bool, ...]) -> tuple:
    """As on a CPU: see `fused_cpu`."""
    dy, z, y, gamma, *_ = known
    if z is None:
        dz = dy if y is None else torch.ops.aten.leaky_relu_backward(dy, y, slope, True)
        return *_gradients(x, weight, dz, dx, wanted[2]), dz if wanted[3] else None, None, None
    dz, dshortcut = torch.empty_like(z), torch.empty_like(z) if wanted[3] else None
    sums, pixels = (torch.empty_like(gamma), torch.empty_like(gamma)), z.numel() // CHANNELS
    kernels.sum_back[_programs(pixels)](*known, pixels, slope, COPIES, BLOCK)
    kernels.normalise_back[_programs(pixels)](*known, dz, dshortcut, *sums, pixels, slope, COPIES, BLOCK)
    return *_gradients(x, weight, dz, dx, wanted[2]), dshortcut, *sums


def _gradients(x: Tensor, weight: Tensor, dz: Tensor, dx: Tensor | None, biased: bool):
    """The gradients of input, weight and bias."""
    pixels, numbers = x.numel() // CHANNELS, weight.numel() + biased * CHANNELS
    steps = min(16, max(2, pixels // (STEP * 100)))  # at batch 100 at most 100 parts, each for all 3 rows
    parts = torch.empty(-(-pixels // (STEP * steps)), numbers, device=x.device)
    kernels.parameter_gradients[(len(parts), 3)](x, dz, parts, pixels, steps, biased, x.shape[2], STEP)
    sums = parts.sum(0)
    dweight = sums[: weight.numel()].view(CHANNELS, 3, 3, CHANNELS).permute(0, 3, 1, 2)
    dbias = sums[weight.numel() :] if biased else None
    return _convolve(dz, weight, shortcut=dx, back=True), dweight, dbias


def _convolve(x, weight, bias=None, shortcut=None, sums=None, slope=1.0, back=False) -> Tensor:
    """Shapes: (N, 32, H, H), (out, in, 3, 3), (32,), as x, (COPIES, 2, 32) -> as x"""
    y, pixels = torch.empty_like(x), x.numel() // CHANNELS
    kernels.convolution[_programs(pixels)](
        *(x, weight, bias, shortcut, y, sums, pixels, slope), x.shape[2], back, COPIES, BLOCK
    )
    return y


def _programs(pixels: int) -> tuple[int]:
    return (-(-pixels // BLOCK),)
