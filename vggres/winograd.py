"""Convolutions from 32 channels to 32 on a CPU in float32, by Winograd's algorithm (Lavin and Gray, 2016): at least
twice as fast as torch's. The arithmetic is in `winograd.c`, which is compiled where there is a C compiler."""

import torch
from torch import Tensor, nn

from vggres import fused_cpu
from vggres.fused import CHANNELS, Layer


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` from 32 channels to 32, 3x3, stride 1, padding 1. Anything but a batch of such images, in float32 on
    a CPU, square and of a width that is a multiple of 4, is left to torch."""

    def forward(self, x: Tensor) -> Tensor:
        here = fused_cpu.reads(x, self.weight)
        if here and x.ndim == 4 and x.dtype == self.weight.dtype == torch.float32 and fused_cpu.ours(x):
            return Layer.apply(fused_cpu, x, self.weight, self.bias, None, 1.0)[0]
        return super().forward(x)


def use(net: nn.Module) -> str | None:
    """Turn every suitable convolution of a net into this module's `Conv2d`. Returns: "winograd" if there are any and
    there is a C compiler, else None."""
    same = [m for m in net.modules() if isinstance(m, nn.Conv2d) and _fits(m)]
    if not same or not (name := fused_cpu.available(torch.float32)):
        return None
    for module in same:
        module.__class__ = Conv2d
    return name


def _fits(m: nn.Conv2d) -> bool:
    shape = (CHANNELS, CHANNELS, 3, 3)
    return m.weight.shape == shape and (m.stride, m.padding, m.dilation) == ((1, 1),) * 3 and m.padding_mode == "zeros"
