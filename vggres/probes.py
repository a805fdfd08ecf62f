"""Probes of a net in any state, above all before its first step: do signal, gradient and step arrive well?

Each takes a net and a batch, images (N, 3, H, W) and labels (N,), and works on a copy, in train mode and, unless stated
otherwise, in float64. `gradients.py` has two more: the reports' gradient flow and the gain of each layer. At the end is
what theory predicts for a deep net with LeakyReLU.
"""

import copy
import math

import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from vggres.errors import UserError
from vggres.models import layers


def _copy(net: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    return copy.deepcopy(net).to(dtype).train()


def _gradients(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
    """Mean cross-entropy of the batch in nats, and its gradient for each parameter."""
    loss = F.cross_entropy(net(x), y)
    return loss.item(), list(torch.autograd.grad(loss, list(net.parameters())))


def activations(net: nn.Module, x: Tensor) -> list[dict]:
    """The output z of each convolution and linear layer, before normalisation and activation.

    Returns: one dict per layer, in forward order: "layer"; "mean" and "std" of z over images, channels and pixels;
    "negative", the fraction of z below 0, where a ReLU is flat (Glorot and Bengio, 2010, look at the first two).
    """
    net, rows = _copy(net), []
    for name, layer in layers(net):

        def note(module, inputs, z, name=name):
            negative = (z < 0).double().mean().item()
            rows.append({"layer": name, "mean": z.mean().item(), "std": z.std().item(), "negative": negative})

        layer.register_forward_hook(note)
    with torch.no_grad():
        net(x.double())
    return rows


def similarity(net: nn.Module, x: Tensor) -> dict[str, float]:
    """How alike two different images look to each layer: the mean, over pairs and pixels, of the cosine of its inputs,

        <a, b> / (|a| |b|)  with a and b the two images' channels at the same pixel, not centred.

    1 means that all images look identical. `cosine_after` is what theory predicts (Daniely et al., 2016; Martens et
    al., 2021).

    Returns: layer name -> mean cosine, in forward order. The first is that of the images themselves.
    """
    net, cosines, n = _copy(net), {}, len(x)
    for name, layer in layers(net):

        def note(module, inputs, name=name):
            units = F.normalize(inputs[0], dim=1, eps=1e-300)  # a signal of 1e-20 has a direction, too
            cosines[name] = (units.sum(0).square().sum(0).mean().item() - n) / (n * (n - 1))

        layer.register_forward_pre_hook(note)
    with torch.no_grad():
        net(x.double())
    return cosines


def relative_gradients(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """`|dE/dW| / |W|` of each layer's weight, Euclidean norms: its relative change by a step of plain gradient
    descent at rate 1.

    Returns: layer name -> ratio, in nats per squared unit of weight.
    """
    net = _copy(net)
    F.cross_entropy(net(x.double()), y).backward()
    return {name: (layer.weight.grad.norm() / layer.weight.detach().norm()).item() for name, layer in layers(net)}


def first_step(net: nn.Module, x: Tensor, y: Tensor, lr: float) -> dict:
    """What Adam's first step does, in float32 as in training.

    It changes each weight with gradient g by `lr g / (|g| + 1e-8)`: by lr, whatever the gradient, unless it drowns in
    the epsilon (Kingma and Ba, 2015).

    Returns: "before" and "after", the loss of the same batch in nats, `inf` or `nan` where it overflows; "updates",
    layer name -> `|W' - W| / |W|`, the relative change of the layer's weight.
    """
    net, x = _copy(net, torch.float32), x.float()
    weights = {name: layer.weight.detach().clone() for name, layer in layers(net)}
    optimizer = torch.optim.Adam(net.parameters(), lr)
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        moved = {name: (layer.weight - weights[name]).norm() / weights[name].norm() for name, layer in layers(net)}
        return {
            "before": loss.item(),
            "after": F.cross_entropy(net(x), y).item(),
            "updates": {name: ratio.item() for name, ratio in moved.items()},
        }


def singular_values(net: nn.Module, x: Tensor) -> Tensor:
    """Singular values of the input-output Jacobian of the first image, `J = d net(x)[0] / d x[0]`, largest first.

    The other images contribute through the statistics of batch normalisation. If all values are 1, the net is a
    dynamical isometry: no direction of the signal or of the gradient is lost (Saxe et al., 2014; Pennington et al.,
    2017).

    Returns: (min(outputs, inputs),) float64.
    """
    net = _copy(net)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x)[0].flatten(), x.double())
    return torch.linalg.svdvals(jacobian[:, 0].flatten(1))


def shattering(net: nn.Module, x: Tensor, points: int = 64) -> Tensor:
    """`autocorrelation` of the gradient of the summed logits with respect to the input, along the straight line from
    the batch's first image to its second. The other images contribute only through the statistics of batch
    normalisation.

    If it drops at once, the gradients at neighbouring inputs are as unlike as white noise: "shattered", and of no use
    beyond the point where they were taken (Balduzzi et al., 2017).

    Returns: (points,), by distance; the whole line is `points - 1` long.
    """
    start, end, *_ = x = x.double()
    t = torch.linspace(0, 1, points, dtype=x.dtype)[:, None, None, None]
    line = ((1 - t) * start + t * end).requires_grad_()
    (gradients,) = torch.autograd.grad(_copy(net)(torch.cat([line, x[2:]]))[:points].sum(), line)
    return autocorrelation(gradients.flatten(1))


def autocorrelation(series: Tensor) -> Tensor:
    """`R(k) = sum_i <g_i - m, g_(i+k) - m> / sum_i <g_i - m, g_i - m>` with m the mean of all: (N, D) -> (N,)."""
    centred = series - series.mean(0)
    products = centred @ centred.T
    return torch.stack([products.diagonal(k).sum() for k in range(len(series))]) / products.trace()


def along_gradient(net: nn.Module, x: Tensor, y: Tensor, steps: list[float]) -> list[dict]:
    """The loss and its gradient after a step against the gradient g of all parameters W (Santurkar et al., 2018).

    Args:
        steps: lengths of the step in W; W moves by `-step g / |g|`.

    Returns: one dict per step: "step"; "loss" there, in nats; "smoothness", `|g(W - step g / |g|) - g(W)| / step`, None
    at step 0. Its largest value is the effective smoothness; the smaller it is, the further g can be trusted.
    """
    net, x, rows = _copy(net), x.double(), []
    parameters = list(net.parameters())
    start = [p.detach().clone() for p in parameters]
    _, gradient = _gradients(net, x, y)
    norm = get_total_norm(gradient)
    for step in steps:
        with torch.no_grad():
            for p, w, g in zip(parameters, start, gradient, strict=True):
                p.copy_(w - step / norm * g)
        loss, there = _gradients(net, x, y)
        change = get_total_norm([a - b for a, b in zip(there, gradient, strict=True)]).item()
        rows.append({"step": step, "loss": loss, "smoothness": change / step if step else None})
    return rows


def loss_slice(net: nn.Module, x: Tensor, y: Tensor, distances: list[float]) -> list[float]:
    """The loss in nats at `W + distance D`, on a random line through the weights (Li et al., 2018).

    D is normal, each of its filters scaled to the norm of the filter of W; biases and normalisation parameters stay
    fixed. So distance 1 is as far from W as W is from 0, and nets can be compared.
    """
    net, x, losses = _copy(net), x.double(), []
    weights = [layer.weight for _, layer in layers(net)]
    start = [w.detach().clone() for w in weights]
    generator = torch.Generator().manual_seed(0)
    line = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in start]
    norms = [(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1)) for d, w in zip(line, start, strict=True)]
    line = [(d.flatten(1) * (to / of)[:, None]).view_as(d) for d, (of, to) in zip(line, norms, strict=True)]
    for distance in distances:
        with torch.no_grad():
            for p, w, d in zip(weights, start, line, strict=True):
                p.copy_(w + distance * d)
            losses.append(F.cross_entropy(net(x), y).item())
    return losses


