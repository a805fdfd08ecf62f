"""The fused blocks against torch's in float64: on CPUs in bf16 and float32, on CUDA in bf16, in Triton's interpreter in
float32."""

import copy
import subprocess

import pytest
import torch
from torch import nn

from vggres import fused, fused_cpu, fused_cuda, native
from vggres.engine import Engine
from vggres.models import Block, build
from vggres.training import description

CPU = pytest.mark.skipif(not fused_cpu.available(), reason="neither AMX nor bf16 in AVX-512, or no C compiler")
COMPILED = pytest.mark.skipif(not fused_cpu.available(torch.float32), reason="there is no C compiler here")
INTERPRETED = pytest.mark.skipif(
    torch.cuda.is_available() or not fused_cuda.available(), reason="no Triton, or it interprets nothing beside CUDA"
)
CUDA = pytest.mark.skipif(not (torch.cuda.is_available() and fused_cuda.available()), reason="no CUDA, or no Triton")
CASES = {  # device, blocks, largest relative error
    "cpu": (("cpu", fused.OnCPU, 0.1), CPU),
    "float32": (("cpu", fused.InFloat32, 0.02), COMPILED),  # where rounding turns the sign of one activation
    "interpreted": (("cpu", fused.OnCUDA, 1e-5), INTERPRETED),
    "cuda": (("cuda", fused.OnCUDA, 0.2), CUDA),
}


@pytest.fixture(params=[pytest.param(case, marks=mark, id=name) for name, (case, mark) in CASES.items()])
def case(request, monkeypatch):
    device, kind, error = request.param
    if device == "cpu" and kind is fused.OnCUDA:  # numpy, in which the interpreter computes, knows no bf16
        monkeypatch.setattr(kind, "dtype", torch.float32)
    return torch.device(device), kind, error


ON_CPU = pytest.mark.parametrize(
    "kind, most",
    [
        pytest.param(fused.OnCPU, 0.1, marks=CPU, id="bf16"),
        pytest.param(fused.InFloat32, 0.02, marks=COMPILED, id="float32"),
    ],
)


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
    "sigmoid": dict(skip=True, act=nn.Sigmoid()),
    "norm, sigmoid": dict(norm=True, skip=True, act=nn.Sigmoid()),
    "norm, tanh, reducing": dict(norm=True, skip=True, reduce=True, act=nn.Tanh()),
    "skipinit, sigmoid": dict(skip=True, skipinit=True, act=nn.Sigmoid()),
}


def pair(options, device, kind):
    """A block whose vectors are drawn, too, and the same block fused."""
    torch.manual_seed(0)
    block = Block(32, **{"act": nn.LeakyReLU(0.1)} | options).to(device, memory_format=torch.channels_last)
    for parameter in block.parameters():
        if parameter.ndim < 2:
            nn.init.uniform_(parameter, 0.5, 1.5)
    ours = copy.deepcopy(block)
    assert fused.use(nn.Sequential(ours), kind) and type(ours) is kind
    return block, ours


PLAIN = dict(convs=2, reduce=False, norm=False, skip=False, project=False)


