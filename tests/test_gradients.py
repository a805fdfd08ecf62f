"""Gradient flow and the propagation of signal and gradient, against what can be computed by hand."""

from statistics import median

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vggres import data
from vggres.gradients import flow_on, gradient_flow, propagation
from vggres.models import build, layers


@pytest.fixture(scope="module")
def batch():
    """32 images of the synthetic set as a run would see them, and their labels."""
    images = data.Images(*data.synthetic().train)
    return images.batch(next(data.plan_epoch(len(images), 0, 0).batches(32)))


def noise(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


def rms(t):
    return t.square().mean().sqrt().item()


def test_flow_of_a_linear_layer_is_the_outer_product_of_error_and_input():
    net, x, y = nn.Sequential(nn.Linear(6, 4)), noise(5, 6), torch.tensor([0, 3, 1, 1, 2])
    F.cross_entropy(net(x), y).backward()
    error = net(x).softmax(1) - F.one_hot(y, 4)
    by_hand = (error.T @ x / len(y)).abs().mean().item()
    assert gradient_flow(net) == {"0": pytest.approx(by_hand, rel=1e-5)}


def test_flow_has_each_convolution_and_linear_layer_and_no_other(batch):
    x, y = batch
    net = build("vgg38-bn-rc", seed=0)
    flow = flow_on(net, x, y)
    assert list(flow) == [name for name, _ in layers(net)]
    weights = [layer.weight for _, layer in layers(net)]
    by_hand = torch.autograd.grad(F.cross_entropy(net.train()(x), y), weights)
    assert list(flow.values()) == pytest.approx([g.abs().mean().item() for g in by_hand], rel=1e-4)


@pytest.mark.parametrize("probe", [flow_on, propagation])
def test_a_probe_does_not_change_the_net(probe, batch):
    net = build("vgg38-bn", seed=0).eval()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    probe(net, *batch)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(m.training for m in net.modules())
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["head.weight"]
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert not any(m._forward_hooks for m in net.modules())


def test_a_probe_measures_in_train_mode_and_float32(batch):
    net = build("vgg08", seed=0)
    expected = flow_on(net, *batch)
    assert flow_on(net.eval(), *batch) == expected
    half = flow_on(net.bfloat16(), *batch)  # the weights are rounded, the arithmetic is not
    assert list(half.values()) == pytest.approx(list(expected.values()), rel=0.05)


def test_propagation_through_two_linear_layers_is_known_exactly():
    net, x, y = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), noise(7, 6), torch.tensor([0, 3, 1, 1, 2, 0, 3])
    first, last = propagation(net, x, y)
    hidden = net[0](x)
    error = net(x).softmax(1) - F.one_hot(y, 4)  # dE/dz of the mean over n images is this, divided by n
    assert (first["layer"], last["layer"]) == ("0", "1")
    assert first["gradient"] == pytest.approx(rms(error @ net[1].weight), rel=1e-5)
    assert last["gradient"] == pytest.approx(rms(error), rel=1e-5)
    assert first["backward_gain"] == pytest.approx(rms(error @ net[1].weight) / rms(error), rel=1e-5)
    assert first["rms"] == pytest.approx(rms(hidden), rel=1e-5)
    assert first["signal"] == pytest.approx(rms(hidden - hidden.mean(0)) * (7 / 6) ** 0.5, rel=1e-5)
    assert last["backward_gain"] is None


def test_a_plain_3x3_layer_shrinks_the_gradient_by_the_factor_that_its_initialisation_says(batch):
    # A weight has variance 1 / (3 * 9 * 32) and 32 filters of 9 weights reach back to a pixel, of which the
    # activation passes half: 1 / sqrt(6). Zero padding leaves (94 / 96)^2 of the nine, on average over 32 x 32.
    expected = (1 / 6) ** 0.5 * (94 / 96)
    x, y = (t[:8] for t in batch)
    gains = [
        row["backward_gain"]
        for seed in range(3)
        for row in propagation(build("vgg38", seed), x, y)
        if row["layer"].startswith("stage1.block")
    ]
    assert len(gains) == 30
    assert median(gains) == pytest.approx(expected, rel=0.06)
    assert min(gains) > 0.25 and max(gains) < 0.6


def test_signal_shrinks_forwards_in_vgg38(batch):
    rows = {row["layer"]: row for row in propagation(build("vgg38", seed=0), *(t[:8] for t in batch))}
    assert rows["stage1.reduce.conv1"]["signal"] < 1e-3 * rows["stage1.block1.conv1"]["signal"]


def test_the_first_gradient_vanishes_in_vgg38_and_not_with_batch_norm_and_shortcuts(batch):
    first = {name: flow_on(build(name, seed=0), *batch)["entry.conv"] for name in ("vgg08", "vgg38", "vgg38-bn-rc")}
    assert 0 < first["vgg38"] < 1e-15  # not 0, as it looks on the reports' linear axis
    assert first["vgg08"] > 1e-6
    assert first["vgg38-bn-rc"] > 1e-3
