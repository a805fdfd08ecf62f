"""Each probe against a case whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vggres import data, probes
from vggres.errors import UserError
from vggres.gradients import propagation
from vggres.models import build, gain, layers


@pytest.fixture(scope="module")
def batch():
    """20 images of the synthetic set, pooled to 8 x 8, which the nets take as well; and their labels."""
    images = data.Images(*data.synthetic().train)
    x, y = images.batch(next(data.plan_epoch(len(images), 0, 0).batches(20)))
    return F.avg_pool2d(x, 4), y


@pytest.fixture
def small():
    """Two linear layers with a LeakyReLU between, seven inputs and their labels, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.2), nn.Linear(5, 4)).double()
    return net, torch.randn(7, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2, 0, 3])


def stack(width, depth, slope=1.0, seed=0):
    """Orthogonal layers with variance-preserving gain, each but the last followed by a LeakyReLU."""
    torch.manual_seed(seed)
    parts = []
    for _ in range(depth):
        layer = nn.Linear(width, width, bias=False, dtype=torch.float64)
        nn.init.orthogonal_(layer.weight, gain(slope))
        parts += [layer, nn.LeakyReLU(slope)]
    return nn.Sequential(*parts[:-1])


PROBES = {
    "activations": lambda net, x, y: probes.activations(net, x),
    "similarity": lambda net, x, y: probes.similarity(net, x),
    "relative_gradients": probes.relative_gradients,
    "first_step": lambda net, x, y: probes.first_step(net, x, y, lr=1e-3),
    "singular_values": lambda net, x, y: probes.singular_values(net, x).tolist(),
    "shattering": lambda net, x, y: probes.shattering(net, x, points=8).tolist(),
    "along_gradient": lambda net, x, y: probes.along_gradient(net, x, y, [0, 0.1]),
    "loss_slice": lambda net, x, y: probes.loss_slice(net, x, y, [0, 0.5]),
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_measures_in_train_mode_and_does_not_change_the_net(probe, batch):
    net = build("vgg08", seed=0)
    net.entry.act.inplace = True  # as the engine sets it
    x, y = (t.clone() for t in batch)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first = probe(net, x, y)
    assert probe(net.eval(), x, y) == first
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not net.training and all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(x, batch[0]) and not x.requires_grad


def test_activations_of_a_small_net(small):
    net, x, _ = small
    first, last = probes.activations(net, x)
    hidden = net[0](x).detach()
    assert (first["layer"], last["layer"]) == ("0", "2")
    assert first["mean"] == pytest.approx(hidden.numpy().mean())
    assert first["std"] == pytest.approx(hidden.numpy().std(ddof=1))
    assert first["negative"] == pytest.approx((hidden.numpy() < 0).mean())
    assert last["mean"] == pytest.approx(net(x).mean().item())


def test_a_dead_layer_shows():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 4))
    nn.init.constant_(net[0].bias, -100)
    nn.init.zeros_(net[2].bias)
    x, y = torch.randn(7, 6), torch.zeros(7, dtype=torch.long)
    dead, after, _ = probes.activations(net, x)
    assert dead["negative"] == 1 and after["std"] == 0
    assert probes.relative_gradients(net, x, y)["0"] == 0
    assert probes.first_step(net, x, y, lr=1e-3)["updates"]["0"] == 0
    assert not probes.singular_values(net, x).any()


def test_similarity_is_the_mean_cosine_of_all_pairs(small):
    net, x, _ = small
    a = F.leaky_relu(net[0](x), 0.2).detach()
    pairs = [F.cosine_similarity(a[i], a[j], dim=0).item() for i in range(7) for j in range(i)]
    assert probes.similarity(net, x)["2"] == pytest.approx(np.mean(pairs))
    assert probes.similarity(net, x[:1].expand(4, 6))["0"] == pytest.approx(1)
    assert probes.similarity(net, torch.eye(6))["0"] == pytest.approx(0)
    assert probes.similarity(net, 1e-20 * x)["0"] == pytest.approx(probes.similarity(net, x)["0"])  # scale is nothing

    net, x = nn.Conv2d(3, 2, 1), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    pairs = [F.cosine_similarity(x[i], x[j], dim=0).mean().item() for i in range(4) for j in range(i)]  # by pixel
    assert probes.similarity(nn.Sequential(net), x)["0"] == pytest.approx(np.mean(pairs))


