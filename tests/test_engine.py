"""The step: against a loop written out plainly, captured against eager, and what it keeps."""

import contextlib
import os

import pytest
import torch
from torch.nn import functional as F

from vggres import data, engine, records, training
from vggres.engine import Engine
from vggres.models import build
from vggres.runs import find

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products, if CUDA is used here first
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture(scope="module")
def synthetic():
    return data.synthetic()


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


PLANS = [batch for epoch in range(10) for batch in data.plan_epoch(70, 0, epoch).batches(50)]  # 50 images, then 20
LRS = [1e-3 / (k + 1) for k in range(20)]


def plainly(name, images, optimizer="adam"):
    """Losses and final state of twenty steps of a plain float32 loop: channels first, nothing fused or in place."""
    net, losses = build(name, 0).train(), []
    make, options = {"adam": (torch.optim.Adam, {}), "sgd": (torch.optim.SGD, {"momentum": 0.9})}[optimizer]
    optimizer = make(net.parameters(), weight_decay=1e-3, foreach=False, **options)
    for plan, lr in zip(PLANS, LRS, strict=True):
        x, y = images.batch(plan)
        loss = F.cross_entropy(net(x.contiguous()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        losses.append(loss.item())
    return losses, net.state_dict()


def by_engine(name, images, device=CPU, optimizer="adam"):
    """The same, with the gradients of the last step."""
    fast, losses = Engine(build(name, 0), 1e-3, 1e-3, device, "fp32", optimizer), []
    for plan, lr in zip(PLANS, LRS, strict=True):
        fast.step(images, plan.to(device), lr)
        losses.append(fast.metrics()[0])
    return losses, {k: v.cpu() for k, v in fast.net.state_dict().items()}, [p.grad.cpu() for p in fast.net.parameters()]


def assert_close(name, ours, theirs):
    """Adam's first steps go by the sign of the gradient, so rounding errors grow; batch norm lets them grow faster."""

    def moved(state):
        return torch.cat([(state[k] - p.detach()).flatten() for k, p in build(name, 0).named_parameters()])

    assert ours[0] == pytest.approx(theirs[0], rel=2e-3)
    assert (moved(ours[1]) - moved(theirs[1])).norm() < 0.2 * moved(theirs[1]).norm()


NETS = pytest.mark.parametrize("name", ["vgg08", "vgg38-rc", "vgg16-bn-rc"])


@NETS
def test_twenty_steps_are_those_of_a_plain_loop(synthetic, name):
    images = data.Images(*synthetic.subset(70).train)
    assert_close(name, by_engine(name, images), plainly(name, images))


def test_twenty_steps_of_sgd_are_those_of_a_plain_loop(synthetic):
    images = data.Images(*synthetic.subset(70).train)
    ours, theirs = by_engine("vgg16-bn-rc", images, optimizer="sgd"), plainly("vgg16-bn-rc", images, "sgd")
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert_close("vgg16-bn-rc", ours, theirs)


def test_dropout_is_drawn_from_the_key_alone_and_other_nets_leave_the_generator_alone(synthetic):
    images, plan = data.Images(*synthetic.subset(4).train), data.plan_epoch(4, 0, 0)

    def loss(*key):
        engine = Engine(build("resnet18-dropout", 0), 1e-3, 0, CPU, "fp32")
        engine.draw_from(*key)
        engine.step(images, plan, 1e-3)
        return engine.metrics()[0]

    assert loss(0, 3, 1) == loss(0, 3, 1) != loss(0, 3, 2)
    before = torch.get_rng_state()
    Engine(build("vgg08", 0), 1e-3, 0, CPU).draw_from(0, 3, 1)
    assert torch.equal(torch.get_rng_state(), before)


@needs_cuda
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    "name, optimizer",
    [
        ("resnet18", "sgd"),
        ("resnet18-dropout", "sgd"),
        ("basenet-6", "sgd"),
        ("vgg16-bn-rc", "muon"),
        ("vgg08", "adam-scaled"),
        ("vgg08", "adam-two-rates"),
    ],
)
def test_other_optimizers_and_dropout_are_captured_as_they_are_stepped(synthetic, name, optimizer, monkeypatch):
    cuda = torch.device("cuda")
    images = data.Images(*synthetic.subset(40).train, cuda)

    def losses():
        fast, found = Engine(build(name, 0), 1e-2, 5e-4, cuda, "fp32", optimizer), []
        for epoch in range(8):
            fast.draw_from(0, epoch, 0)
            fast.step(images, data.plan_epoch(40, 0, epoch).to(cuda), 1e-2 / (epoch + 1))
            found.append(fast.metrics()[0])
        return found

    captured = losses()
    monkeypatch.setattr(engine, "WARM_UP", 20)  # never captured
    assert captured == pytest.approx(losses(), rel=1e-4)


@needs_cuda
@NETS
@pytest.mark.usefixtures("deterministic")
def test_twenty_captured_steps_are_those_of_the_eager_step_and_of_a_plain_loop(synthetic, name, monkeypatch):
    cuda, few = torch.device("cuda"), synthetic.subset(70).train
    captured = by_engine(name, data.Images(*few, cuda), cuda)
    assert_close(name, captured, plainly(name, data.Images(*few)))
    monkeypatch.setattr(engine, "WARM_UP", 20)  # never captured
    assert same(captured, by_engine(name, data.Images(*few, cuda), cuda))


def same(a, b):
    """Bit for bit."""
    gradients = all(torch.equal(g, h) for g, h in zip(a[2], b[2], strict=True))
    return a[0] == b[0] and gradients and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


class Graph:
    """Stands in for a CUDA graph: a replay does what was recorded, and writes the gradients into the same tensors."""

    def replay(self):
        self.recorded()
        for mine, p in zip(self.gradients, self.parameters, strict=True):
            mine.copy_(p.grad)


class Stream:
    def wait_stream(self, other): ...

    def query(self):
        return True


def test_what_a_capture_records_is_replayed_on_new_batches(synthetic, monkeypatch):
    """Without a GPU: the same logic, with stand-ins for graph and stream."""
    train, captures = Engine._train, []

    @contextlib.contextmanager
    def capture(graph, stream):
        def record(self, images, plan):
            graph.recorded = lambda: train(self, images, plan)
            graph.parameters = list(self.net.parameters())
            graph.gradients = [torch.full_like(p, torch.nan) for p in graph.parameters]
            for p, gradient in zip(graph.parameters, graph.gradients, strict=True):
                p.grad = gradient

        captures.append(graph)
        with monkeypatch.context() as m:
            m.setattr(Engine, "_train", record)
            yield

    def init(self, *args):
        whole_init(self, *args)
        self._stream = Stream()

    whole_init = Engine.__init__
    images = data.Images(*synthetic.subset(70).train)
    eager = by_engine("vgg08", images)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Engine, "__init__", init)
    assert same(by_engine("vgg08", images), eager)
    assert len(captures) == 2  # one for each size of batch