def assert_like_torch_s(options, images, size, device, kind, most):
    block, ours = pair(options, device, kind)
    x = torch.randn(images, 32, size, size, device=device).to(kind.dtype)
    dy = torch.randn(images, 32, *[size // 2 if options["reduce"] else size] * 2, device=device)
    mine, theirs = passed(ours, x, dy), passed(copy.deepcopy(block).double(), x.double(), dy)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if options["norm"] and "conv" in name and name.endswith("bias"):  # rounding errors: the norm takes it back
            assert mine[name].abs().max() < (1e-4 if most < 1e-3 else 1)
        elif value.ndim or most < 1e-3:  # in bf16 one number can be far off by the sign of one activation
            error = (mine[name].double() - value).norm() / value.double().norm()
            assert error < most, name


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_torch_s(case, name):
    assert_like_torch_s(PLAIN | BLOCKS[name], 3, 8, *case)  # of 3 images the last program, or line, is not full


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@ON_CPU
@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("images, size", [(2, 32), (5, 16), (9, 4), (17, 2), (3, 1), (2, 12)])
def test_on_a_cpu_it_is_for_any_size_and_number_of_threads(images, size, threads, kind, most):
    for options in (dict(reduce=size % 2 == 0), dict(norm=True, skip=True)):
        assert_like_torch_s(PLAIN | options, images, size, torch.device("cpu"), kind, most)


@ON_CPU
@pytest.mark.parametrize("threads", [2, 3], indirect=True)
def test_on_a_cpu_it_is_the_same_bit_for_bit_each_time(threads, kind, most):
    _, ours = pair(PLAIN | dict(norm=True, skip=True), torch.device("cpu"), kind)
    x, dy = torch.randn(40, 32, 16, 16).to(kind.dtype), torch.randn(40, 32, 16, 16)
    first = passed(copy.deepcopy(ours), x, dy)
    for _ in range(5):
        again = passed(copy.deepcopy(ours), x, dy)
        assert all(torch.equal(value, again[name]) for name, value in first.items())


def convolved(x, weight, bias):
    return nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)


def convolved_back(x, weight, dz):
    """The gradients of input, weight and bias."""
    given = dz.double(), x.double(), weight.double(), [32], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True] * 3
    return torch.ops.aten.convolution_backward(*given)


