"""A `Block` that trains on a GPU in bf16 with few passes over memory: convolutions of 32 channels of our own, which add
the bias, the shortcut and the activation as they go, or sum up for the batch normalisation. The arithmetic is in
`kernels`."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vggres.models import Block

try:
    from vggres import kernels
except ImportError:  # Triton comes with torch where torch has CUDA
    kernels = None

NAME, CHANNELS = "triton", 32
BLOCK = 128  # pixels a program
COPIES = 16  # of the sums over a batch, so that fewer programs add to the same
DTYPE = torch.bfloat16


def use(net: nn.Module) -> bool:
    """Make a `FusedBlock` of every `Block` of a net that can be one. Returns: whether there are any."""
    blocks = [m for m in net.modules() if type(m) is Block and _fits(m)]
    if kernels is None or not blocks:
        return False
    for block in blocks:
        block.__class__ = FusedBlock
    return True


def _fits(block: Block) -> bool:
    return block.conv1.weight.shape == (CHANNELS, CHANNELS, 3, 3) and isinstance(block.act, nn.LeakyReLU)


class FusedBlock(Block):
    """A `Block` of 32 channels. What is no training of bf16 images is left to it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.dtype != DTYPE or x.shape[2] != x.shape[3]:
            return super().forward(x)
        h = x
        for i in range(1, self.convs + 1):
            last = i == self.convs
            shortcut = self.shortcut(F.avg_pool2d(x, 2) if self.reduce else x) if last and self.skip else None
            h = self._layer(h, self.get_submodule(f"conv{i}"), self.get_submodule(f"norm{i}"), shortcut)
            if i == 1 and self.reduce:
                h = F.avg_pool2d(h, 2)
        return h

    def _layer(self, x: Tensor, conv: nn.Conv2d, norm: nn.Module, shortcut: Tensor | None) -> Tensor:
        slope = self.act.negative_slope
        if isinstance(norm, nn.Identity):
            return _Layer.apply(x, conv.weight, conv.bias, shortcut, slope)
        if isinstance(norm, nn.BatchNorm2d):
            return _NormalisedLayer.apply(x, conv.weight, conv.bias, norm.weight, norm.bias, norm, shortcut, slope)
        z = norm(_Layer.apply(x, conv.weight, conv.bias, None, 1.0))
        return self.act(z if shortcut is None else z + shortcut)


class _Layer(torch.autograd.Function):
    """Convolution, shortcut, activation."""

    @staticmethod
    def forward(ctx, x, weight, bias, shortcut, slope):
        x, shortcut = _last(x), _last(shortcut)
        y = _convolve(x, weight, bias=bias, shortcut=shortcut, slope=slope)
        ctx.save_for_backward(x, weight, y if slope != 1 else None)
        ctx.slope, ctx.biased, ctx.shortcut = slope, bias is not None, shortcut is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, y = ctx.saved_tensors
        dy = _last(dy)
        if y is not None:
            dy = torch.ops.aten.leaky_relu_backward(dy, y, ctx.slope, True)
        return (*_gradients(x, weight, dy, ctx.biased), dy if ctx.shortcut else None, None)


class _NormalisedLayer(torch.autograd.Function):
    """Convolution, batch normalisation, shortcut, activation."""

    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, norm, shortcut, slope):
        x, shortcut = _last(x), _last(shortcut)
        sums, moments = x.new_zeros(COPIES, 2, CHANNELS, dtype=torch.float32), gamma.new_empty(2, CHANNELS)
        z = _convolve(x, weight, bias=bias, sums=sums)
        y, pixels = torch.empty_like(z), z.numel() // CHANNELS
        kernels.normalise[_programs(pixels)](
            *(z, sums, gamma, beta, shortcut, y, moments, norm.running_mean, norm.running_var),
            *(norm.num_batches_tracked, pixels, norm.eps, norm.momentum, slope, COPIES, BLOCK),
        )
        ctx.save_for_backward(x, weight, z, y if shortcut is not None else None, gamma, beta, moments)
        ctx.slope, ctx.biased, ctx.shortcut = slope, bias is not None, shortcut is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, z, y, gamma, beta, moments = ctx.saved_tensors
        dy, dz, dshortcut = _last(dy), torch.empty_like(z), torch.empty_like(z) if ctx.shortcut else None
        sums, pixels = torch.zeros(COPIES, 2, CHANNELS, device=z.device), z.numel() // CHANNELS
        dgamma, dbeta = torch.empty_like(gamma), torch.empty_like(beta)
        common = dy, z, y, gamma, beta, moments, sums
        kernels.sum_back[_programs(pixels)](*common, pixels, ctx.slope, COPIES, BLOCK)
        kernels.normalise_back[_programs(pixels)](
            *common, dz, dshortcut, dgamma, dbeta, pixels, ctx.slope, COPIES, BLOCK
        )
        return (*_gradients(x, weight, dz, ctx.biased), dgamma, dbeta, None, dshortcut, None)


def _last(x: Tensor | None) -> Tensor | None:
    return x if x is None else x.contiguous(memory_format=torch.channels_last)


def _programs(pixels: int) -> tuple[int]:
    return (-(-pixels // BLOCK),)


def _convolve(x, weight, bias=None, shortcut=None, sums=None, slope=1.0, back=False) -> Tensor:
    """Shapes: (N, 32, H, H), (out, in, 3, 3) in channels_last memory, (32,), as x, (COPIES, 2, 32) -> as x"""
    y, pixels = torch.empty_like(x), x.numel() // CHANNELS
    kernels.convolution[_programs(pixels)](
        *(x, _last(weight), bias, shortcut, y, sums, pixels, slope), x.shape[2], back, COPIES, BLOCK
    )
    return y


def _gradients(x: Tensor, weight: Tensor, dz: Tensor, biased: bool):
    """Of input, weight and bias."""
    pixels = x.numel() // CHANNELS
    steps = min(8, max(1, pixels // (BLOCK * 100)))  # 100 parts: each for all of the 3 rows of the kernel
    parts = torch.empty(-(-pixels // (BLOCK * steps)), CHANNELS, 3, 3, CHANNELS, device=x.device)
    kernels.weight_gradient[(len(parts), 3)](x, dz, parts, pixels, steps, x.shape[2], BLOCK)
    dweight = parts.sum(0).permute(0, 3, 1, 2)
    return _convolve(dz, weight, back=True), dweight, dz.sum((0, 2, 3), dtype=torch.float32) if biased else None
