"""The blocks of a GPU, against torch's in float64: on the CPU in Triton's interpreter and float32, on CUDA in bf16."""

import copy

import pytest
import torch
from torch import nn

from vggres import fused
from vggres.models import Block, build

pytest.importorskip("triton")
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is CUDA, Triton interprets nothing")
DEVICES = [
    pytest.param("cpu", marks=INTERPRETED),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    if request.param == "cpu":  # where numpy, in which the interpreter computes, knows no bf16
        monkeypatch.setattr(fused, "DTYPE", torch.float32)
    return torch.device(request.param)


def passed(block: nn.Module, x, dy):
    """Results, all gradients and the running statistics of a pass forward and back."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        y = block(x)
    y.backward(dy.to(y.dtype))
    gradients = {name: p.grad for name, p in block.named_parameters()}
    return {"y": y.detach(), "x": x.grad} | gradients | dict(block.named_buffers())


BLOCKS = {
    "plain": {},
    "plain, reducing": dict(reduce=True),
    "shortcut": dict(skip=True),
    "norm": dict(norm=True),
    "norm, shortcut": dict(norm=True, skip=True),
    "norm, shortcut, reducing": dict(norm=True, skip=True, reduce=True),
    "three convolutions, projected": dict(convs=3, norm=True, skip=True, reduce=True, project=True),
    "skipinit": dict(skip=True, skipinit=True),
    "skipinit, reducing": dict(skip=True, skipinit=True, reduce=True),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_is_torch_s(device, kind):
    options = dict(convs=2, reduce=False, norm=False, skip=False, project=False) | BLOCKS[kind]
    torch.manual_seed(0)
    block = Block(32, act=nn.LeakyReLU(0.1), **options).to(device)
    for parameter in block.parameters():
        if parameter.ndim < 2:
            nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(3, 32, 8, 8, device=device).to(fused.DTYPE)  # the last program has half of its pixels
    dy = torch.randn(3, 32, *((4, 4) if options["reduce"] else (8, 8)), device=device)
    ours = copy.deepcopy(block).to(memory_format=torch.channels_last)
    assert fused.use(nn.Sequential(ours)) and type(ours) is fused.FusedBlock
    mine, theirs = passed(ours, x, dy), passed(copy.deepcopy(block).double(), x.double(), dy)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if options["norm"] and "conv" in name and name.endswith("bias"):  # rounding errors: the norm takes it back
            assert mine[name].abs().max() < (1e-4 if device.type == "cpu" else 1)
        elif value.ndim or device.type == "cpu":  # one number can be far off by the sign of one activation
            error = (mine[name].double() - value).norm() / value.double().norm()
            assert error < (1e-5 if device.type == "cpu" else 0.2), name


def test_what_is_no_training_of_square_bf16_images_is_left_to_the_block(device):
    x = torch.randn(2, 32, 8, 8, device=device).to(fused.DTYPE)
    block = Block(32, 2, False, True, True, False, nn.LeakyReLU(0.01)).to(device)
    ours = copy.deepcopy(block)
    assert fused.use(nn.Sequential(ours))
    with torch.autocast(device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        assert torch.equal(ours.eval()(x), block.eval()(x))
        assert torch.equal(ours.train()(x[..., :4]), block.train()(x[..., :4]))
    assert torch.equal(ours.double()(x.double()), block.double()(x.double()))


@pytest.mark.parametrize(
    "name, ours", [("vgg38", True), ("vgg50-bn-rc", True), ("vgg38-resnet-sigmoid", False), ("resnet18", False)]
)
def test_it_takes_the_place_of_those_blocks_only_that_it_can_do(name, ours):
    net = build(name)
    assert fused.use(net) == ours == any(isinstance(m, fused.FusedBlock) for m in net.modules())


def test_without_triton_the_blocks_stay(monkeypatch):
    monkeypatch.setattr(fused, "kernels", None)
    assert not fused.use(build("vgg08"))


@INTERPRETED
def test_where_triton_cannot_launch_on_the_gpu_the_blocks_stay(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and Triton finds no driver
    assert not fused.use(build("vgg08"))
