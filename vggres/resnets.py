"""The networks of reports C and D: torchvision's ResNets for small images, an Inception net, BaseNet step by step.

`NETS` maps each name to a function that builds the net for a number of classes.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from operator import or_

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalAveragePool(nn.Module):
    """Mean over height and width, (N, C, H, W) -> (N, C).

    Unlike `nn.AdaptiveAvgPool2d(1)`, its backward pass is deterministic on CUDA.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Flatten(nn.Module):
    """(N, C, H, W) -> (N, H * W * C), pixel by pixel: in channels_last memory nothing is moved."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def resnet(depth: int, norm: str = "batch", large: bool = False, classes: int = 100) -> nn.Module:
    """torchvision's ResNet of 18, 34 or 50 layers (He et al., 2016, "Deep residual learning"), with its own
    initialisation (He's, by fan-out).

    For 32x32 images it begins with a 3x3 convolution of stride 1 and no max pooling. Report C does not mention this
    (its author's code instead enlarges the images to 224 and keeps torchvision's stem, at 3.3 times the work).

    Args:
        norm: "batch", unchanged; "none", nothing in place of BN, and still no bias in the convolutions; "dropout",
            `nn.Dropout2d(0.5)` where BN ends a branch or a shortcut (for 18 and 34 layers), nothing elsewhere, as for a
            time in the code that report C links to.
        large: torchvision's own stem, for 224x224 images.

    Shapes: (N, 3, 32, 32) -> (N, classes) logits; (N, 3, 224, 224) if `large`.
    """
    from torchvision.models import get_model

    layer = {"batch": nn.BatchNorm2d, "none": nn.Identity, "dropout": lambda channels: nn.Dropout2d()}
    net = get_model(f"resnet{depth}", num_classes=classes, norm_layer=layer[norm])
    net.avgpool = GlobalAveragePool()
    if norm == "dropout":
        for module in net.modules():
            if hasattr(module, "bn1"):
                module.bn1 = nn.Identity()
    if not large:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


# GoogLeNet's modules (Szegedy et al., 2015, Table 1): filters 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection.
GOOGLENET = [
    [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
    [
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ],
    [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
]


def inception(width: float, classes: int = 100) -> nn.Module:
    """GoogLeNet's nine modules with `width` times its filters, after a 3x3 convolution; for report C's case study.

    The modules are torchvision's, with batch normalisation, and 3x3 kernels where the paper has 5x5. Max pooling halves
    the image between their three groups. Report C does not say which Inception it means: all of this is our choice.

    Shapes: (N, 3, 32, 32) -> (N, classes) logits.
    """
    from torchvision.models.googlenet import BasicConv2d, Inception

    channels = round(192 * width)
    parts: list[nn.Module] = [BasicConv2d(3, channels, kernel_size=3, padding=1)]
    for i, group in enumerate(GOOGLENET):
        parts += [nn.MaxPool2d(3, 2, padding=1)] if i else []
        for filters in ([round(n * width) for n in module] for module in group):
            parts.append(Inception(channels, *filters))
            channels = filters[0] + filters[2] + filters[4] + filters[5]
    return nn.Sequential(*parts, GlobalAveragePool(), nn.Linear(channels, classes))


class SubBlock(nn.Module):
    """Report D's ResBlock: f(x), `convs` times (3x3 convolution, BN, ReLU); with a shortcut, `branch * f(x) + x`.

    Where the branch has more channels than x, zeros are appended to x (He et al., 2016, "Deep residual learning",
    option A): the report does not say how 64 channels are joined to 128, and its table has no layer for it.

    Args:
        branch: the factor of the branch; None: no shortcut.

    Shapes: (N, before, H, W) -> (N, after, H, W).
    """

    def __init__(self, before: int, after: int, convs: int, norm: bool, branch: float | None):
        super().__init__()
        self.branch, self.more = branch, after - before
        parts: list[nn.Module] = []
        for i in range(convs):
            parts.append(nn.Conv2d(after if i else before, after, 3, padding=1))
            parts += [nn.BatchNorm2d(after)] if norm else []
            parts.append(nn.ReLU(inplace=True))
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h if self.branch is None else torch.add(F.pad(x, (0, 0, 0, 0, 0, self.more)), h, alpha=self.branch)


def basenet(
    blocks: tuple[int, ...],
    pools: tuple[int, ...],
    norm: bool,
    convs: int,
    branch: float | None,
    head_norm: str | None,
    classes: int = 100,
) -> nn.Module:
    """Report D's BaseNet, or a step on the way to it: an entry, sub-blocks, max pooling, two linear layers.

    Args:
        blocks: the channels of each sub-block after the entry (convolution, BN and ReLU with 64 channels).
        pools: max pooling by 2 follows these sub-blocks, the entry being 1; it always precedes the linear layers too.
        norm, convs, branch: of the sub-blocks, see `SubBlock`; `norm` applies to the entry too.
        head_norm: batch normalisation after the "first" linear layer, the "last", or None.

    Shapes: (N, 3, 32, 32) -> (N, classes) logits.
    """
    parts: list[nn.Module] = [SubBlock(3, 64, 1, norm, None)]
    for i, (before, after) in enumerate(zip((64, *blocks), blocks, strict=False), start=1):
        parts += [nn.MaxPool2d(2)] if i in pools else []
        parts.append(SubBlock(before, after, convs, norm, branch))
    side = 32 >> sum(p <= len(blocks) for p in pools) + 1
    parts += [nn.MaxPool2d(2), Flatten(), nn.Linear((64, *blocks)[-1] * side * side, 50)]
    parts += [nn.BatchNorm1d(50)] if head_norm == "first" else []
    parts += [nn.ReLU(inplace=True), nn.Linear(50, classes)]
    parts += [nn.BatchNorm1d(classes)] if head_norm == "last" else []
    return nn.Sequential(*parts)


def handed_out(norm: bool, classes: int = 100) -> nn.Module:
    """The net of the course code from which report D probably starts: two 5x5 convolutions, each with ReLU and max
    pooling, and BaseNet's head of two linear layers. With `norm`, BN follows each convolution.

    Shapes: (N, 3, 32, 32) -> (N, classes) logits.
    """
    parts: list[nn.Module] = []
    for before, after in ((3, 6), (6, 16)):
        parts += [nn.Conv2d(before, after, 5), *[nn.BatchNorm2d(after)] * norm, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, Flatten(), nn.Linear(400, 50), nn.ReLU(inplace=True), nn.Linear(50, classes))


# Report D's ablation: what each step changes in the net before it. (Steps 8 to 10 change the recipe.) For the steps
# before BaseNet's table, the widths and the use of its head are our choice. The report rejected step 7, yet its table
# has a batch normalisation after the last linear layer.
STEPS: dict[str, dict] = {
    "basenet-0": dict(blocks=(), pools=(), norm=False, convs=1, branch=None, head_norm=None),
    "basenet-1": dict(norm=True),
    "basenet-2": dict(blocks=(64, 128, 128, 256), pools=(2, 4)),
    "basenet-3": dict(blocks=(64, 128, 128, 256, 256)),
    "basenet-4": dict(convs=2),
    "basenet-5": dict(branch=1.0),
    "basenet-6": dict(branch=0.1),
    "basenet-7": dict(head_norm="first"),
    "basenet": dict(blocks=(64,) * 3 + (128,) * 4 + (256,) * 6 + (512,) * 3, pools=(), head_norm="last"),
    "basenet-no-skip": dict(branch=None),  # what step 4 would be in a net as deep as BaseNet
}

NETS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(resnet, 18),
    "resnet18-no-bn": partial(resnet, 18, "none"),
    "resnet18-dropout": partial(resnet, 18, "dropout"),
    "resnet34": partial(resnet, 34),
    "resnet34-no-bn": partial(resnet, 34, "none"),
    "resnet50": partial(resnet, 50),
    "resnet50-no-bn": partial(resnet, 50, "none"),
    "resnet18-224": partial(resnet, 18, large=True),
    "inception": partial(inception, 0.64),
    "basenet-start": partial(handed_out, False),
    "basenet-start-bn": partial(handed_out, True),
} | {name: partial(basenet, **settings) for name, settings in zip(STEPS, accumulate(STEPS.values(), or_), strict=True)}