def off(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


ROUNDED = {torch.bfloat16: 3e-3, torch.float32: 1e-5}  # once
SUMMED = {torch.bfloat16: 1e-5, torch.float32: 3e-5}  # in float32, by its definition and by Winograd's algorithm


@pytest.fixture
def drawn(request):
    """Of a layer: input, weight, bias, shortcut, and the gradients of its results and of its input elsewhere."""
    (images, size, threads), dtype = request.param
    torch.manual_seed(0)
    x, shortcut, dy, dx = (
        torch.randn(images, 32, size, size).to(dtype, memory_format=torch.channels_last) for _ in range(4)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield x, fused_cpu.prepared(torch.randn(32, 32, 3, 3) / 17, dtype), torch.randn(32), shortcut, dy, dx
    torch.set_num_threads(before)


LAYERS = pytest.mark.parametrize(
    "drawn",
    [
        pytest.param((shape, dtype), marks=mark)
        for dtype, mark in ((torch.bfloat16, CPU), (torch.float32, COMPILED))
        for shape in [(9, 16, 1), (5, 32, 1), (17, 2, 3), (5, 8, 2), (9, 4, 3)]
    ],
    indirect=True,
)


@LAYERS
def test_on_a_cpu_a_layer_is_exact_but_for_one_rounding(drawn):
    x, weight, bias, shortcut, dy, dx = drawn
    y = fused_cpu.layer(x, weight, bias, shortcut, 0.1)
    assert off(y, nn.functional.leaky_relu(convolved(x, weight, bias) + shortcut, 0.1)) < ROUNDED[x.dtype]
    for sign in (y, None):
        known = dy, None, sign, None, None, None
        of_x, of_weight, of_bias, dz, *_ = fused_cpu.back(x, weight, known, 0.1, dx, (True,) * 4)
        assert torch.equal(dz, dy if sign is None else torch.where(y > 0, dy, dy * 0.1))
        exact = convolved_back(x, weight, dz)
        assert off(of_x, exact[0] + dx) < ROUNDED[x.dtype]
        assert off(of_weight, exact[1]) < SUMMED[x.dtype] and off(of_bias, exact[2]) < SUMMED[x.dtype]


@LAYERS
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_on_a_cpu_a_normalised_layer_is_exact_but_for_one_rounding(with_shortcut, drawn):
    x, weight, bias, shortcut, dy, dx = drawn
    shortcut, norm = shortcut if with_shortcut else None, nn.BatchNorm2d(32)
    for vector in (norm.weight, norm.bias):
        nn.init.uniform_(vector, 0.5, 1.5)
    exact, vectors = copy.deepcopy(norm).double(), (norm.weight.detach(), norm.bias.detach())
    z, y, batch = fused_cpu.normalised(x, weight, bias, shortcut, 0.1, norm)
    known = dy, z, y if with_shortcut else None, *vectors, *batch
    *of_all, dshortcut, of_gamma, of_beta = fused_cpu.back(x, weight, known, 0.1, dx, (True, True, True, with_shortcut))

    assert off(z, convolved(x, weight, bias)) < ROUNDED[x.dtype]
    zz, ss = z.double().requires_grad_(), torch.zeros(()) if shortcut is None else shortcut.double().requires_grad_()
    yy = nn.functional.leaky_relu(exact(zz) + ss, 0.1)
    yy.backward(dy.double())
    assert off(y, yy) < ROUNDED[x.dtype] and (
        off(dshortcut, ss.grad) < ROUNDED[x.dtype] if with_shortcut else dshortcut is None
    )
    summed = [(of_gamma, exact.weight.grad), (of_beta, exact.bias.grad)]
    summed += [(norm.running_mean, exact.running_mean), (norm.running_var, exact.running_var)]
    assert all(off(ours, theirs) < SUMMED[x.dtype] for ours, theirs in summed) and norm.num_batches_tracked == 1
    of_x, of_weight, _ = convolved_back(x, weight, zz.grad)  # and the bias's is 0, but for rounding
    assert off(of_all[0], of_x + dx) < ROUNDED[x.dtype] and off(of_all[1], of_weight) < ROUNDED[x.dtype]
    assert of_all[2].norm() < ROUNDED[x.dtype] * zz.grad.abs().sum((0, 2, 3)).norm()


@ON_CPU
@pytest.mark.parametrize("size", [8, 10, 12])  # ours, and torch's
@pytest.mark.parametrize("norm", [True, False])
def test_on_a_cpu_a_shortcut_s_input_need_not_have_a_gradient(norm, size, kind, most):
    block, ours = pair(PLAIN | dict(norm=norm, skip=True), torch.device("cpu"), kind)
    x, dy = torch.randn(3, 32, size, size).to(kind.dtype), torch.randn(3, 32, size, size)
    block.double()(x.double()).backward(dy.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=kind.dtype == torch.bfloat16):
        y = ours(x)
    assert "Layer" in y.grad_fn.name()
    y.backward(dy.to(kind.dtype))
    assert all(off(a.grad, b.grad) < most for a, b in zip(ours.parameters(), block.parameters(), strict=True))


@LAYERS
def test_on_a_cpu_pooling_is_torch_s(drawn):
    x, *_, dy, _ = drawn
    assert off(fused_cpu.pool(x), nn.functional.avg_pool2d(x.double(), 2)) < ROUNDED[x.dtype]
    assert torch.equal(fused_cpu.pool_back(dy), (dy / 4).repeat_interleave(2, 2).repeat_interleave(2, 3))


@ON_CPU
@pytest.mark.parametrize("size", [32, 5])
@pytest.mark.parametrize("name", ["vgg08", "vgg38-resnet-sigmoid"])
def test_on_a_cpu_a_net_s_entry_is_torch_s(name, size, kind, most):
    net, x, dy = build(name, 0), torch.randn(7, 3, size, size), torch.randn(7, 32, size, size)
    by_torch, exact = copy.deepcopy(net.entry), copy.deepcopy(net.entry).double()
    assert fused.use(net, kind) and type(net.entry) is kind.entry
    values = []
    for entry, given in ((net.entry, x.clone()), (by_torch, x.clone()), (exact, x.double())):
        with torch.autocast("cpu", torch.bfloat16, enabled=entry is not exact and kind.dtype == torch.bfloat16):
            y = entry(given.requires_grad_())
        made_by = y.grad_fn.next_functions[0][0] if "sigmoid" in name else y.grad_fn
        assert ("Layer" in made_by.name()) == (entry is net.entry)
        y.backward(dy.to(y.dtype))
        values.append([y.detach(), given.grad, *(p.grad for p in entry.parameters()), *entry.buffers()])
    assert all(off(ours, true) < 1.2 * off(theirs, true) + 1e-4 for ours, theirs, true in zip(*values, strict=True))
    other = x if kind.dtype == torch.bfloat16 else x.double()
    assert torch.equal(net.entry.to(other.dtype)(other), by_torch.to(other.dtype)(other))  # torch's


def test_what_is_no_training_of_square_images_of_its_type_is_left_to_the_block(case):
    device, kind, _ = case
    x = torch.randn(2, 32, 8, 8, device=device).to(kind.dtype)
    block, ours = pair(PLAIN | dict(norm=True, skip=True), device, kind)
    with torch.autocast(device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        assert torch.equal(ours.eval()(x), block.eval()(x))
        assert torch.equal(ours.train()(x[..., :4]), block.train()(x[..., :4]))
        with pytest.raises(ValueError, match="more than 1 value"):  # torch's: of one pixel there is no deviation
            ours(x[:1, :, :1, :1])
    assert torch.equal(ours.double()(x.double()), block.double()(x.double()))


@pytest.mark.parametrize(
    "name, ours", [("vgg38", True), ("vgg50-bn-rc", True), ("vgg38-resnet-sigmoid", True), ("resnet18", False)]
)
@pytest.mark.parametrize("kind", [fused.OnCPU, fused.InFloat32, fused.OnCUDA])
def test_it_takes_the_place_of_those_blocks_only_that_it_can_do(name, ours, kind, monkeypatch):
    monkeypatch.setattr(kind.kernels, "available", lambda dtype: "by something")
    net = build(name)
    assert fused.use(net, kind) == ("by something" if ours else None)
    assert ours == any(type(m) is kind for m in net.modules())


@pytest.mark.parametrize("kind", [fused.OnCPU, fused.InFloat32, fused.OnCUDA])
@pytest.mark.parametrize("convs, slope", [(1, 0.01), (2, -0.1)])
def test_a_block_of_one_convolution_or_a_negative_slope_stays(convs, slope, kind, monkeypatch):
    monkeypatch.setattr(kind.kernels, "available", lambda dtype: "by something")
    assert fused.use(nn.Sequential(Block(32, act=nn.LeakyReLU(slope), **PLAIN | dict(convs=convs))), kind) is None


@ON_CPU
def test_a_net_that_was_moved_to_another_device_is_torch_s_there(kind, most):
    net = build("vgg08", 0)
    assert fused.use(net, kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind.dtype == torch.bfloat16):
        assert net.to("meta")(torch.randn(2, 3, 32, 32, device="meta")).shape == (2, 100)
        block = next(m for m in net.modules() if type(m) is kind)
        assert block(torch.randn(2, 32, 8, 8, dtype=torch.float32, device="meta")).device.type == "meta"


def test_a_norm_that_is_not_by_the_batch_in_float32_is_torch_s(case):
    device, kind, _ = case
    x = torch.randn(4, 32, 8, 8, device=device).to(kind.dtype)
    block, ours = pair(PLAIN | dict(norm=True, skip=True), device, kind)
    other = [nn.BatchNorm2d(32, affine=False), nn.BatchNorm2d(32, track_running_stats=False), nn.BatchNorm2d(32).eval()]
    for norm in other:
        block.norm1, ours.norm1 = copy.deepcopy(norm).to(device), norm.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            theirs, mine = block(x), ours(x)
        assert (mine - theirs).norm() < 0.02 * theirs.norm()
        assert all(
            torch.equal(a, b) for a, b in zip(norm.buffers(), block.norm1.buffers(), strict=True) if not norm.training
        )


@ON_CPU
def test_the_engine_uses_it_on_a_cpu(kind, most):
    engine = Engine(build("vgg08", 0), 1e-3, 0.0, torch.device("cpu"), "bf16" if kind is fused.OnCPU else "fp32")
    assert any(type(m) is kind for m in engine.net.modules())
    assert description(engine)["convolution"] == engine.convolution == fused_cpu.available(kind.dtype)


def test_without_triton_or_a_c_compiler_the_blocks_stay(monkeypatch):
    monkeypatch.setattr(fused_cuda, "kernels", None)
    monkeypatch.setattr(fused_cpu, "compiled", lambda name: None)
    assert not any(fused.use(build("vgg08"), kind) for kind in (fused.OnCUDA, fused.OnCPU, fused.InFloat32))


@INTERPRETED
def test_where_triton_cannot_launch_on_the_gpu_the_blocks_stay(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and Triton finds no driver
    assert not fused.use(build("vgg08"), fused.OnCUDA)


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    def absent(*args, **options):
        raise FileNotFoundError("cc")

    monkeypatch.setattr(subprocess, "run", absent)
    assert native.compiled.__wrapped__("winograd") is native.compiled.__wrapped__("fused_cpu") is None
