"""The layers of `fused` on a CPU with AMX. Torch convolves, forward and for the input's gradient; the gradient of the
weight, and batch normalisation with shortcut and activation in one, are ours, in `fused_cpu.c`."""

from ctypes import c_float, c_long

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggres.native import compiled, pointers

NAME, CHANNELS = "fused_cpu", 32
WIDTHS = (2, 4, 8, 16, 32)  # of images whose weight's gradient is ours


def available() -> str | None:
    """ "amx", where the processor has it and there is a C compiler."""
    return "amx" if compiled(NAME) and compiled(NAME).tiles() else None


def prepared(weight: Tensor) -> Tensor:
    """As the other functions here take it."""
    return weight.to(torch.bfloat16, memory_format=torch.channels_last)


def pool(x: Tensor) -> Tensor:
    """The mean of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float) -> Tensor:
    """Convolution, shortcut, activation. Shapes: (N, 32, H, H), (out, in, 3, 3), (32,), as x -> as x"""
    if shortcut is None:
        return _convolve(x, weight, bias, slope)
    return F.leaky_relu_(_convolve(x, weight, bias).add_(shortcut), slope)


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, slope: float, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Convolution, batch normalisation, shortcut, activation. Returns: the convolution's results, those of all,
    and what `normalised_back` wants of the batch."""
    z, moments = _convolve(x, weight, bias), torch.empty(2 * CHANNELS)
    y, pixels = torch.empty_like(z), z.numel() // CHANNELS
    compiled(NAME).normalise(
        *pointers(z, norm.weight, norm.bias, shortcut, y, moments, norm.running_mean, norm.running_var),
        *(c_float(norm.eps), c_float(norm.momentum), c_float(slope), c_long(pixels), torch.get_num_threads()),
    )
    norm.num_batches_tracked += 1
    return z, y, [moments]


def normalised_back(
    dy: Tensor, z: Tensor, y: Tensor | None, gamma: Tensor, beta: Tensor, batch: list[Tensor], slope: float, made: tuple
) -> None:
    """Fill `made`: the gradients of the convolution's results, shortcut (or None), gamma and beta. `y` is None where
    there was no shortcut: its sign is known without."""
    numbers = c_float(slope), c_long(z.numel() // CHANNELS), torch.get_num_threads()
    compiled(NAME).normalise_back(*pointers(dy, z, y, gamma, beta, *batch, *made), *numbers)


def gradients(x: Tensor, weight: Tensor, dz: Tensor, dx: Tensor | None, biased: bool):
    """Of input, to which `dx` is added, weight and bias."""
    n, _, height, width = x.shape
    ours = height == width in WIDTHS
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
        *(dz, x, weight, [CHANNELS], [1, 1], [1, 1], [1, 1], False, [0, 0], 1), [True, not ours, biased and not ours]
    )
    if dx is not None:
        of_x += dx
    if ours:
        of_weight, of_bias = torch.empty(CHANNELS, 3, 3, CHANNELS).permute(0, 3, 1, 2), torch.empty(CHANNELS)
        compiled(NAME).parameter_gradients(*pointers(x, dz, of_weight, of_bias), n, width, torch.get_num_threads())
    return of_x, of_weight.float(), of_bias.float() if biased else None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float = 1.0) -> Tensor:
    """With the activation, if any, applied as it writes, which `torch.compile` would make of it, too."""
    bias = bias if bias is None else bias.to(x.dtype)
    activation = ("none", []) if slope == 1 else ("leaky_relu", [slope])
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, [1, 1], [1, 1], [1, 1], 1, *activation, "")
