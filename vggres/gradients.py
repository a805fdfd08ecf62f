"""Gradient flow, as the reports define it, and how signal and gradient propagate through a net in any state."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggres.models import layers


def gradient_flow(net: nn.Module) -> dict[str, float]:
    """Mean |dE/dW| of each convolution's and linear layer's weight, in forward order.

    Biases and batch normalisation are left out, as in the gradient-flow figures of reports A and B, and so are layers
    that are not trained. Reads the float32 `.grad` of the last backward pass.

    Returns: layer name -> mean absolute gradient, in nats per unit of weight.
    """
    trained = {name: layer.weight for name, layer in layers(net) if layer.weight.requires_grad}
    means = torch.stack([weight.grad.abs().mean() for weight in trained.values()])
    return dict(zip(trained, means.tolist(), strict=True))


def flow_on(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """`gradient_flow` of the cross-entropy of one batch, in train mode and float32; the net is not changed.

    In train mode a net with batch normalisation uses the batch's own statistics; in evaluation mode it would be
    another network, with other gradients.

    Args:
        x, y: images (N, 3, H, W) and labels (N,).
    """
    net = copy.deepcopy(net).float().train()
    F.cross_entropy(net(x), y).backward()
    return gradient_flow(net)


def propagation(net: nn.Module, x: Tensor, y: Tensor) -> list[dict]:
    """How signal and gradient pass through the layers, in train mode and float64; the net is not changed.

    In float32, the little that a deep plain net still knows of its input would drown in rounding errors.

    For the output z of each convolution and linear layer, before normalisation and activation:

    - `signal`: root mean square over units of the standard deviation of z across the images of the batch; what
      the layer still knows of *which* image it sees;
    - `rms`: root mean square of z itself;
    - `gradient`: root mean square of dE/dz, times the number of images (E is the mean over them);
    - `backward_gain`: how much `gradient` grows from the next layer to this one; below 1 it shrinks on its way
      to the input. None at the last layer, and where the next layer's `gradient` is 0.

    With PyTorch's default initialisation a weight has variance 1 / (3 fan_in), and a (leaky) ReLU passes half of
    the second moment, so the gain of a plain 3x3 layer, forward and backward, is about sqrt(1/3 * 1/2) = 0.41 (He et
    al., 2015, give the general argument).

    Returns: one dict per layer, in forward order, with "layer" and the keys above.
    """
    net = copy.deepcopy(net).double().train()
    outputs: dict[str, Tensor] = {}

    for name, layer in layers(net):

        def keep(module, inputs, out, name=name):
            out.retain_grad()
            outputs[name] = out
            return out.clone()  # the activation may work in place

        layer.register_forward_hook(keep)
    F.cross_entropy(net(x.double()), y).backward()
    rows = [
        {
            "layer": name,
            "signal": z.detach().std(0).square().mean().sqrt().item(),
            "rms": z.detach().square().mean().sqrt().item(),
            "gradient": z.grad.square().mean().sqrt().item() * len(x),
        }
        for name, z in outputs.items()
    ]
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        row["backward_gain"] = row["gradient"] / after["gradient"] if after and after["gradient"] else None
    return rows
