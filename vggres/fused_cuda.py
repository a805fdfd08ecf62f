"""The layers of `fused` on a GPU: convolutions that add the bias, the shortcut and the activation as they go, or sum up
for the batch normalisation. The arithmetic is in `kernels`."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:
    from vggres import kernels
except ImportError:  # Triton comes with torch where torch has CUDA
    kernels = None

CHANNELS = 32
BLOCK, STEP = 128, 64  # pixels a program, and a step of those that sum over many
COPIES = 16  # of the sums over a batch, so that fewer programs add to the same


def available() -> str | None:
    """ "triton", if it is there and, on a GPU, what launches its kernels: a C compiler, Python's headers, libcuda."""
    try:
        ready = kernels is not None and (not torch.cuda.is_available() or bool(kernels.triton.runtime.driver.active))
    except Exception:  # of a class that depends on what is missing
        ready = False
    return "triton" if ready else None


def prepared(weight: Tensor) -> Tensor:
    """As the other functions here take it."""
    return weight.contiguous(memory_format=torch.channels_last)


def pool(x: Tensor) -> Tensor:
    """The mean of 2x2 pixels."""
    return _Pool.apply(x)


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float) -> Tensor:
    """Convolution, shortcut, activation. Shapes: (N, 32, H, H), (out, in, 3, 3), (32,), as x -> as x"""
    return _convolve(x, weight, bias=bias, shortcut=shortcut, slope=slope)


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Convolution, batch normalisation, shortcut, activation. Returns: the convolution's results, those of all,
    and what `normalised_back` wants of the batch."""
    sums, moments = torch.zeros(2, COPIES, 2, CHANNELS, device=x.device), norm.weight.new_empty(2 * CHANNELS)
    z = _convolve(x, weight, bias=bias, sums=sums[0])
    y, pixels = torch.empty_like(z), z.numel() // CHANNELS
    kernels.normalise[_programs(pixels)](
        *(z, sums, norm.weight, norm.bias, shortcut, y, moments, norm.running_mean, norm.running_var),
        *(norm.num_batches_tracked, pixels, norm.eps, norm.momentum, slope, COPIES, BLOCK),
    )
    return z, y, [moments, sums[1]]


def normalised_back(
    dy: Tensor, z: Tensor, y: Tensor | None, gamma: Tensor, beta: Tensor, batch: list[Tensor], slope: float, made: tuple
) -> None:
    """Fill `made`: the gradients of the convolution's results, shortcut (or None), gamma and beta. `y` is None where
    there was no shortcut: its sign is known without."""
    pixels, common = z.numel() // CHANNELS, (dy, z, y, gamma, beta, *batch)
    kernels.sum_back[_programs(pixels)](*common, pixels, slope, COPIES, BLOCK)
    kernels.normalise_back[_programs(pixels)](*common, *made, pixels, slope, COPIES, BLOCK)


def gradients(x: Tensor, weight: Tensor, dz: Tensor, dx: Tensor | None, biased: bool):
    """Of input, to which `dx` is added, weight and bias."""
    pixels, numbers = x.numel() // CHANNELS, weight.numel() + biased * CHANNELS
    steps = min(16, max(2, pixels // (STEP * 100)))  # 100 parts or fewer, each for all of the 3 rows of the kernel
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


class _Pool(torch.autograd.Function):
    """The mean of 2x2 pixels. Torch's own gradient of it takes four times as long."""

    @staticmethod
    def forward(ctx, x):
        return F.avg_pool2d(x, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        n, c, h, w = dy.shape
        dy = (dy / 4).permute(0, 2, 3, 1)[:, :, None, :, None]
        return dy.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
