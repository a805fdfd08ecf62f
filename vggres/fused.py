"""A `Block` that trains with few passes over memory for what follows a 32-channel convolution: normalisation,
shortcut, activation; on a CPU, the entry of a `VGG` too. The arithmetic is in `fused_cpu` and `fused_cuda`."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vggres import fused_cpu, fused_cuda
from vggres.models import VGG, Block

CHANNELS = 32


class EntryOnCPU(nn.Sequential):
    """A convolution from an image's few channels to 32, normalisation and activation."""

    dtype = torch.bfloat16

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, act = self
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        ours = self.training and dtype == self.dtype and fused_cpu.reads(x, conv.weight)
        if not (ours and len(x) > 1 and _by_the_batch(norm)):
            return super().forward(x)
        slope, rest = _split(act)
        given = fused_cpu, x.to(dtype), conv.weight, conv.bias, None, slope
        return rest(Layer.apply(*given, norm.weight, norm.bias, norm)[0])


class EntryInFloat32(EntryOnCPU):
    dtype = torch.float32


class FusedBlock(Block):
    """A `Block` of 32 channels. Anything but training on two or more square images of its type, of even size where they
    are to be halved, is left to `Block`."""

    kernels: ModuleType
    dtype = torch.bfloat16
    entry: type[EntryOnCPU] | None = None  # what becomes of a net's

    def forward(self, x: Tensor) -> Tensor:
        square = x.ndim == 4 and x.shape[2] == x.shape[3] and not (self.reduce and x.shape[2] % 2)
        ours = self.training and x.dtype == self.dtype and self.kernels.reads(x, self.conv1.weight)
        if not (ours and square and len(x) > 1):
            return super().forward(x)
        h = x
        for i in range(1, self.convs + 1):
            shortcut = None
            if i == self.convs and self.skip:
                shortcut = self.shortcut(_Pool.apply(self.kernels, x) if self.reduce else x)
            conv, norm = self.get_submodule(f"conv{i}"), self.get_submodule(f"norm{i}")
            h, same = self._layer(h, conv, norm, shortcut)
            if i == 1:
                x = same
                h = _Pool.apply(self.kernels, h) if self.reduce else h
        return h

    def _layer(self, x: Tensor, conv: nn.Conv2d, norm: nn.Module, shortcut: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's results, and its input again: the gradient of a shortcut from there comes back to this layer,
        which adds it to its own without another pass."""
        (slope, rest), given = _split(self.act), (self.kernels, x, conv.weight, conv.bias)
        if isinstance(norm, nn.Identity):
            y, x = Layer.apply(*given, shortcut, slope)
        elif _by_the_batch(norm):
            y, x = Layer.apply(*given, shortcut, slope, norm.weight, norm.bias, norm)
        else:
            z, x = Layer.apply(*given, None, 1.0)
            z = norm(z)
            y, rest = z if shortcut is None else z + shortcut, self.act
        return rest(y), x


class OnCPU(FusedBlock):
    kernels, entry = fused_cpu, EntryOnCPU


class InFloat32(FusedBlock):
    """On a CPU, any."""

    kernels, entry, dtype = fused_cpu, EntryInFloat32, torch.float32


class OnCUDA(FusedBlock):
    kernels = fused_cuda


def use(net: nn.Module, kind: type[FusedBlock]) -> str | None:
    """Turn every suitable `Block` of a net into the given kind, and on a CPU its entry too. Returns: what it then
    computes with; None if no block fits or this machine cannot do it."""
    blocks = [m for m in net.modules() if type(m) is Block and _fits(m)]
    if not blocks or not (name := kind.kernels.available(kind.dtype)):
        return None
    for block in blocks:
        block.__class__ = kind
    if kind.entry and isinstance(net, VGG):  # its activation is the same as its blocks'
        net.entry.__class__ = kind.entry
    return name


def _fits(block: Block) -> bool:
    """The kernels' activation must give results with the sign of its input."""
    slope, _ = _split(block.act)
    return slope >= 0 and block.convs > 1 and block.conv1.weight.shape == (CHANNELS, CHANNELS, 3, 3)


def _split(act: nn.Module) -> tuple[float, Callable[[Tensor], Tensor]]:
    """The slope of a LeakyReLU, which the kernels apply, and what is left to do: nothing. Any other activation is left
    as it is, after a slope of 1."""
    return (act.negative_slope, lambda y: y) if isinstance(act, nn.LeakyReLU) else (1.0, act)


def _by_the_batch(norm: nn.Module) -> bool:
    """Whether it is batch normalisation as `normalised` does it: of this batch, with all its numbers in float32."""
    whole = isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats and norm.momentum is not None
    return whole and norm.training and norm.weight.dtype == torch.float32


class Layer(torch.autograd.Function):
    """Convolution, batch normalisation where `norm` is given, shortcut, activation."""

    @staticmethod
    def forward(ctx, kernels, x, weight, bias, shortcut, slope, gamma=None, beta=None, norm=None):
        x, shortcut, weight = _last(x), _last(shortcut), kernels.prepared(weight, x.dtype)
        if norm is None:
            y = kernels.layer(x, weight, bias, shortcut, slope)
            known = [None, y if slope != 1 else None, None, None, None]
        else:
            z, y, batch = kernels.normalised(x, weight, bias, shortcut, slope, norm)
            known = [z, y if shortcut is not None and slope != 1 else None, gamma, beta, *batch]
        ctx.save_for_backward(x, weight, *known)
        ctx.kernels, ctx.slope = kernels, slope
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dx):
        x, weight, *known = ctx.saved_tensors
        given = x, weight, [_last(dy), *known], ctx.slope, _last(dx), ctx.needs_input_grad[1:5]
        *of_layer, of_gamma, of_beta = ctx.kernels.back(*given)
        return None, *of_layer, None, of_gamma, of_beta, None


class _Pool(torch.autograd.Function):
    """The mean of 2x2 pixels."""

    @staticmethod
    def forward(ctx, kernels, x):
        ctx.kernels = kernels
        return kernels.pool(_last(x))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return None, ctx.kernels.pool_back(_last(dy))


def _last(x: Tensor | None) -> Tensor | None:
    return x if x is None else x.contiguous(memory_format=torch.channels_last)
