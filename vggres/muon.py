"""Optimisers for deep nets: `Muon`, whose steps are (nearly) orthogonal matrices times the rate; `ScaledAdam`, whose
steps are as long for the smallest gradient; `TwoRates`, to compare with Muon."""

import torch
from torch import Tensor

from vggres.errors import UserError

MOMENTUM = 0.95
TOGETHER = 3.6  # times the rate: how far a step moves all convolutions together, each in the spectral norm
SCALE = 2.0**56
SHARE = 0.18  # times the rate: what Adam's rates for all these convolutions add up to


def ends_and_middle(params) -> tuple[list[Tensor], list[Tensor]]:
    """The middle: all convolutions but the first, whose changes multiply. The ends: all else, biases and norms too.

    Args:
        params: in the order of the layers.

    Raises:
        UserError: there is no middle to train.
    """
    params = list(params)
    middle = [p for p in params if p.ndim == 4 and p.requires_grad][1:]
    if not middle:
        raise UserError("muon and adam-two-rates are for nets of which more than one convolution is trained; take adam")
    return [p for p in params if not any(p is q for q in middle)], middle


class ScaledAdam(torch.optim.Adam):
    """Adam on gradients times 2**56: in effect its epsilon is 1e-25 instead of 1e-8. (Such an epsilon alone would not
    do: Adam keeps a thousandth of the gradient's square; for 1e-18 that is 1e-39, below what float32 holds in full.)"""

    def step(self, closure=None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, SCALE)
        super().step()
        torch._foreach_mul_(gradients, 1 / SCALE)  # as they were: a power of two


class TwoRates(torch.optim.Adam):
    """Adam, at 0.18 / L of the rate for the L convolutions after the first: what is left of `Muon` without its
    orthogonal matrices. The 0.18 is our choice: it gives 1e-4 where the rate is 2e-2 and L is VGG38's 36.

    Args: as `Muon`'s, but the options concern all parameters, and so does a weight decay.
    """

    def __init__(self, params, lr: Tensor | float, **options):
        ends, middle = ends_and_middle(params)
        super().__init__([{"params": ends}, {"params": middle}], lr, **options)

    def step(self, closure=None) -> None:
        ends, middle = self.param_groups
        middle["lr"] = ends["lr"] * SHARE / len(middle["params"])
        super().step()


class Muon(torch.optim.Adam):
    """Muon (Jordan et al., 2024) for all convolutions but the first; Adam for that, the last layer, biases and norms.

    The gradient of a convolution, as one matrix (out, in * height * width), is accumulated with a Nesterov momentum of
    0.95; the step is the orthogonal matrix nearest to that, times 3.6 / L of the rate, so it has the same gain in all
    directions of that matrix. The L convolutions share the 3.6, since their changes multiply
    (Bernstein et al., 2020); it is our choice: a tenth of the rate for each of VGG38's 36.

    Args:
        params: in the order of the layers.
        lr: that of the ends; a one-element tensor, read at each step, or a float.
        options: those of `torch.optim.Adam`; they do not concern the convolutions, which have no weight decay, either.
    """

    def __init__(self, params, lr: Tensor | float, **options):
        ends, self.matrices = ends_and_middle(params)
        super().__init__(ends, lr, **options)
        self.add_param_group({"params": self.matrices})
        for p in self.matrices:  # a step too, since Adam expects one when a state is loaded
            self.state[p] = {"step": torch.zeros((), device=p.device), "momentum": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure=None) -> None:
        ends, middle = self.param_groups
        self.param_groups = [ends]
        try:
            super().step()
        finally:
            self.param_groups = [ends, middle]
        share = TOGETHER / len(self.matrices)
        for shape in dict.fromkeys(p.shape for p in self.matrices):  # those of one shape together
            same = [p for p in self.matrices if p.shape == shape]
            momenta = [self.state[p]["momentum"] for p in same]
            torch._foreach_mul_(momenta, MOMENTUM)
            torch._foreach_add_(momenta, [p.grad for p in same])
            ahead = torch.stack([p.grad + MOMENTUM * m for p, m in zip(same, momenta, strict=True)]).flatten(2)
            for p, step in zip(same, -share * ends["lr"] * orthogonal(ahead), strict=True):
                p += step.view(shape)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrix to each: singular values of 0.7 to 1.2, by a quintic Newton-Schulz iteration
    whose coefficients are chosen for speed, not for convergence (Jordan et al., 2024). Those below a few thousandths of
    the matrix's norm stay smaller, since five steps enlarge them by at most 3.4445**5 = 485: a matrix nearly of rank
    one keeps only one. How small the whole matrix is does not matter; in their version, one far below 1e-7 stays small.

    Shapes: (n, a, b) -> (n, a, b)
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)  # or small squares would be 0
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1)  # below 1 only where all are 0, and stay so
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
