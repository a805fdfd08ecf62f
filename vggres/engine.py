"""One training step, and evaluation, as fast as the device allows.

CPU: channels-last memory and bf16 arithmetic where the processor has it. CUDA: the same, with the data on the
device. Weights, optimiser state and batch-norm statistics stay in float32; nothing is read back from the
device between two calls of `metrics`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggres.data import Images, Plan
from vggres.errors import UserError


class DeviceError(UserError):
    """The device asked for is unknown or absent."""


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is CUDA where there is a GPU, else the CPU.

    Raises:
        DeviceError: unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"no device is called {name!r}; use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"{name!r} was asked for, but this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def pick_precision(device: torch.device) -> str:
    """ "bf16" where the device computes in it natively, else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    can = torch.cpu.get_capabilities()
    return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "fp32"


class Engine:
    """A network with its optimiser on a device.

    Args:
        net: moved to the device in place.
        lr, weight_decay: Adam's (Kingma and Ba, 2015), with coupled L2 decay as in `torch.optim.Adam`.
        device, precision: see `pick_device` and `pick_precision`.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        weight_decay: float,
        device: torch.device,
        precision: str | None = None,
    ):
        self.device, self.precision = device, precision or pick_precision(device)
        self.net = net.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self._seen = 0

    def _forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of a batch, in nats; its sum and the hits are added to the metrics."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.net(x)
        loss = F.cross_entropy(logits.float(), y)
        self._loss += loss.detach() * len(y)
        self._correct += (logits.detach().argmax(1) == y).sum()
        self._seen += len(y)
        return loss

    def step(self, images: Images, plan: Plan, lr: float) -> None:
        """Train on one batch; the gradients stay in `.grad` until the next step."""
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        self._forward(*images.batch(plan)).backward()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def metrics(self) -> tuple[float, float]:
        """Mean loss (nats) and accuracy (fraction) over what was seen since the last call."""
        result = self._loss.item() / self._seen, self._correct.item() / self._seen
        self._reset()
        return result

    @torch.no_grad()
    def evaluate(self, images: Images) -> tuple[float, float]:
        """Mean loss (nats) and accuracy (fraction) over all images, in evaluation mode."""
        self.net.eval()
        for x, y in images.batches():
            self._forward(x, y)
        return self.metrics()
