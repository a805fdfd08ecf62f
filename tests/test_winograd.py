"""The convolutions of 32 channels, against torch's in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vggres import fused_cpu, winograd
from vggres.engine import Engine
from vggres.models import build, layers
from vggres.training import description

compiles = pytest.mark.skipif(not fused_cpu.available(torch.float32), reason="there is no C compiler here")


def batch(n, h, w):
    generator = torch.Generator().manual_seed(n * h + w)
    return torch.randn(n, 32, h, w, generator=generator)


def layer(bias):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=bias))
    assert winograd.use(net) and type(net[0]) is winograd.Conv2d
    return net[0]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@compiles
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 32), (7, 12, 12), (25, 8, 8)])  # whole blocks of tiles, and not
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_are_those_of_the_definition(shape, bias, layout):
    conv, x = layer(bias), batch(*shape).to(memory_format=layout).requires_grad_()
    dy = batch(*shape).cos().to(memory_format=layout)
    y = conv(x)
    y.backward(dy)
    exact = [t.detach().double().requires_grad_() for t in (x, *conv.parameters())]
    expected = F.conv2d(*exact, padding=1)
    expected.backward(dy.double())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, expected) < 1e-5
    for ours, theirs in zip((x, *conv.parameters()), exact, strict=True):
        assert relative(ours.grad, theirs.grad) < 3e-5


@compiles
def test_the_edge_is_zero_and_a_kernel_of_one_weight_shifts_the_image():
    conv, x = layer(bias=False), batch(1, 8, 8)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, 0, 2] = torch.eye(32)  # up and to the right
        assert torch.allclose(conv(x), F.pad(x, (0, 1, 1, 0))[:, :, :8, 1:], atol=1e-5)


@compiles
def test_it_is_the_same_bit_for_bit_each_time_and_the_output_for_any_number_of_threads():
    conv, x = layer(bias=True), batch(9, 8, 8)
    threads = torch.get_num_threads()
    conv(x).square().sum().backward()
    first, gradient = conv(x), conv.weight.grad.clone()
    conv.zero_grad()
    conv(x).square().sum().backward()
    assert torch.equal(conv.weight.grad, gradient)
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(conv(x), first)
        conv.zero_grad()
        conv(x).square().sum().backward()
        assert relative(conv.weight.grad, gradient) < 1e-5
    finally:
        torch.set_num_threads(threads)


@compiles
@pytest.mark.parametrize(
    "dtype, h, w", [(torch.float64, 8, 8), (torch.float32, 6, 6), (torch.float32, 2, 2), (torch.float32, 8, 4)]
)
def test_what_it_is_not_made_for_is_torchs(dtype, h, w):
    conv, x = layer(bias=True).to(dtype), batch(2, h, w).to(dtype)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))


@compiles
def test_an_image_without_a_batch_and_a_wrong_number_of_channels_are_torchs_too():
    conv, (x,) = layer(bias=True), batch(1, 8, 8)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    with pytest.raises(RuntimeError, match="channels"):
        conv(x[None, :16])
    assert conv.to("meta")(x[None]).shape == (1, 32, 8, 8)  # weights on another device, whatever torch makes of it


@compiles
def test_it_takes_the_place_of_those_convolutions_only_that_it_can_do():
    net = build("vgg50-bn-rc", 0)
    assert winograd.use(net)
    ours = {name for name, m in layers(net) if type(m) is winograd.Conv2d}
    assert {name for name, _ in layers(net)} - ours == {
        "entry.conv",
        *(f"stage{k}.reduce.shortcut.conv" for k in (1, 2, 3)),
        "head",
    }
    others = [dict(stride=2), dict(dilation=2), dict(groups=2), dict(padding_mode="circular"), dict(padding=0)]
    others = [nn.Conv2d(32, 32, 3, **dict(padding=1) | changed) for changed in others]
    assert not winograd.use(nn.Sequential(*others, nn.Conv2d(32, 32, 5, padding=1), nn.Conv2d(16, 32, 3, padding=1)))


@compiles
@pytest.mark.parametrize(
    "precision, name, ours", [("fp32", "vgg08", True), ("fp32", "resnet18", False), ("bf16", "vgg08", False)]
)
def test_the_engine_uses_it_in_float32_where_there_is_something_to_do(precision, name, ours):
    engine = Engine(build(name, 0), 1e-3, 0.0, torch.device("cpu"), precision)
    assert ours == any(isinstance(m, winograd.Conv2d) for m in engine.net.modules())
    assert ours == (engine.convolution == description(engine)["convolution"] == "winograd")


def test_without_a_compiler_a_net_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(fused_cpu, "compiled", lambda name: None)
    net = build("vgg08", 0)
    assert not winograd.use(net)
    assert not any(isinstance(m, winograd.Conv2d) for m in net.modules())
