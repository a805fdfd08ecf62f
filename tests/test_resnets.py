"""The networks of reports C and D: shapes, parameters, work, and what each variant and each step changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vggres import data
from vggres.errors import UserError
from vggres.gradients import flow_on, gradient_flow, propagation
from vggres.models import build, count_parameters, layers, multiply_adds
from vggres.resnets import NETS, STEPS, SubBlock, basenet

PARAMETERS = {
    "resnet18": 11_220_132,
    "resnet18-no-bn": 11_210_532,  # 9,600 less: two numbers for each of 4,800 channels
    "resnet18-dropout": 11_210_532,
    "resnet34": 21_328_292,
    "resnet34-no-bn": 21_311_268,
    "resnet50": 23_705_252,
    "resnet50-no-bn": 23_652_132,
    "resnet18-224": 11_227_812,  # torchvision's 11,689,512 with 100 classes instead of 1,000
    "inception": 2_311_816,
    "basenet-start": 28_022,
    "basenet-start-bn": 28_066,
    "basenet-0": 826_142,
    "basenet-1": 826_270,
    "basenet-2": 766_558,
    "basenet-3": 1_357_150,
    "basenet-4": 2_871_070,
    "basenet-5": 2_871_070,
    "basenet-6": 2_871_070,
    "basenet-7": 2_871_170,
    "basenet": 27_669_734,
    "basenet-no-skip": 27_669_734,
}
DEEP = ["basenet", "basenet-no-skip"]  # 130 GFLOP an image for a step
SMALL = [name for name in NETS if name not in DEEP]


def side(name):
    return 224 if name.endswith("-224") else 32


@pytest.fixture(scope="module")
def batch():
    """24 images of the synthetic set as a run would see them, and their labels."""
    images = data.Images(*data.synthetic().train)
    return images.batch(next(data.plan_epoch(len(images), 0, 0).batches(24)))


@pytest.mark.parametrize("name", NETS)
def test_shapes_parameters_and_the_order_of_the_layers(name):
    net, ran = build(name, seed=0).eval(), []
    for layer, module in layers(net):
        module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    with torch.no_grad():
        assert net(torch.zeros(1, 3, side(name), side(name))).shape == (1, 100)
    assert ran == [layer for layer, _ in layers(net)]
    assert count_parameters(net) == PARAMETERS[name]


def test_the_parameters_of_basenet_are_those_of_its_table():
    def conv(before, after):
        return 9 * before * after + after

    blocks = [(64, 64)] * 3 + [(64, 128)] + [(128, 128)] * 3 + [(128, 256)] + [(256, 256)] * 5
    blocks += [(256, 512)] + [(512, 512)] * 2
    each = [conv(i, o) + conv(o, o) + 4 * o for i, o in blocks]
    head = 512 * 16 * 16 * 50 + 50 + 50 * 100 + 100 + 2 * 100
    assert PARAMETERS["basenet"] == conv(3, 64) + 2 * 64 + sum(each) + head


@pytest.mark.parametrize("name", ["resnet18", "inception", "basenet-6"])
def test_another_number_of_classes_changes_the_last_layer_only(name):
    ten, hundred = build(name, classes=10), build(name)
    assert ten(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    last = layers(hundred)[-1][1]
    assert count_parameters(hundred) - count_parameters(ten) == 90 * (last.in_features + 1)


@pytest.mark.parametrize("name", [*SMALL, "basenet"])
def test_the_loss_falls_on_the_synthetic_set(name, batch):
    few = side(name) > 32 or name.startswith("resnet")
    n, steps, lr = (4, 2, 1e-3) if name in DEEP else (4, 3, 1e-3) if few else (8, 6, 1e-3)
    x, y = (t[:n] for t in batch)
    x = F.interpolate(x, side(name)) if side(name) > 32 else x
    torch.manual_seed(0)
    net, losses = build(name, 0).train(), []
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        losses.append(F.cross_entropy(net(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3, losses
    assert all(value > 0 for value in gradient_flow(net).values())


@pytest.mark.parametrize("name", ["resnet18", "resnet18-dropout", "inception", "basenet-4", "basenet-6"])
def test_gradient_flow_is_read_at_every_layer(name, batch):
    x, y = (t[:4] for t in batch)
    torch.manual_seed(0)
    flow = flow_on(build(name, 0), x, y)
    assert list(flow) == [layer for layer, _ in layers(build(name))]
    assert min(flow.values()) > 0


def test_signal_and_gradient_are_probed_in_all_kinds_of_net(batch):
    x, y = (t[:2] for t in batch)
    for name in ("resnet18", "inception", "basenet-6"):
        rows = propagation(build(name, 0), x, y)
        assert len(rows) == len(layers(build(name))) and all(row["gradient"] > 0 for row in rows)


def kinds(name):
    return {type(m) for m in build(name).modules()}


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_without_bn_a_resnet_is_the_same_but_for_bn(depth):
    whole, bare = (build(f"resnet{depth}{variant}", 0) for variant in ("", "-no-bn"))
    assert nn.BatchNorm2d in kinds(f"resnet{depth}") and nn.BatchNorm2d not in kinds(f"resnet{depth}-no-bn")
    theirs = dict(layers(whole))
    for name, layer in layers(bare):
        assert layer.weight.shape == theirs[name].weight.shape
        assert (layer.bias is None) == (theirs[name].bias is None) == (name != "fc")


def test_dropout_stands_where_bn_ends_a_branch_or_a_shortcut():
    drops = [n for n, m in build("resnet18-dropout").named_modules() if isinstance(m, nn.Dropout2d)]
    ends = [n for n, m in build("resnet18").named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert drops == [n for n in ends if not n.endswith("bn1")] and len(drops) == 8 + 3
    assert nn.BatchNorm2d not in kinds("resnet18-dropout")


def test_a_resnet_for_small_images_keeps_them_whole_until_its_second_stage():
    net, sizes = build("resnet18").eval(), {}
    for name in ("conv1", "layer1", "layer2", "layer4"):
        net.get_submodule(name).register_forward_hook(lambda m, x, z, name=name: sizes.update({name: z.shape[-1]}))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == {"conv1": 32, "layer1": 32, "layer2": 16, "layer4": 4}
    assert net.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)  # He's, by fan-out


def test_resnet18_for_large_images_is_torchvisions():
    from torchvision.models import resnet18

    theirs, ours = resnet18(num_classes=100).eval(), build("resnet18-224").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_inception_net_costs_what_resnet18_does():
    work = {name: multiply_adds(name) for name in ("inception", "resnet18")}
    assert work["resnet18"] == 555_468_800
    assert work["inception"] == pytest.approx(work["resnet18"], rel=0.02)


def test_basenet_costs_130_gflop_an_image_for_a_training_step():
    assert 2 * 3 * multiply_adds("basenet") == pytest.approx(130e9, rel=0.01)


def test_each_step_of_the_ablation_is_one_visible_change():
    changes = [set(change) for change in STEPS.values()]
    assert changes[1:8] == [
        {"norm"},
        {"blocks", "pools"},
        {"blocks"},
        {"convs"},
        {"branch"},
        {"branch"},
        {"head_norm"},
    ]
    convs = {name: [m for _, m in layers(build(name)) if isinstance(m, nn.Conv2d)] for name in STEPS}
    assert [len(convs[f"basenet-{step}"]) for step in range(8)] == [1, 1, 5, 6, 11, 11, 11, 11]
    assert len(convs["basenet"]) == 1 + 2 * 16
    norms = {name: sum(isinstance(m, nn.BatchNorm2d) for m in build(name).modules()) for name in STEPS}
    assert norms == {name: 0 if name == "basenet-0" else len(found) for name, found in convs.items()}


def test_pooling_follows_the_second_and_the_fourth_sub_block_and_in_basenet_none():
    def sizes(name):
        net, found = build(name).eval(), []
        for m in net.modules():
            if isinstance(m, SubBlock):
                m.register_forward_hook(lambda m, x, z: found.append(z.shape[-1]))
        with torch.no_grad():
            net(torch.zeros(1, 3, 32, 32))
        return found

    assert sizes("basenet-2") == [32, 32, 16, 16, 8]
    assert sizes("basenet-3") == sizes("basenet-6") == [32, 32, 16, 16, 8, 8]
    assert sizes("basenet") == [32] * 17


@pytest.mark.parametrize(("name", "branch"), [("basenet-4", None), ("basenet-5", 1.0), ("basenet-6", 0.1)])
def test_a_sub_block_adds_its_scaled_branch_to_its_input(name, branch):
    block = [m for m in build(name, 0).eval().modules() if isinstance(m, SubBlock)][2]  # 64 to 128 channels
    x = torch.rand(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    h = block.body(x)
    expected = h if branch is None else branch * h + torch.cat([x, torch.zeros_like(x)], 1)
    torch.testing.assert_close(block(x), expected)


def test_the_head_normalises_after_the_first_or_the_last_linear_layer():
    def tail(name):
        return [type(m).__name__ for m in list(build(name))[-5:]]

    assert tail("basenet-7") == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert tail("basenet") == ["Flatten", "Linear", "ReLU", "Linear", "BatchNorm1d"]
    assert tail("basenet-6")[1:] == ["Flatten", "Linear", "ReLU", "Linear"]


def test_a_narrow_basenet_can_be_built_for_a_chapter():
    net = basenet(blocks=(64, 64), pools=(), norm=True, convs=2, branch=0.1, head_norm="last", classes=7)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_seed_decides_the_weights():
    one, same, other = (build("resnet18", seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'resnet-18'.*resnet18"):
        build("resnet-18")
