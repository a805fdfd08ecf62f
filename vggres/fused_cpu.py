"""The layers of `fused` on a CPU: in bf16, with AMX or AVX-512's bf16 products, in `fused_cpu.c`; in float32, on any
CPU, in `winograd.c`. Torch convolves images of other sizes, or with other numbers of channels."""

from ctypes import CDLL, c_char_p, c_float, c_long

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggres.native import compiled, pointers

NAMES, CHANNELS = {torch.bfloat16: "fused_cpu", torch.float32: "winograd"}, 32
WIDTHS = (2, 4, 8, 16, 32)  # of the images that the C code convolves in bf16; in float32, all multiples of 4


def available(dtype: torch.dtype = torch.bfloat16) -> str | None:
    """In bf16 "amx" or "avx512-bf16", if the processor has one of them and there is a C compiler; in float32
    "winograd", if there is one."""
    if (library := compiled(NAMES[dtype])) is None:
        return None
    library.by.restype = c_char_p
    return (library.by() or b"").decode() or None


def reads(*tensors: Tensor) -> bool:
    """Whether all are where the C code can read them."""
    return all(t.device.type == "cpu" for t in tensors)


def prepared(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The weights as the other functions here take them, for images of a type."""
    return weight.to(dtype, memory_format=torch.channels_last)


def pool(x: Tensor) -> Tensor:
    """The mean of 2x2 pixels."""
    n, c, height, width = x.shape
    y = x.new_empty(n, height // 2, width // 2, c).permute(0, 3, 1, 2)
    _library(x).pool(*pointers(x, y), n, height // 2, torch.get_num_threads())
    return y


def pool_back(dy: Tensor) -> Tensor:
    """The gradient of `pool`."""
    n, c, height, width = dy.shape
    dx = dy.new_empty(n, 2 * height, 2 * width, c).permute(0, 3, 1, 2)
    _library(dy).pool_back(*pointers(dy, dx), n, height, torch.get_num_threads())
    return dx


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float) -> Tensor:
    """Convolution, shortcut, activation. Shapes: (N, in, H, W), (32, in, 3, 3), (32,), (N, 32, H, W) as the results."""
    if ours(x):
        return _convolve(x, weight, bias, shortcut, None, slope)
    z = F.conv2d(x, weight, bias if bias is None else bias.to(x.dtype), padding=1)
    z = z if shortcut is None else z.add_(shortcut)
    return z if slope == 1 else F.leaky_relu_(z, slope)


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Convolution, batch normalisation, shortcut, activation. Returns: the convolution's results, the final
    results, and what `back` needs of the batch."""
    if ours(x):
        sums = torch.empty(2 * CHANNELS, dtype=torch.float64)
        z = _convolve(x, weight, bias, None, sums, 1.0)
    else:
        z, sums = layer(x, weight, bias, None, 1.0), None
    moments, y, pixels = torch.empty(2 * CHANNELS), torch.empty_like(z), z.numel() // CHANNELS
    _library(x).normalise(
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
        _library(x).sum_back(*pointers(*known, *sums), c_float(slope), c_long(pixels), threads)
    known, dshortcut = [*known, *sums], torch.empty_like(known[0]) if of_shortcut else None
    if ours(x):
        made = torch.empty_like(x), torch.empty(CHANNELS, 3, 3, CHANNELS).permute(0, 3, 1, 2), torch.empty(CHANNELS)
        given = pointers(*known, dshortcut, x, weight, dx, *made)
        _library(x).gradients(*given, c_float(slope), len(x), x.shape[3], threads)
    else:
        dz = torch.empty_like(known[0])
        _library(x).through(*pointers(*known, dshortcut, dz), c_float(slope), c_long(pixels), threads)
        made = torch.ops.aten.convolution_backward(
            *(dz, x, weight, [CHANNELS], [1, 1], [1, 1], [1, 1], False, [0, 0], 1), [of_input, True, of_bias]
        )
        if dx is not None and of_input:
            made[0].add_(dx)
    of_x, of_weight, bias = made
    return of_x, of_weight.float(), bias.float() if of_bias else None, dshortcut, *sums


def ours(x: Tensor) -> bool:
    """Whether the C code convolves such images."""
    fits = x.shape[3] % 4 == 0 if x.dtype == torch.float32 else x.shape[3] in WIDTHS
    return fits and x.shape[1] == CHANNELS and x.shape[2] == x.shape[3]


def _library(x: Tensor) -> CDLL:
    return compiled(NAMES[x.dtype])


def _convolve(x, weight, bias, shortcut, sums, slope) -> Tensor:
    y, bias = torch.empty_like(x), bias if bias is None else bias.float()
    numbers = c_float(slope), len(x), x.shape[3], torch.get_num_threads()
    _library(x).convolve(*pointers(x, weight, bias, shortcut, y, sums), *numbers)
    return y