@needs_cuda
@pytest.mark.usefixtures("commit", "deterministic")
def test_on_cuda_a_resumed_run_and_runs_together_are_the_same_bit_for_bit(tmp_path, synthetic, monkeypatch):
    monkeypatch.setattr(engine, "pick_precision", lambda device: "fp32")
    runs = [find(name).tiny(limit=600, epochs=3) for name in ("vgg08", "vgg38-bn-rc")]

    def trainings(place):
        return [training.steps(run, 0, synthetic, tmp_path / place, "cuda") for run in runs]

    def digests(place):
        folders = [records.folder_of(tmp_path / place, run.name, 0) for run in runs]
        return [records.read(folder)["files"]["gradients.csv"] for folder in folders]

    for alone in trainings("alone"):
        list(training.train_together([alone]))
    for cut in trainings("resumed"):
        done = 0
        while done < 900:  # the middle of the second epoch; a pause without a step counts 0
            done += next(cut)
        cut.close()
    assert len(list(tmp_path.rglob("checkpoint.pt"))) == 2
    list(training.train_together(trainings("resumed"), at_once=1))
    list(training.train_together(trainings("together")))
    assert digests("resumed") == digests("alone") == digests("together")


def test_training_metrics_are_the_mean_over_the_epochs_images(synthetic):
    images = data.Images(*synthetic.subset(70).train)
    fast, total = Engine(build("vgg08", 0), 1e-3, 0, CPU, "fp32"), 0.0
    for batch in data.plan_epoch(70, 0, 0).batches(50):  # 50 images, then 20
        x, y = images.batch(batch)
        total += F.cross_entropy(fast.net(x), y, reduction="sum").item()
        fast.step(images, batch, 1e-3)
    assert fast.metrics()[0] == pytest.approx(total / 70, rel=1e-5)


