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
BLOCK, STEP = 128, 64  # pixels a program, and a step of those that sum over many
COPIES = 16  # of the sums over a batch, so that fewer programs add to the same
DTYPE = torch.bfloat16


def use(net: nn.Module) -> bool:
    """Make a `FusedBlock` of every `Block` of a net that can be one. Returns: whether there are any."""
    blocks = [m for m in net.modules() if type(m) is Block and _fits(m)]
    if not blocks or not compiles():
        return False
    for block in blocks:
        block.__class__ = FusedBlock
    return True


def compiles() -> bool:
    """Whether Triton is there and, on a GPU, what launches its kernels: a C compiler, Python's headers, libcuda."""
    try:
        return kernels is not None and (not torch.cuda.is_available() or bool(kernels.triton.runtime.driver.active))
    except Exception:  # of a class that depends on what is missing
        return False


def _fits(block: Block) -> bool:
    return block.conv1.weight.shape == (CHANNELS, CHANNELS, 3, 3) and isinstance(block.act, nn.LeakyReLU)


class FusedBlock(Block):
    """A `Block` of 32 channels. What is no training of bf16 images is left to it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.dtype != DTYPE or x.shape[2] != x.shape[3]:
            return super().forward(x)
        h = x
        for i in range(1, self.convs + 1):
            shortcut = None
            if i == self.convs and self.skip:
                shortcut = self.shortcut(_Pool.apply(x) if self.reduce else x)
            conv, norm = self.get_submodule(f"conv{i}"), self.get_submodule(f"norm{i}")
            h, same = self._layer(h, conv, norm, shortcut)
            if i == 1:
                x = same
                h = _Pool.apply(h) if self.reduce else h
        return h

    def _layer(self, x: Tensor, conv: nn.Conv2d, norm: nn.Module, shortcut: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's results, and its input once more: what a shortcut takes from there comes back to the layer's own
        gradient, which adds it up without another pass."""
        slope = self.act.negative_slope
        if isinstance(norm, nn.Identity):
            return _Layer.apply(x, conv.weight, conv.bias, shortcut, slope)
        if isinstance(norm, nn.BatchNorm2d):
            return _NormalisedLayer.apply(x, conv.weight, conv.bias, shortcut, slope, norm.weight, norm.bias, norm)
        z, x = _Layer.apply(x, conv.weight, conv.bias, None, 1.0)
        z = norm(z)
        return self.act(z if shortcut is None else z + shortcut), x


class _Layer(torch.autograd.Function):
    """Convolution, shortcut, activation."""

    @staticmethod
    def forward(ctx, x, weight, bias, shortcut, slope):
        x = _last(x)
        y = _convolve(x, weight, bias=bias, shortcut=_last(shortcut), slope=slope)
        ctx.save_for_backward(x, weight, y if slope != 1 else None)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dx):
        (x, weight, y), (_, _, of_bias, of_shortcut, _) = ctx.saved_tensors, ctx.needs_input_grad
        dz = _last(dy)
        if y is not None:
            dz = torch.ops.aten.leaky_relu_backward(dz, y, ctx.slope, True)
        return *_gradients(x, weight, dz, dx, of_bias), dz if of_shortcut else None, None


class _NormalisedLayer(torch.autograd.Function):
    """Convolution, batch normalisation, shortcut, activation."""

    @staticmethod
    def forward(ctx, x, weight, bias, shortcut, slope, gamma, beta, norm):
        x, shortcut = _last(x), _last(shortcut)
        sums, moments = torch.zeros(2, COPIES, 2, CHANNELS, device=x.device), gamma.new_empty(2 * CHANNELS)
        z = _convolve(x, weight, bias=bias, sums=sums[0])
        y, pixels = torch.empty_like(z), z.numel() // CHANNELS
        kernels.normalise[_programs(pixels)](
            *(z, sums, gamma, beta, shortcut, y, moments, norm.running_mean, norm.running_var),
            *(norm.num_batches_tracked, pixels, norm.eps, norm.momentum, slope, COPIES, BLOCK),
        )
        ctx.save_for_backward(x, weight, z, y if shortcut is not None else None, gamma, beta, moments, sums[1])
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dx):
        x, weight, z, y, gamma, beta, moments, sums = ctx.saved_tensors
        _, _, of_bias, of_shortcut, *_ = ctx.needs_input_grad
        dz, dshortcut = torch.empty_like(z), torch.empty_like(z) if of_shortcut else None
        dgamma, dbeta, pixels = torch.empty_like(gamma), torch.empty_like(beta), z.numel() // CHANNELS
        common = _last(dy), z, y, gamma, beta, moments, sums
        kernels.sum_back[_programs(pixels)](*common, pixels, ctx.slope, COPIES, BLOCK)
        kernels.normalise_back[_programs(pixels)](
            *common, dz, dshortcut, dgamma, dbeta, pixels, ctx.slope, COPIES, BLOCK
        )
        return *_gradients(x, weight, dz, dx, of_bias), dshortcut, None, dgamma, dbeta, None


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


def _last(x: Tensor | None) -> Tensor | None:
    return x if x is None else x.contiguous(memory_format=torch.channels_last)


def _programs(pixels: int) -> tuple[int]:
    return (-(-pixels // BLOCK),)


def _convolve(x, weight, bias=None, shortcut=None, sums=None, slope=1.0, back=False) -> Tensor:
    """Shapes: (N, 32, H, H), (out, in, 3, 3), (32,), as x, (COPIES, 2, 32) -> as x"""
    y, pixels = torch.empty_like(x), x.numel() // CHANNELS
    kernels.convolution[_programs(pixels)](
        *(x, _last(weight), bias, shortcut, y, sums, pixels, slope), x.shape[2], back, COPIES, BLOCK
    )
    return y


def _gradients(x: Tensor, weight: Tensor, dz: Tensor, dx: Tensor | None, biased: bool):
    """Of input, to which `dx` is added, weight and bias."""
    pixels, numbers = x.numel() // CHANNELS, weight.numel() + biased * CHANNELS
    steps = min(16, max(2, pixels // (STEP * 100)))  # 100 parts or fewer, each for all of the 3 rows of the kernel
    parts = torch.empty(-(-pixels // (STEP * steps)), numbers, device=x.device)
    kernels.parameter_gradients[(len(parts), 3)](x, dz, parts, pixels, steps, biased, x.shape[2], STEP)
    sums = parts.sum(0)
    dweight = sums[: weight.numel()].view(CHANNELS, 3, 3, CHANNELS).permute(0, 3, 1, 2)
    dbias = sums[weight.numel() :] if biased else None
    return _convolve(dz, weight, shortcut=_last(dx), back=True), dweight, dbias
