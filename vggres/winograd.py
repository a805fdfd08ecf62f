"""Convolutions from 32 channels to 32 on a CPU in float32, by Winograd's algorithm (Lavin and Gray, 2016): at least
twice as fast as torch's. The arithmetic is in `winograd.c`, which is compiled where there is a C compiler."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggres.native import compiled, pointers

NAME, CHANNELS, TILE = "winograd", 32, 4


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` from 32 channels to 32, 3x3, stride 1, padding 1. Anything but a batch of such images, in float32 on
    a CPU, with height and width multiples of 4, is left to torch."""

    def forward(self, x: Tensor) -> Tensor:
        ours = x.ndim == 4 and x.shape[1] == CHANNELS and not (x.shape[2] % TILE or x.shape[3] % TILE)
        if ours and x.device.type == self.weight.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            return _Convolution.apply(x, self.weight, self.bias)
        return super().forward(x)


def use(net: nn.Module) -> str | None:
    """Turn every suitable convolution of a net into this module's `Conv2d`. Returns: "winograd" if there are any and
    there is a C compiler, else None."""
    same = [m for m in net.modules() if isinstance(m, nn.Conv2d) and _fits(m)]
    if not (same and compiled(NAME)):
        return None
    for module in same:
        module.__class__ = Conv2d
    return NAME


def _fits(m: nn.Conv2d) -> bool:
    shape = (CHANNELS, CHANNELS, 3, 3)
    return m.weight.shape == shape and (m.stride, m.padding, m.dilation) == ((1, 1),) * 3 and m.padding_mode == "zeros"


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight.permute(2, 3, 1, 0), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        dy, dx, dw, db = dy.contiguous(memory_format=torch.channels_last), None, None, None
        if of_x:
            dx = _convolve(dy, weight.flip(2, 3).permute(2, 3, 0, 1), None)
        if of_weight or of_bias:
            threads = torch.get_num_threads()
            weights, biases = torch.empty(threads, 3, 3, CHANNELS, CHANNELS), torch.empty(threads, CHANNELS)
            _call("parameter_gradients", x, dy, weights, biases)
            dw, db = weights.sum(0).permute(3, 2, 0, 1), biases.sum(0)
        return dx, dw, db if of_bias else None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Shapes: (N, 32, H, W), (3, 3, in, out), (32,) -> (N, 32, H, W)"""
    y, weight = torch.empty_like(x), weight.contiguous()
    _call("convolve", x, weight, bias, y)
    return y


def _call(kernel: str, x: Tensor, *others: Tensor | None) -> None:
    n, _, h, w = x.shape
    getattr(compiled(NAME), kernel)(*pointers(x, *others), n, h, w, torch.get_num_threads())
