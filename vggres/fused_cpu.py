"""The layers of `fused` on a CPU with AMX or AVX-512's bf16 products, in `fused_cpu.c`. Torch convolves images
of other sizes, or with other numbers of channels."""

from ctypes import c_char_p, c_float, c_long

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggres.native import compiled, pointers

NAME, CHANNELS = "fused_cpu", 32
WIDTHS = (2, 4, 8, 16, 32)  # of the images that the C code convolves


def available() -> str | None:
    """ "amx" or "avx512-bf16", if the processor has one of them and there is a C compiler."""
    if (library := compiled(NAME)) is None:
        return None
    library.by.restype = c_char_p
    return (library.by() or b"").decode() or None


def prepared(weight: Tensor) -> Tensor:
    """The weights as the other functions here take them."""
    return weight.to(torch.bfloat16, memory_format=torch.channels_last)


def pool(x: Tensor) -> Tensor:
    """The mean of 2x2 pixels."""
    n, c, height, width = x.shape
    y = x.new_empty(n, height // 2, width // 2, c).permute(0, 3, 1, 2)
    compiled(NAME).pool(*pointers(x, y), n, height // 2, torch.get_num_threads())
    return y


def pool_back(dy: Tensor) -> Tensor:
    """The gradient of `pool`."""
    n, c, height, width = dy.shape
    dx = dy.new_empty(n, 2 * height, 2 * width, c).permute(0, 3, 1, 2)
    compiled(NAME).pool_back(*pointers(dy, dx), n, height, torch.get_num_threads())
    return dx


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float) -> Tensor:
    """Convolution, shortcut, activation. Shapes: (N, in, H, W), (32, in, 3, 3), (32,), (N, 32, H, W) as the results."""
    if _ours(x):
        return _convolve(x, weight, bias, shortcut, None, slope)
    z = F.conv2d(x, weight, bias if bias is None else bias.to(x.dtype), padding=1)
    z = z if shortcut is None else z.add_(shortcut)
    return z if slope == 1 else F.leaky_relu_(z, slope)


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Convolution, batch normalisation, shortcut, activation. Returns: the convolution's results, the final
    results, and what `back` needs of the batch."""
    if _ours(x):
        sums = torch.empty(2 * CHANNELS, dtype=torch.float64)
        z = _convolve(x, weight, bias, None, sums, 1.0)
    else:
        z, sums = layer(x, weight, bias, None, 1.0), None
    moments, y, pixels = torch.empty(2 * CHANNELS), torch.empty_like(z), z.numel() // CHANNELS
    compiled(NAME).normalise(
        *pointers(z, sums, norm.weight, norm.bias, shortcut, y, moments, norm.running_mean, norm.running_var),
        *(c_float(norm.eps), c_float(norm.momentum), c_float(slope), c_long(pixels), torch.get_num_threads()),
    )
    norm.num_batches_tracked += 1
    return z, y, [moments]


def back(x: Tensor, weight: Tensor, known: list, slope: float, dx: Tensor | None, wanted: tuple[bool, ...]) -> tuple:
    """The gradients of input (`dx` is added to it), weight, bias, shortcut, gamma and beta; None, or anything, for
    those not `wanted`. `known`: the gradient of the results; what `normalised` returned, with gamma and beta before the
    batch's (all None for `layer`), where the second, the results, is None if the first gives their sign, or if there is
    no activation."""
    of_input, _, of_bias, of_shortcut = wanted
    threads, pixels, sums = torch.get_num_threads(), x[:, 0].numel(), (None, None)
    if known[1] is not None:
        sums = torch.zeros(CHANNELS), torch.zeros(CHANNELS)
        compiled(NAME).sum_back(*pointers(*known, *sums), c_float(slope), c_long(pixels), threads)
    known, dshortcut = [*known, *sums], torch.empty_like(known[0]) if of_shortcut else None
    if _ours(x):
        made = torch.empty_like(x), torch.empty(CHANNELS, 3, 3, CHANNELS).permute(0, 3, 1, 2), torch.empty(CHANNELS)
        given = pointers(*known, dshortcut, x, weight, dx, *made)
        compiled(NAME).gradients(*given, c_float(slope), len(x), x.shape[3], threads)
    else:
        dz = torch.empty_like(known[0])
        compiled(NAME).through(*pointers(*known, dshortcut, dz), c_float(slope), c_long(pixels), threads)
        made = torch.ops.aten.convolution_backward(
            *(dz, x, weight, [CHANNELS], [1, 1], [1, 1], [1, 1], False, [0, 0], 1), [of_input, True, of_bias]
        )
        if dx is not None and of_input:
            made[0].add_(dx)
    of_x, of_weight, bias = made
    return of_x, of_weight.float(), bias.float() if of_bias else None, dshortcut, *sums


def _ours(x: Tensor) -> bool:
    return x.shape[1] == CHANNELS and x.shape[2] == x.shape[3] in WIDTHS


def _convolve(x, weight, bias, shortcut, sums, slope) -> Tensor:
    y, bias = torch.empty_like(x), bias if bias is None else bias.float()
    numbers = c_float(slope), len(x), x.shape[3], torch.get_num_threads()
    compiled(NAME).convolve(*pointers(x, weight, bias, shortcut, y, sums), *numbers)
    return y
