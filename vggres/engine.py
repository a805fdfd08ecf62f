"""One training step, and evaluation, as fast as the device allows.

CPU: channels-last memory; bf16 arithmetic where the processor has it, otherwise float32 with our own convolutions
(`winograd`); freed memory is kept for the next step. CUDA: the data stay on the device, and the whole step, from the
crop to the optimiser, is captured as one CUDA graph. Our own layers pass over memory less often (`fused`).
Weights, optimiser state and batch-norm statistics stay in float32; nothing is read back from the device between two
calls of `metrics`.
"""

import contextlib
import ctypes
import sys
import weakref

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggres import fused, winograd
from vggres.data import Images, Plan
from vggres.errors import UserError
from vggres.muon import Muon, ScaledAdam, TwoRates

WARM_UP = 3  # eager steps before a capture: they choose cuDNN's algorithms and allocate what lasts


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is CUDA where there is a GPU, else the CPU.

    Raises:
        UserError: unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"no device is called {name!r}; use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and not 0 <= (device.index or 0) < (n := torch.cuda.device_count()):
        raise UserError(f"{name!r} was asked for, but this machine has {n} CUDA devices; use --device cpu")
    return device


def pick_precision(device: torch.device) -> str:
    """ "bf16" where the device computes in it natively, else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    can = torch.cpu.get_capabilities()
    return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "fp32"


class Engine:
    """A network with its optimiser on a device.

    On CUDA it works on its own stream, so that several engines can share the device; `metrics` and `evaluate` wait
    for it.

    Args:
        net: moved to the device in place; its LeakyReLUs then overwrite their input. Its blocks (and on a CPU its
            entry) become those of `fused`, but on CUDA in float32; on a CPU in float32, its convolutions of 32 channels
            become those of `winograd`.
        lr, weight_decay: the step size and a coupled L2 decay.
        device, precision: see `pick_device` and `pick_precision`.
        optimizer: "adam" (Kingma and Ba, 2015) as in `torch.optim`, "sgd", with momentum 0.9, or one of
            `muon`: "muon", "adam-scaled", "adam-two-rates".

    It changes settings of the whole process: on CUDA, cuDNN chooses algorithms by trial and TF32 is off; on a CPU,
    the C library keeps freed memory.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        weight_decay: float,
        device: torch.device,
        precision: str | None = None,
        optimizer: str = "adam",
    ):
        on_gpu = device.type == "cuda"
        self.device, self.precision = device, precision or pick_precision(device)
        self.net = net.to(device, memory_format=torch.channels_last)
        for module in net.modules():
            if isinstance(module, nn.LeakyReLU):
                module.inplace = True  # a third less to keep for the backward pass
        ours = {
            ("cpu", "fp32"): fused.InFloat32,
            ("cpu", "bf16"): fused.OnCPU,
            ("cuda", "bf16"): fused.OnCUDA,
        }.get((device.type, self.precision))
        if on_gpu and torch.are_deterministic_algorithms_enabled():
            ours = None  # its sums are added up in no fixed order
        self.convolution = (ours and fused.use(self.net, ours)) or "torch"
        if ours is fused.InFloat32:  # in evaluation, or in blocks of another kind
            self.convolution = winograd.use(self.net) or "torch"
        # With `fused`, all read the rate from a tensor on the device; SGD does so only then, and needs no `capturable`.
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "muon": Muon}
        kinds |= {"adam-scaled": ScaledAdam, "adam-two-rates": TwoRates}
        options = {"momentum": 0.9} if optimizer == "sgd" else {"capturable": on_gpu}
        options |= {"weight_decay": weight_decay, "fused": True}
        self.optimizer = kinds[optimizer](net.parameters(), torch.tensor(lr, device=device), **options)
        self._draws = any(isinstance(module, nn.Dropout2d) for module in net.modules())
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._seen = 0
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._captured: dict[tuple[Images, int], _Captured] = {}  # by images and batch size
        self._last: _Captured | None = None  # whose gradients the parameters hold
        if on_gpu:
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32
            weakref.finalize(self, self._stream.synchronize)  # its memory is freed when its work is done
        else:
            keep_freed_memory()

    @contextlib.contextmanager
    def turn(self):
        """Inside, device work runs on the engine's own stream, after everything the caller has queued before."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):  # without a stream this does nothing
            yield

    def _forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of a batch, in nats; its sum and the hits are added to the metrics."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.net(x)
        loss = F.cross_entropy(logits.float(), y)
        self._loss += loss.detach() * len(y)
        self._correct += (logits.detach().argmax(1) == y).sum()
        return loss

    def _train(self, images: Images, plan: Plan) -> None:
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        self._forward(*images.batch(plan)).backward()
        self.optimizer.step()

    def step(self, images: Images, plan: Plan, lr: float) -> None:
        """Train on one batch, by a plan on the engine's device; the gradients stay in `.grad` until the next step."""
        size = len(plan.index)
        with self.turn():
            self.optimizer.param_groups[0]["lr"].fill_(lr)
            if self._stream is None:
                self._train(images, plan)
            else:
                self._captured.setdefault((images, size), _Captured())(self, images, plan)
        self._seen += size

    def draw_from(self, *key: int) -> None:
        """Seed torch's generators for the next step, if the net draws random numbers in it (dropout).

        A captured step, too, reads its seed when it is replayed. The generators belong to the process: two nets with
        dropout that are trained side by side on one GPU may get each other's draws; alone they do not.
        """
        if self._draws:
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def ready(self) -> bool:
        """Whether `metrics` would return at once: the device has finished all steps given to it."""
        return self._stream is None or self._stream.query()

    def metrics(self) -> tuple[float, float]:
        """Mean loss (nats) and accuracy (fraction) over what was seen since the last call."""
        with self.turn():
            result = self._loss.item() / self._seen, self._correct.item() / self._seen
            self._loss.zero_()
            self._correct.zero_()
        self._seen = 0
        return result

    @torch.no_grad()
    def evaluate(self, images: Images) -> tuple[float, float]:
        """Mean loss (nats) and accuracy (fraction) over all images, in evaluation mode.

        Call `metrics` first: training steps since its last call would be counted too.
        """
        with self.turn():
            self.net.eval()
            size = 100 if self._stream is None else max(1, 2_560_000 // images.images[0, ..., 0].numel())
            for x, y in images.batches(size):
                self._forward(x, y)
        self._seen += len(images)
        return self.metrics()


class _Captured:
    """A training step as a CUDA graph: one launch for several hundred kernels, on inputs that stay in place."""

    def __init__(self):
        self.calls = 0

    def __call__(self, engine: Engine, images: Images, plan: Plan) -> None:
        self.calls += 1
        for choice in plan:
            choice.record_stream(engine._stream)  # its memory is not reused before this stream has read it
        if self.calls <= WARM_UP:
            engine._train(images, plan)
            engine._last = self
            return
        if self.calls == WARM_UP + 1:
            self.plan, self.graph = Plan(*(choice.clone() for choice in plan)), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=engine._stream):
                engine._train(images, self.plan)
            self.grads = [p.grad for p in engine.net.parameters()]
        for mine, choice in zip(self.plan, plan, strict=True):
            mine.copy_(choice)
        self.graph.replay()
        if engine._last is not self:
            for p, grad in zip(engine.net.parameters(), self.grads, strict=True):
                p.grad = grad  # a step of another batch size has its own
            engine._last = self


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system: otherwise each activation of 13 MB costs
    3,200 page faults in every step. Blocks above 32 MB are still returned, and with another C library this does
    nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: its largest value
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
