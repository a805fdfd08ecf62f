import copy

import pytest
import torch
from torch.nn import functional as F

from vggres.errors import UserError
from vggres.models import build
from vggres.muon import SHARE, TOGETHER, Muon, ScaledAdam, TwoRates, orthogonal
from vggres.runs import Run


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e20])
@pytest.mark.parametrize("shape", [(3, 32, 288), (2, 64, 32), (1, 16, 16)])
def test_matrices_become_nearly_orthogonal_whatever_their_size(shape, size):
    made = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)) * size)
    assert made.shape == shape
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.3 and values.max() < 1.3  # of a square one, the smallest are small at first


def test_of_nothing_nothing_is_made():
    assert not orthogonal(torch.zeros(2, 32, 288)).any()


def test_the_singular_vectors_and_their_signs_stay():
    a = torch.randn(1, 32, 288, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(a[0], full_matrices=False)
    within = u.mT @ orthogonal(a)[0] @ v.mT
    assert torch.allclose(within, torch.diag(within.diagonal()), atol=1e-4) and within.diagonal().min() > 0.5


def step(net, optimizer):
    """One step on 20 images; what it adds to each parameter, by name."""
    before = copy.deepcopy(dict(net.named_parameters()))
    x = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    F.cross_entropy(net(x), torch.arange(20)).backward()
    optimizer.step()
    return {name: (p - before[name]).detach() for name, p in net.named_parameters()}


def test_convolutions_but_the_first_share_what_they_move_and_the_others_as_by_adam():
    ours, theirs = build("vgg08", 0, "delta-orthogonal", 0.6), build("vgg08", 0, "delta-orthogonal", 0.6)
    moved = step(ours, Muon(ours.parameters(), torch.tensor(1e-2)))
    share = 1e-2 * TOGETHER / 6  # VGG08 has seven convolutions
    for name, expected in step(theirs, torch.optim.Adam(theirs.parameters(), 1e-2)).items():
        if expected.ndim == 4 and not name.startswith("entry"):
            values = torch.linalg.svdvals(moved[name].flatten(1)) / share
            assert values.median() > 0.6 and values.max() < 1.3, name  # those of a gradient of lower rank stay behind
            assert (moved[name] * expected).sum() > 0, name  # both go down
        else:
            assert torch.allclose(moved[name], expected, rtol=1e-4), name


def test_adam_at_two_rates_moves_the_convolutions_but_the_first_by_their_share():
    ours, theirs = build("vgg08", 0, "delta-orthogonal", 0.6), build("vgg08", 0, "delta-orthogonal", 0.6)
    moved = step(ours, TwoRates(ours.parameters(), torch.tensor(1e-2), fused=True))
    for name, expected in step(theirs, torch.optim.Adam(theirs.parameters(), 1e-2)).items():
        share = SHARE / 6 if expected.ndim == 4 and not name.startswith("entry") else 1
        assert torch.allclose(moved[name], share * expected, rtol=1e-3, atol=1e-8), name


def test_scaled_adam_steps_as_adam_does_and_as_far_where_the_gradient_is_next_to_nothing():
    ours, theirs, deep = build("vgg08", 0), build("vgg08", 0), build("vgg38", 0)
    moved = step(ours, ScaledAdam(ours.parameters(), torch.tensor(1e-3), fused=True))
    for name, expected in step(theirs, torch.optim.Adam(theirs.parameters(), 1e-3, eps=1e-15)).items():
        assert torch.allclose(moved[name], expected, rtol=1e-2, atol=1e-8), name
    moved = step(deep, ScaledAdam(deep.parameters(), torch.tensor(1e-3), fused=True))
    assert deep.entry.conv.weight.grad.abs().max() < 1e-12  # as it was
    assert all(abs(moved[name].abs().median() - 1e-3) < 1e-5 for name in moved if name.endswith("conv1.weight"))


@pytest.mark.parametrize("make", [Muon, TwoRates])
def test_a_net_without_a_middle_to_train_is_refused(make):
    frozen = build("vgg08", 0).requires_grad_(False)
    frozen.head.requires_grad_(True)
    for net in (build("basenet-0", 0), frozen):
        with pytest.raises(UserError, match="more than one convolution is trained"):
            make(net.parameters(), 1e-2)


def test_its_steps_build_up_momentum_and_look_ahead():
    net, draw = build("vgg08", 0), torch.Generator().manual_seed(0)
    optimizer, momentum = Muon(net.parameters(), torch.tensor(1e-2)), 0.0
    p = optimizer.matrices[2]
    for _ in range(2):
        for q in net.parameters():
            q.grad = torch.randn(q.shape, generator=draw)
        before = p.detach().clone()
        optimizer.step()
        momentum = 0.95 * momentum + p.grad
        ahead = (p.grad + 0.95 * momentum).flatten(1)
        expected = -1e-2 * TOGETHER / 6 * orthogonal(ahead[None])[0].view_as(p)
        torch.testing.assert_close(p - before, expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["muon", "adam-scaled"])
def test_a_decay_that_it_would_not_heed_is_refused(optimizer):
    with pytest.raises(UserError, match="weight_decay must be 0"):
        Run("vgg38", optimizer=optimizer, weight_decay=1e-3)