def test_evaluation_uses_the_running_statistics_and_changes_nothing(synthetic):
    images = data.Images(*synthetic.subset(60).train)
    fast = Engine(build("vgg08", 0), 1e-3, 0, CPU, "fp32")
    fast.step(images, data.plan_epoch(60, 0, 0), 1e-3)
    fast.metrics()
    before = {k: v.clone() for k, v in fast.net.state_dict().items()}
    x, y = next(images.batches(60))
    logits = fast.net.eval()(x)
    expected = F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()
    fast.net.train()
    assert fast.evaluate(images) == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(before[k], v) for k, v in fast.net.state_dict().items())


def test_vgg08_learns_the_synthetic_set(synthetic):
    few = synthetic.subset(1000)
    images, val = data.Images(*few.train), data.Images(*few.val)
    fast = Engine(build("vgg08", 0), 3e-3, 0, CPU)
    for epoch in range(4):
        for batch in data.plan_epoch(1000, 0, epoch, augment=False).batches(25):
            fast.step(images, batch, 3e-3)
        loss, _ = fast.metrics()
    assert loss < 4.3  # chance is ln 100 = 4.6
    assert fast.evaluate(val)[0] < 4.2


def test_bf16_and_fp32_agree(synthetic):
    images = data.Images(*synthetic.subset(60).train)
    losses = {}
    for precision in ("bf16", "fp32"):
        fast = Engine(build("vgg38-bn-rc", 0), 1e-3, 0, CPU, precision)
        losses[precision] = []
        for batch in data.plan_epoch(60, 0, 0).batches(20):
            fast.step(images, batch, 1e-3)
            losses[precision].append(fast.metrics()[0])
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in fast.net.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize(
    ("has", "precision"), [({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")]
)
def test_a_processor_computes_in_bf16_where_it_can(monkeypatch, has, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert engine.pick_precision(CPU) == precision


@pytest.mark.skipif(engine.pick_precision(engine.pick_device()) != "bf16", reason="no bf16 arithmetic here")
def test_bf16_reaches_the_accuracy_of_fp32(synthetic):
    few, device = synthetic.subset(2000), engine.pick_device()
    images, val = data.Images(*few.train, device), data.Images(*few.val, device)
    accuracy = {}
    for precision in ("bf16", "fp32"):
        for seed in range(3):
            fast = Engine(build("vgg08", seed), 3e-3, 0.0, device, precision)
            for epoch in range(6):
                for batch in data.plan_epoch(2000, seed, epoch, augment=False).to(device).batches(25):
                    fast.step(images, batch, 3e-3)
            fast.metrics()
            accuracy.setdefault(precision, []).append(fast.evaluate(val)[1])
    mean = {precision: sum(values) / 3 for precision, values in accuracy.items()}
    assert min(mean.values()) > 0.1  # chance is 0.01
    assert abs(mean["bf16"] - mean["fp32"]) < 0.1
