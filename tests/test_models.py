"""The networks are the reports', to the parameter."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vggres.errors import UserError
from vggres.models import INITS, MODELS, Block, Scale, build, count_parameters, gain, layers

PARAMETERS = {
    "vgg08": 59_716,
    "vgg38": 336_196,
    "vgg38-bn": 338_500,
    "vgg38-rc": 336_196,
    "vgg38-bn-rc": 338_500,
    "vgg38-resnet": 338_500,  # a pooled identity costs nothing
    "vgg38-resnet-sigmoid": 338_500,
    "vgg68-resnet": 616_900,
    "vgg72-resnet": 654_148,
    "vgg106-resnet": 1_210_948,
    "vgg68": 612_676,
    "vgg38-skipinit": 336_214,  # a number a block
}
CONVOLUTIONS = {
    **dict.fromkeys(PARAMETERS, 37),
    "vgg08": 7,
    "vgg68-resnet": 67,
    "vgg68": 67,
    "vgg72-resnet": 71,
    "vgg106-resnet": 131,
    "vgg16-bn-rc": 15,
    "vgg50-bn-rc": 49,
    "vgg150-bn-rc": 149,
}


def silence(block):
    """Let the branch of a block give zero."""
    for name, module in block.named_children():
        if name.startswith("conv"):
            for p in module.parameters():
                nn.init.zeros_(p)


@pytest.fixture
def x():
    return torch.randn(4, 32, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_reports(name):
    assert count_parameters(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_convolutions_are_the_reports_and_one_linear_layer_follows(name):
    kinds = [type(layer) for _, layer in layers(build(name))]
    assert kinds == [nn.Conv2d] * CONVOLUTIONS[name] + [nn.Linear]


@pytest.mark.parametrize("name", MODELS)
def test_layers_run_in_the_order_in_which_they_are_listed(name):
    net, ran = build(name).eval(), []
    for layer, module in layers(net):
        module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    with torch.no_grad():
        logits = net(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 100)
    assert ran == [layer for layer, _ in layers(net)]


@pytest.mark.parametrize("name", MODELS)
def test_every_3x3_convolution_keeps_the_image_and_has_32_filters(name):
    for layer, conv in layers(build(name))[:-1]:
        size = 1 if layer.endswith("shortcut.conv") else 3
        assert (conv.out_channels, conv.kernel_size, conv.stride) == (32, (size, size), (1, 1))
        assert conv.padding == (size // 2, size // 2)


@pytest.mark.parametrize("name", MODELS)
def test_only_reduction_blocks_and_the_head_have_a_bias(name):
    for layer, module in layers(build(name)):
        assert (module.bias is not None) == (".reduce.conv" in layer or layer == "head"), layer


@pytest.mark.parametrize("name", MODELS)
def test_the_entry_is_always_normalised(name):
    assert isinstance(build(name).entry.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("name", MODELS)
def test_batch_norm_follows_each_convolution_of_the_bn_nets_and_no_other(name):
    net, expected = build(name), name not in ("vgg08", "vgg38", "vgg38-rc", "vgg38-skipinit", "vgg68")
    for block in (m for m in net.modules() if isinstance(m, Block)):
        for i in range(1, block.convs + 1):
            assert isinstance(block.get_submodule(f"norm{i}"), nn.BatchNorm2d) == expected
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == (CONVOLUTIONS[name] if expected else 1)


def test_vgg08_computes_what_the_report_describes():
    net = build("vgg08", seed=0).eval()
    w = net.state_dict()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def conv(h, name):
        return F.conv2d(h, w[f"{name}.weight"], w.get(f"{name}.bias"), padding=1)

    h = conv(x, "entry.conv") / (1 + 1e-5) ** 0.5  # a fresh batch norm has mean 0 and variance 1
    h = F.leaky_relu(h, 0.01)
    for stage in (1, 2, 3):
        h = F.avg_pool2d(F.leaky_relu(conv(h, f"stage{stage}.reduce.conv1"), 0.01), 2)
        h = F.leaky_relu(conv(h, f"stage{stage}.reduce.conv2"), 0.01)
    logits = h.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(net(x), logits)


def test_batch_norm_comes_before_the_activation(x):
    block = build("vgg38-bn", seed=0).stage1.block1
    h = F.leaky_relu(F.batch_norm(block.conv1(x), None, None, training=True), 0.01)
    h = F.leaky_relu(F.batch_norm(block.conv2(h), None, None, training=True), 0.01)
    torch.testing.assert_close(block(x), h)


@pytest.mark.parametrize("name", ["vgg38-rc", "vgg38-bn-rc", "vgg38-resnet"])
def test_a_silent_processing_block_passes_its_input_on(name, x):
    block = build(name).stage2.block3
    silence(block)
    torch.testing.assert_close(block(x), F.leaky_relu(x, 0.01))


@pytest.mark.parametrize("name", ["vgg38", "vgg38-bn"])
def test_a_silent_processing_block_without_a_shortcut_passes_nothing(name, x):
    block = build(name).stage2.block3
    silence(block)
    assert not block(x).any()


@pytest.mark.parametrize("name", ["vgg38-rc", "vgg38-bn-rc"])
def test_report_a_has_no_shortcut_in_a_reduction_block(name, x):
    block = build(name).stage2.reduce
    silence(block)
    assert not block(x).any()


def test_report_b_pools_the_identity_of_a_reduction_block(x):
    block = build("vgg38-resnet").stage2.reduce
    silence(block)
    torch.testing.assert_close(block(x), F.leaky_relu(F.avg_pool2d(x, 2), 0.01))


def test_three_convolution_nets_project_the_shortcut_of_a_reduction_block(x):
    block = build("vgg16-bn-rc", seed=0).stage1.reduce
    silence(block)
    projected = F.conv2d(F.avg_pool2d(x, 2), block.shortcut.conv.weight)
    projected = F.batch_norm(projected, None, None, training=True)
    torch.testing.assert_close(block(x), F.leaky_relu(projected, 0.01))


def test_sigmoid_takes_the_place_of_every_leaky_relu():
    kinds = {type(m) for m in build("vgg38-resnet-sigmoid").modules()}
    assert nn.Sigmoid in kinds and nn.LeakyReLU not in kinds
    assert nn.Sigmoid not in {type(m) for m in build("vgg38-resnet").modules()}


def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (build("vgg38-bn-rc", seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["entry.conv.weight"], other["entry.conv.weight"])


def test_without_a_seed_the_weights_come_from_the_global_generator():
    torch.manual_seed(3)
    assert torch.equal(build("vgg08").head.weight, build("vgg08", seed=3).head.weight)


def test_weights_start_as_pytorch_draws_them():
    weight = build("vgg38", seed=0).stage1.block2.conv1.weight
    fan_in = 32 * 9
    assert weight.abs().max() <= fan_in**-0.5
    assert weight.var().item() == pytest.approx(1 / (3 * fan_in), rel=0.03)


@pytest.mark.parametrize("slope", [0, 0.01, 0.6, 1])
def test_the_gain_makes_up_for_what_the_activation_takes(slope):
    z = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    z = torch.cat([z, -z])  # as many negative as positive
    passed = F.leaky_relu(z, slope).square().mean()
    assert gain(slope) ** 2 * passed.item() == pytest.approx(z.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("init", INITS)
def test_an_initialisation_preserves_the_second_moment(init):
    net = build("vgg38", seed=0, init=init, slope=0.6)
    conv = net.stage1.block1.conv1
    x = torch.randn(32, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    inside = F.conv2d(x, conv.weight).square().mean() if init != "delta-orthogonal" else conv(x).square().mean()
    assert inside.item() == pytest.approx(2 / 1.36, rel=0.05)
    weight = net.stage2.block3.conv2.weight
    assert not torch.equal(weight, conv.weight)
    assert weight.square().sum().item() == pytest.approx(32 * 2 / 1.36, rel=0.05)  # of 32 filters


@pytest.mark.parametrize("init", INITS)
def test_an_initialisation_sets_every_weight_and_bias_and_nothing_else(init):
    plain, net = (build("vgg38-resnet", seed=0, init=i).state_dict() for i in ("default", init))
    for key, value in net.items():
        if "norm" in key:
            assert torch.equal(value, plain[key]), key
        elif key.endswith("bias"):
            assert not value.any(), key
        else:
            assert value.any() and not torch.equal(value, plain[key]), key


def test_he_divides_by_the_fan_in_or_the_fan_out():
    variance = {init: build("vgg08", 0, init, 0).entry.conv.weight.var().item() for init in ("he", "he-fan-out")}
    assert variance["he"] == pytest.approx(2 / (9 * 3), rel=0.15)  # 864 weights
    assert variance["he-fan-out"] == pytest.approx(2 / (9 * 32), rel=0.15)


def test_orthogonal_filters_are_orthogonal():
    weight = build("vgg38", seed=0, init="orthogonal", slope=0.5).stage1.block1.conv1.weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, 2 / 1.25 * torch.eye(32), rtol=0, atol=1e-5)


def test_delta_orthogonal_keeps_the_norm_of_every_pixel(x):
    conv = build("vgg38", seed=0, init="delta-orthogonal", slope=0.6).stage1.block1.conv1
    torch.testing.assert_close(conv(x).norm(dim=1), gain(0.6) * x.norm(dim=1))  # at the edges too
    assert conv.weight.count_nonzero() <= 32 * 32


def test_the_slope_is_every_activations():
    slopes = {m.negative_slope for m in build("vgg38", slope=0.6).modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.6}
    assert build("vgg38").entry.act.negative_slope == 0.01
    assert torch.equal(build("vgg38", 0, slope=0.6).head.weight, build("vgg38", 0).head.weight)


def test_a_skipinit_block_starts_as_the_identity_and_learns_its_scalar_first():
    net = build("vgg38-skipinit", seed=0)
    x = torch.rand(4, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    for block in (net.stage1.block1, net.stage2.reduce):
        torch.testing.assert_close(block(x), F.avg_pool2d(x, 2) if block.reduce else x)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    scales = [m.weight.grad for m in net.modules() if isinstance(m, Scale)]
    assert len(scales) == 18 and all(scales)
    assert not net.stage1.block1.conv1.weight.grad.any()


def test_what_cannot_be_built_is_refused():
    with pytest.raises(UserError, match=r"'glorot'.*default, he, he-fan-out, orthogonal, delta-orthogonal"):
        build("vgg38", init="glorot")
    for changes in (dict(init="he"), dict(slope=0.6)):
        with pytest.raises(UserError, match="activation of its own"):
            build("vgg38-resnet-sigmoid", **changes)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'vgg38-bnrc'.*vgg38-bn-rc") as e:
        build("vgg38-bnrc")
    assert "\n" not in str(e.value)