def test_relative_gradients_of_a_small_net(small):
    net, x, y = small
    weights = [net[0].weight, net[2].weight]
    by_hand = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
    expected = [(g.norm() / w.norm()).item() for g, w in zip(by_hand, weights, strict=True)]
    assert list(probes.relative_gradients(net, x, y).values()) == pytest.approx(expected)


def test_the_first_step_is_adams(small):
    net, x, y = small[0].float(), small[1].float(), small[2]
    told = probes.first_step(net, x, y, lr=0.01)
    loss = F.cross_entropy(net(x), y)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    assert told["before"] == pytest.approx(loss.item())
    expected, after = [], []
    for p, g in zip(net.parameters(), gradients, strict=True):
        step = 0.01 * g / (g.abs() + 1e-8)
        after.append(p - step)
        expected.append((step.norm() / p.norm()).item())
    assert list(told["updates"].values()) == pytest.approx(expected[::2], rel=1e-4)  # the weights, without the biases
    w1, b1, w2, b2 = after
    by_hand = F.cross_entropy(F.leaky_relu(x @ w1.T + b1, 0.2) @ w2.T + b2, y)
    assert told["after"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_jacobian_of_orthogonal_layers_is_an_isometry():
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(probes.singular_values(stack(8, 20), x), torch.ones(8, dtype=x.dtype))


def test_singular_values_of_a_small_net_and_with_batch_statistics(small):
    net, x, _ = small
    slopes = torch.where(net[0](x[0]) > 0, 1.0, 0.2).double()
    by_hand = torch.linalg.svdvals(net[2].weight * slopes @ net[0].weight)
    torch.testing.assert_close(probes.singular_values(net, x), by_hand.detach())

    # One channel x_1..x_m behind batch normalisation: d y_1 / d x_1 = (1 - 1/m - y_1^2 / m) / s.
    norm, x = nn.BatchNorm1d(1, eps=1e-12).double(), torch.tensor([[0.0], [1.0], [5.0]]).double()
    y, s = norm(x)[0].item(), x.std(correction=0).item()
    assert probes.singular_values(norm, x).item() == pytest.approx((1 - 1 / 3 - y**2 / 3) / s)


def test_autocorrelation_is_numpys():
    series = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = (series - series.mean(0)).numpy()
    by_numpy = sum(np.correlate(column, column, "full")[29:] for column in centred.T)
    assert np.allclose(probes.autocorrelation(series), by_numpy / by_numpy[0])


def test_autocorrelation_of_white_noise_and_of_a_walk():
    noise = torch.randn(100, 200, generator=torch.Generator().manual_seed(0))
    assert probes.autocorrelation(noise)[1].abs() < 0.05
    assert probes.autocorrelation(noise.cumsum(0))[1] > 0.9


def test_shattering_takes_the_gradient_along_the_line_between_the_first_two():
    class Cube(nn.Module):
        def forward(self, x):  # its gradient is 3 x^2
            return x.flatten(1) ** 3

    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    line = torch.stack([x[0] + (x[1] - x[0]) * i / 9 for i in range(10)]).flatten(1)
    expected = probes.autocorrelation(3 * line**2)
    torch.testing.assert_close(probes.shattering(Cube(), x, points=10), expected)


def test_batch_norm_shatters_the_gradient_and_shortcuts_mend_it_in_part(batch):
    at = {name: probes.shattering(build(name, 0), batch[0])[1].item() for name in ("vgg08", "vgg38-bn", "vgg38-bn-rc")}
    assert at["vgg38-bn"] < 0.1 < at["vgg38-bn-rc"] < at["vgg08"]


def test_along_the_gradient_of_a_softmax(small):
    _, x, y = small
    net = nn.Linear(6, 4, bias=False).double()
    told = probes.along_gradient(net, x, y, [0, 0.3])

    def loss_and_gradient(w):
        w = w.detach().requires_grad_()
        loss = F.cross_entropy(x @ w.T, y)
        return loss.item(), torch.autograd.grad(loss, w)[0]

    loss, g = loss_and_gradient(net.weight)
    there, other = loss_and_gradient(net.weight - 0.3 * g / g.norm())
    assert told[0] == {"step": 0, "loss": pytest.approx(loss), "smoothness": None}
    assert told[1]["loss"] == pytest.approx(there) and there < loss
    assert told[1]["smoothness"] == pytest.approx(((other - g).norm() / 0.3).item())
    assert told[1]["smoothness"] <= 0.5 * torch.linalg.eigvalsh(x.T @ x / 7)[-1]  # the Hessian of a softmax is bounded


def test_a_loss_slice_is_normalised_by_filter(batch):
    net = build("vgg08", seed=0)
    x, y = batch
    before, _ = probes.loss_slice(net, x, y, [0, 0.5])
    net.double()
    assert before == pytest.approx(F.cross_entropy(net(x.double()), y).item())
    # A weight ten times larger moves ten times as far: with a loss that does not notice, neither does the slice.
    scaled = build("vgg38-bn", seed=0).double()
    for m in scaled.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 1e-20
    expected = probes.loss_slice(scaled, x, y, [0.1, 0.5])
    with torch.no_grad():
        scaled.stage2.block3.conv1.weight.mul_(torch.logspace(-1, 1, 32)[:, None, None, None])
    assert probes.loss_slice(scaled, x, y, [0.1, 0.5]) == pytest.approx(expected)


@pytest.mark.parametrize("slope", [0.01, 0.3, 0.6])
def test_the_cosine_map_is_what_random_features_show(slope):
    generator = torch.Generator().manual_seed(0)
    for c in (-0.5, 0.0, 0.5, 0.9):
        z = torch.randn(2, 400_000, generator=generator)
        pair = torch.stack([z[0], c * z[0] + math.sqrt(1 - c * c) * z[1]])
        measured = F.cosine_similarity(*F.leaky_relu(pair, slope), dim=0).item()
        assert probes.cosine_map(c, slope) == pytest.approx(measured, abs=0.005)


def test_the_cosine_map_composed():
    after = {slope: round(probes.cosine_after(37, slope), 3) for slope in (0.01, 0.3, 0.5, 0.6, 0.75)}
    assert after == {0.01: 0.979, 0.3: 0.926, 0.5: 0.789, 0.6: 0.650, 0.75: 0.344}
    assert probes.cosine_map(1.0, 0.3) == 1 and probes.cosine_after(37, slope=1.0) == 0
    assert probes.cosine_map(1 + 1e-12, 0.3) == 1  # what rounding makes of a cosine


def test_the_slope_for_a_depth_is_that_of_the_paper():
    assert (round(probes.slope_for(37), 2), round(probes.slope_for(67), 2)) == (0.36, 0.49)
    assert probes.cosine_after(37, probes.slope_for(37, 0.65)) == pytest.approx(0.65)
    with pytest.raises(UserError, match="2 layers"):
        probes.slope_for(2, 0.9)


@pytest.mark.parametrize("slope", [0.01, 0.3, 0.6])
def test_measured_cosines_follow_the_theory(slope):
    apart = torch.eye(8, 512)  # images that have nothing in common
    wide = [list(probes.similarity(stack(512, 9, slope, seed), apart).values()) for seed in range(5)]
    assert np.mean(wide, 0) == pytest.approx([probes.cosine_after(depth, slope) for depth in range(9)], abs=0.03)

    images = data.Images(*data.synthetic().train)
    x, _ = images.batch(next(data.plan_epoch(len(images), 0, 0).batches(8)))
    cosines = probes.similarity(build("vgg38", 0, "delta-orthogonal", slope), x)  # 32 filters are not many
    for depth, layer in ((13, "stage2.block1.conv1"), (36, "stage3.reduce.conv2")):
        assert cosines[layer] == pytest.approx(probes.cosine_after(depth, slope), abs=0.2)


def test_the_gain_of_a_layer_is_the_theorys(batch):
    default, mended = {}, {}
    x, y = batch[0][:8], batch[1][:8]
    for seed in range(4):
        for rows, net in (
            (default, build("vgg38", seed)),
            (mended, build("vgg38", seed, "delta-orthogonal", 0.6)),
        ):
            for row in propagation(net, x, y):
                if ".block" in row["layer"]:
                    rows.setdefault("backward", []).append(row["backward_gain"])
    assert np.exp(np.mean(np.log(mended["backward"]))) == pytest.approx(1, rel=0.02)
    assert gain(0.01) * math.sqrt((1 + 0.01**2) / 2) == pytest.approx(1)
    weights = [m.weight for name, m in layers(build("vgg38", 0)) if ".block" in name]
    variance = np.mean([w.square().mean().item() for w in weights])
    assert math.sqrt(288 * variance * (1 + 0.01**2) / 2) == pytest.approx(1 / math.sqrt(6), rel=0.02)