def cosine_map(c: float, slope: float) -> float:
    """The cosine of two inputs after a LeakyReLU, if it was c before, for weights that preserve variance:

        C(c) = c + (1 - slope)^2 / (pi (1 + slope^2)) (sqrt(1 - c^2) - c arccos c)

    in the limit of many filters (Cho and Saul, 2009, for the ReLU; Zhang et al., 2022). C(c) > c for c < 1: every
    layer makes two images more alike, less so the nearer its slope is to 1.
    """
    c = min(max(c, -1.0), 1.0)
    return c + (1 - slope) ** 2 / (math.pi * (1 + slope**2)) * (math.sqrt(1 - c * c) - c * math.acos(c))


def cosine_after(depth: int, slope: float) -> float:
    """`cosine_map` applied `depth` times to 0, the cosine of two images that have nothing in common."""
    cosine = 0.0
    for _ in range(depth):
        cosine = cosine_map(cosine, slope)
    return cosine


def slope_for(depth: int, cosine: float = 0.9) -> float:
    """The slope at which images with nothing in common have this cosine after `depth` layers. Zhang et al. (2022)
    choose it for 0.9.

    Raises:
        UserError: no slope from 0 (ReLU) to 1 (linear) does: so shallow a net keeps the images further apart.
    """
    most = cosine_after(depth, slope=0.0)
    if not 0 < cosine <= most:
        floor = math.floor(100 * most) / 100
        raise UserError(f"no slope takes the cosine from 0 to {cosine} in {depth} layers; choose one up to {floor:g}")
    return brentq(lambda slope: cosine_after(depth, slope) - cosine, 0.0, 1.0)
