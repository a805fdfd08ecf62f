"""The networks of reports A and B (one `VGG`, one `Block`), their initialisation, and `build(name)`, which also builds
the networks of C and D (`resnets`).

Every convolution here is 3x3 with stride 1, padding 1 and 32 filters, except the 1x1 of a projected shortcut. Unless
asked otherwise, the initialisation is PyTorch's default, as in the reports.
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggres.errors import UserError
from vggres.resnets import NETS, GlobalAveragePool

FILTERS = 32  # in every convolution
SLOPE = 0.01  # negative slope of the reports' LeakyReLU


class Block(nn.Module):
    """`convs` convolutions, each followed by an activation; the shortcut, if any, is added before the last one.

    A processing block keeps the image size, and its convolutions have no bias. A reduction block halves the
    image by average pooling after its first activation, and its convolutions have a bias.

    With `norm`, batch normalisation follows each convolution, before the activation (report A, section 5).
    With `skipinit`, a branch beside a shortcut ends instead in a learnable `Scale` that starts at 0.
    The shortcut is the identity; across a reduction it is the average-pooled identity (report B), or, with
    `project`, pooling, a 1x1 convolution and batch normalisation (report A, "Additional experiments", which
    gives neither the kernel size nor the place of the pooling: both are our choice).

    Shapes: (N, C, H, W) -> (N, C, H, W), or (N, C, H // 2, W // 2) for a reduction block.
    """

    def __init__(
        self,
        channels: int,
        convs: int,
        reduce: bool,
        norm: bool,
        skip: bool,
        project: bool,
        act: nn.Module,
        skipinit: bool = False,
    ):
        super().__init__()
        self.reduce, self.skip, self.act = reduce, skip, act
        for i in range(1, convs + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, channels, 3, padding=1, bias=reduce))
            self.add_module(f"norm{i}", nn.BatchNorm2d(channels) if norm else nn.Identity())
        if skip and skipinit:
            self.add_module(f"norm{convs}", Scale())
        self.shortcut = nn.Identity()
        if skip and reduce and project:
            self.shortcut = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(channels, channels, 1, bias=False), norm=nn.BatchNorm2d(channels))
            )
        self.convs = convs

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i in range(1, self.convs + 1):
            h = self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(h))
            if i < self.convs:
                h = self.act(h)
            if i == 1 and self.reduce:
                h = F.avg_pool2d(h, 2)
        if self.skip:
            h = h + self.shortcut(F.avg_pool2d(x, 2) if self.reduce else x)
        return self.act(h)


class Scale(nn.Module):
    """Multiply by one learnable number, which starts at 0: SkipInit (De and Smith, 2020, section 4).

    A residual block whose branch ends in it starts as its shortcut and last activation, whatever its weights.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class VGG(nn.Sequential):
    """Entry, `stages` times (`blocks` processing blocks and a reduction block), global average pool, linear.

    The entry convolution has no bias and is *always* followed by batch normalisation, even in the plain nets.

    Args:
        stages, blocks: depth; `stages * (blocks + 1)` blocks of `convs` convolutions.
        norm: batch normalisation after every convolution, not only the entry's.
        residual: which blocks have a shortcut: "none", "processing" (report A) or "all" (report B).
        convs: convolutions per block; 3 in report A's additional experiments.
        project: the reduction shortcut is a convolution with batch normalisation, not a pooled identity.
        act: the activation, shared by all layers; it must be stateless. LeakyReLU(0.01) if None.
        skipinit: every branch beside a shortcut ends in a learnable scalar that starts at 0 (see `Scale`).
        classes: number of logits.

    Shapes: (N, 3, 32, 32) float -> (N, classes) logits.
    """

    def __init__(
        self,
        stages: int,
        blocks: int,
        norm: bool = False,
        residual: Literal["none", "processing", "all"] = "none",
        convs: int = 2,
        project: bool = False,
        act: nn.Module | None = None,
        skipinit: bool = False,
        classes: int = 100,
    ):
        act = act or nn.LeakyReLU(SLOPE)

        def block(reduce: bool) -> Block:
            skip = residual == "all" or (residual == "processing" and not reduce)
            return Block(FILTERS, convs, reduce, norm, skip, project, act, skipinit)

        entry = OrderedDict(conv=nn.Conv2d(3, FILTERS, 3, padding=1, bias=False), norm=nn.BatchNorm2d(FILTERS), act=act)
        parts: list[tuple[str, nn.Module]] = [("entry", nn.Sequential(entry))]
        for s in range(1, stages + 1):
            inner = [(f"block{b}", block(reduce=False)) for b in range(1, blocks + 1)]
            parts.append((f"stage{s}", nn.Sequential(OrderedDict([*inner, ("reduce", block(reduce=True))]))))
        parts += [("pool", GlobalAveragePool()), ("head", nn.Linear(FILTERS, classes))]
        super().__init__(OrderedDict(parts))


# Report A's BN+RC has shortcuts in processing blocks only; report B's "ResNet" in every block.
MODELS: dict[str, dict] = {
    "vgg08": dict(stages=3, blocks=0),
    "vgg38": dict(stages=3, blocks=5),
    "vgg38-bn": dict(stages=3, blocks=5, norm=True),
    "vgg38-rc": dict(stages=3, blocks=5, residual="processing"),
    "vgg38-bn-rc": dict(stages=3, blocks=5, norm=True, residual="processing"),
    "vgg38-resnet": dict(stages=3, blocks=5, norm=True, residual="all"),
    "vgg38-resnet-sigmoid": dict(stages=3, blocks=5, norm=True, residual="all", act=nn.Sigmoid()),
    "vgg68-resnet": dict(stages=3, blocks=10, norm=True, residual="all"),
    "vgg72-resnet": dict(stages=5, blocks=6, norm=True, residual="all"),
    "vgg106-resnet": dict(stages=5, blocks=12, norm=True, residual="all"),
    "vgg16-bn-rc": dict(stages=2, blocks=1, norm=True, residual="all", convs=3, project=True),
    "vgg50-bn-rc": dict(stages=3, blocks=4, norm=True, residual="all", convs=3, project=True),
    "vgg150-bn-rc": dict(stages=4, blocks=11, norm=True, residual="all", convs=3, project=True),
    # From no report: without batch normalisation in their depth.
    "vgg68": dict(stages=3, blocks=10),
    "vgg38-skipinit": dict(stages=3, blocks=5, residual="all", skipinit=True),
}


def gain(slope: float = SLOPE) -> float:
    """`sqrt(2 / (1 + slope^2))`: a LeakyReLU keeps (1 + slope^2) / 2 of the second moment of a centred input, and a
    layer behind it, with weights of variance gain^2 / fan_in, restores it (He et al., 2015, equation 15)."""
    return math.sqrt(2 / (1 + slope**2))


def _delta_orthogonal(weight: Tensor, gain: float) -> None:
    """An orthogonal matrix at the centre of the kernel, zeros around it: at first pixels do not mix, and the norm of
    each one's channels is multiplied by exactly `gain` (Xiao et al., 2018, algorithm 1)."""
    nn.init.zeros_(weight)
    centre = tuple(size // 2 for size in weight.shape[2:])
    nn.init.orthogonal_(weight[:, :, *centre], gain)


# Ways to draw the weights of convolutions and linear layers besides PyTorch's default; (weight, gain) -> None.
INITS: dict[str, Callable[[Tensor, float], object]] = {
    # He et al. (2015): normal, with variance gain^2 / fan; the fan-in preserves the signal, the fan-out the gradient.
    "he": lambda weight, gain: nn.init.normal_(weight, std=gain / weight[0].numel() ** 0.5),
    "he-fan-out": lambda weight, gain: nn.init.normal_(weight, std=gain / weight[:, 0].numel() ** 0.5),
    "orthogonal": nn.init.orthogonal_,  # (out, in * height * width) as one matrix (Saxe et al., 2014)
    "delta-orthogonal": _delta_orthogonal,
}


def initialise(net: nn.Module, init: str, slope: float = SLOPE) -> None:
    """Redraw all weights of convolutions and linear layers, with the `gain` of that slope, and set their biases to 0.
    Batch normalisation and `Scale` stay as they are.

    Args:
        init: a key of `INITS`.

    Raises:
        UserError: no such initialisation.
    """
    if init not in INITS:
        raise UserError(f"no initialisation is called {init!r}; there are default, {', '.join(INITS)}")
    with torch.no_grad():
        for _, layer in layers(net):
            INITS[init](layer.weight, gain(slope))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def build(
    name: str, seed: int | None = None, init: str = "default", slope: float = SLOPE, classes: int = 100
) -> nn.Module:
    """Build the network of that name.

    Args:
        name: a key of `MODELS` or of `resnets.NETS`, such as "vgg38-bn-rc" or "resnet18".
        seed: draw the initial weights from this seed (the global generator is left unchanged); without one
            they come from the global generator.
        init: a key of `INITS` (see `initialise`), or "default": PyTorch's, as in the reports, or torchvision's for its
            ResNets.
        slope: negative slope of the LeakyReLU.
        classes: number of logits.

    Raises:
        UserError: no such network or initialisation; or `init` or `slope`, meant for LeakyReLU alone, is set for a net
            with another activation.
    """
    if name not in MODELS and name not in NETS:
        near = get_close_matches(name, [*MODELS, *NETS], cutoff=0.3) or [*MODELS, *NETS]
        raise UserError(f"no network is called {name!r}; the nearest: {', '.join(near)}")
    if (name in NETS or "act" in MODELS[name]) and (init, slope) != ("default", SLOPE):
        raise UserError(f"{name} has an activation of its own: it is built with init='default' and slope={SLOPE} only")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if name in NETS:
            return NETS[name](classes=classes)
        net = VGG(**{"act": nn.LeakyReLU(slope)} | MODELS[name], classes=classes)
        if init != "default":
            initialise(net, init, slope)
    return net


def layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The convolutions and linear layers in forward order, with names such as "stage1.block2.conv1"."""
    return [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def count_parameters(net: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


@functools.cache
def multiply_adds(name: str) -> int:
    """Multiply-adds of the convolutions and linear layers in the forward pass of one 32x32 image; only counted."""
    counts: list[int] = []
    with torch.device("meta"):
        net = build(name).eval()
        for _, layer in layers(net):
            layer.register_forward_hook(lambda m, inputs, z: counts.append(m.weight.numel() * z[0, 0].numel()))
        net(torch.zeros(1, 3, 32, 32))
    return sum(counts)
