"""`Run`, a frozen dataclass of what a report did, and `RUNS`, the registry of the reports' experiments.

Reported numbers are not here but in `results/reported.csv`, joined by the run's name.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import product
from typing import Literal, get_args, get_origin

from vggres.errors import UserError


@dataclass(frozen=True)
class Run:
    """One training experiment: a network, the data and the recipe.

    Attributes:
        model, init, slope: passed to `vggres.build`: the network, how its weights are drawn, and its LeakyReLU.
        dataset: "cifar100", "cifar10", "cifar100-30" (30 training images per class), "synthetic", or, for photographs,
            "folder-" and the folder's name.
        epochs, batch: passes over the training set, and images per step.
        lr, lr_end: the step size at the start and, for a cosine, at the end.
        weight_decay: the coefficient of a coupled L2 term.
        optimizer: "adam", "sgd" with momentum 0.9, "muon", "adam-scaled" or "adam-two-rates", see `muon`.
        schedule: which of the two meanings of "cosine annealing", or steps down; see `lr_at`.
        augment: random crop of 32 after zero padding by 4, and horizontal flip.
        limit: use only this many training images (None: all); for short runs in tests and chapters.
        exhibits: where the reports show it, such as "A/Table 1"; no effect on the run.
        normalise: by the constants of the reports' "course" framework, by the training set's "own" mean and standard
            deviation, or "none": pixels from 0 to 1. See `data.scaling`.
        start: the run whose kept weights this one starts from, except the last layer's; or "imagenet" (torchvision's
            weights), or the name of a file. None: from scratch.
        trained: "all" layers, or only the "last".
    """

    model: str
    dataset: str = "cifar100"
    epochs: int = 100
    batch: int = 100
    lr: float = 1e-3
    lr_end: float = 2e-5
    weight_decay: float = 0.0
    optimizer: Literal["adam", "sgd", "muon", "adam-scaled", "adam-two-rates"] = "adam"
    schedule: Literal["cosine-epoch", "cosine-step", "step30"] = "cosine-epoch"
    augment: bool = True
    limit: int | None = None
    init: str = "default"
    slope: float = 0.01
    exhibits: tuple[str, ...] = field(default=(), compare=False)
    normalise: Literal["course", "own", "none"] = "course"
    start: str | None = None
    trained: Literal["all", "last"] = "all"

    def __post_init__(self):
        for name in ("epochs", "batch", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr must be positive and finite, not {self.lr}")
        for name in ("lr_end", "weight_decay"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"{name} must be 0 or more, and finite, not {value}")
        if not 0 <= self.slope <= 1:
            raise UserError(f"slope must be from 0 (ReLU) to 1 (linear), not {self.slope}")
        for f in fields(self):
            if get_origin(f.type) is Literal and (value := getattr(self, f.name)) not in get_args(f.type):
                raise UserError(f"no {f.name} is called {value!r}; there are {', '.join(get_args(f.type))}")
        if self.optimizer in ("muon", "adam-scaled") and self.weight_decay:
            raise UserError(f"weight_decay must be 0 with {self.optimizer}: the gradient's size does not count there")
        if self.trained == "last" and not self.start:
            raise UserError("trained='last' needs a start: the other layers would keep what they were drawn with")

    @property
    def name(self) -> str:
        """The slug: the model, then whatever differs from report A's defaults."""
        parts = [
            self.model,
            self.init != "default" and self.init,
            self.slope != 0.01 and f"slope{self.slope:g}",
            self.dataset != "cifar100" and self.dataset,
            self.start and f"from-{_origin(self.start.removeprefix(f'{self.model}-'))}",
            self.trained != "all" and f"{self.trained}-layer",
            self.optimizer != "adam" and self.optimizer,
            self.lr != 1e-3 and f"lr{_short(self.lr)}",
            self.lr_end != 2e-5 and f"to{_short(self.lr_end)}",
            self.weight_decay and f"wd{_short(self.weight_decay)}",
            self.batch != 100 and f"batch{self.batch}",
            self.schedule != "cosine-epoch" and self.schedule,
            {"course": None, "own": "own-statistics", "none": "unnormalised"}[self.normalise],
            not self.augment and "no-augment",
            self.limit and f"{self.limit}-images",
            self.epochs != 100 and f"{self.epochs}ep",
        ]
        return "-".join(part for part in parts if part)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step (counted from 0 over the whole run).

        `lr(t) = lr_end + (lr - lr_end) (1 + cos(pi t / epochs)) / 2`, where t counts

        - epochs in "cosine-epoch": one half period, a true annealing (Loshchilov and Hutter, 2017);
        - steps in "cosine-step": the rate swings with a period of `2 * epochs` steps for the whole run. This
          is what happens when a scheduler made for epochs is called after every mini-batch.

        In "step30" it drops to a tenth after every 30 epochs (report C), and `lr_end` is ignored.
        """
        if self.schedule == "step30":
            return self.lr * 0.1 ** (step // steps_per_epoch // 30)
        t = step // steps_per_epoch if self.schedule == "cosine-epoch" else step
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * t / self.epochs)) / 2

    def tiny(self, dataset: str = "synthetic", limit: int = 2000, epochs: int = 2, **changes) -> "Run":
        """The same recipe cut down to seconds, for tests and live cells; its name says so."""
        return replace(self, dataset=dataset, limit=limit, epochs=epochs, exhibits=(), **changes)

    def to_dict(self) -> dict:
        """All fields, the name first, as JSON types."""
        return {"name": self.name, **asdict(self), "exhibits": list(self.exhibits)}

    @classmethod
    def from_dict(cls, values: dict) -> "Run":
        """The inverse of `to_dict`; a missing field, as in an older record, takes its default."""
        values = {k: v for k, v in values.items() if k != "name"}
        return cls(**{**values, "exhibits": tuple(values.get("exhibits", ()))})


def _short(x: float) -> str:
    """0.001 -> '1e-3', 0.005 -> '5e-3'."""
    mantissa, exponent = f"{x:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _origin(start: str) -> str:
    """Only the data and the epochs of another run's name: 'cifar10-sgd-lr5e-2-90ep' -> 'cifar10-90ep'."""
    return start.split("-")[0] + re.search(r"(-\d+ep)?$", start)[0]


# Report A's text gives these settings for two rows of its table, and their digits agree: see chapter 07.
TEXT_OF_A = dict(epochs=250, batch=264, weight_decay=1e-6)
DEEPER = dict(epochs=250, batch=264, weight_decay=1e-3)  # report A, "Additional experiments"

_TABLE_1 = [  # report A, Table 1, in its order
    Run("vgg08", exhibits=("A/Table 1", "A/Figure 1", "A/Figure 2", "B/Set 1")),
    Run("vgg38", exhibits=("A/Table 1", "A/Figure 1", "A/Figure 3", "B/Set 1")),
    Run("vgg38-bn", exhibits=("A/Table 1", "A/Figure 6", "B/Set 1")),
    Run("vgg38-rc", exhibits=("A/Table 1",)),
    Run("vgg38-bn-rc", exhibits=("A/Table 1",)),
    Run("vgg38-bn", lr=1e-2, exhibits=("A/Table 1",)),
    Run("vgg38-bn-rc", lr=1e-2, exhibits=("A/Table 1", "A/Figure 4", "A/Figure 5")),
]


def _swing(runs: list[Run], **changes) -> list[Run]:
    """The same under the other meaning of "cosine annealing", by which some were probably trained: see chapter 07."""
    return [replace(run, schedule="cosine-step", **changes) for run in runs]


_SWINGING = _swing(_TABLE_1, exhibits=())
# The two rows that report A trained itself, by its own recipe.
_OWN = [
    Run("vgg38-bn", **TEXT_OF_A, exhibits=("A/text",)),
    Run("vgg38-bn-rc", lr=1e-2, **TEXT_OF_A, exhibits=("A/text",)),
]

# The plain VGG38 with three changes: the weights, the slope, the step. `MENDED` has all of them, `_CHANGED` one or two,
# or He's weights, of the same size but not orthogonal; with none it is Table 1's.
MENDED = Run("vgg38", init="delta-orthogonal", slope=0.6, lr=4e-4)
# The same in a plain VGG68: the slope that gives the theory's cosine of VGG38, 0.65, and a step chosen for its depth.
MENDED_68 = replace(MENDED, model="vgg68", slope=0.69, lr=2e-4)
# Both with orthogonal steps instead of Adam's.
MUON, MUON_68 = (replace(run, optimizer="muon", lr=2e-2) for run in (MENDED, MENDED_68))
# How much of that is due to the two rates, how much to the orthogonal steps?
TWO_RATES = replace(MUON, optimizer="adam-two-rates")
# The slopes at which that cosine is 0.9, for 37 and for 67 layers (Zhang et al., 2022).
_BY_COSINE = [replace(MENDED, slope=0.36), replace(MENDED, model="vgg68", slope=0.49)]
# The same orthogonal steps in nets that are not mended, mended in other ways, or half mended.
_BY_MUON = [Run(model, optimizer="muon", lr=2e-2) for model in ("vgg38", "vgg38-bn-rc", "vgg38-skipinit")]
MUON_PLAIN, MUON_BN_RC, _ = _BY_MUON
_BY_MUON += [replace(MUON, slope=0.01), replace(MUON, init="default")]
# The unchanged net, by Adam on scaled gradients, which its epsilon would otherwise drown.
SCALED = Run("vgg38", optimizer="adam-scaled", lr=1e-4)
_CHANGED = [
    replace(MENDED, init=init, slope=slope, lr=lr)
    for init, slope, lr in product(("default", "he", "delta-orthogonal"), (0.01, 0.6), (1e-3, 4e-4))
    if (init, slope, lr) not in {("default", 0.01, 1e-3), ("delta-orthogonal", 0.6, 4e-4)}
]
_CHANGED += [Run("vgg38", init=init, lr=1e-4) for init in ("default", "he", "delta-orthogonal")]
_FIXES = [MENDED, MUON, Run("vgg38-skipinit")]
_ASKED = [*_CHANGED, TWO_RATES, MENDED_68, MUON_68, *_BY_COSINE, *_BY_MUON, SCALED]

_DEEPER = [
    Run("vgg16-bn-rc", **DEEPER | dict(epochs=300), exhibits=("A/Figure 7",)),
    Run("vgg50-bn-rc", **DEEPER, exhibits=("A/Figure 8",)),
    Run("vgg150-bn-rc", **DEEPER, exhibits=("A/Figure 9",)),
]
_DECAYED = Run("vgg38-resnet", weight_decay=1e-3, exhibits=("B/Set 2",))

# The most important first; the seeds of a group are trained one after the other.
_GROUPS: list[tuple[tuple[int, ...], list[Run]]] = [
    ((0,), _TABLE_1 + _SWINGING),
    ((1, 2), _TABLE_1),
    ((0, 1, 2), _swing(_OWN)),
    ((0, 1, 2), _OWN),
    # Set 1a is named so in the report's source.
    ((0, 10, 30), [Run("vgg38-resnet", exhibits=("B/Set 1", "B/Set 1a")), _DECAYED]),
    ((0, 1, 2), [Run("vgg38-resnet-sigmoid", exhibits=("B/Set 1",))]),
    ((0, 1, 2), [replace(_DECAYED, model=f"vgg{depth}-resnet", exhibits=("B/Set 5",)) for depth in (68, 72, 106)]),
    ((0, 1, 2), [replace(_DECAYED, weight_decay=wd) for wd in (1e-4, 1e-2)]),
    ((1, 2), _SWINGING),
    # Were two rows of that table that do not fit a swinging rate trained at a tenth of the rate that is printed? (The
    # other, VGG38 BN at 1e-2, would be the one at 1e-3 above.)
    ((0,), [*_swing([Run("vgg38-bn-rc", lr=1e-4)]), Run("vgg38-bn-rc", lr=1e-4)]),
    ((0,), _DEEPER),
    ((0,), _swing(_DEEPER, exhibits=())),
    # Report B's training accuracy: with augmentation or without?
    ((0, 1, 2), [Run("vgg08", augment=False), Run("vgg38-resnet", augment=False)]),
    # The learning rate times 5, 30 and 100, at the start and at the end.
    ((0,), [replace(_DECAYED, lr=k * 1e-3, lr_end=k * 2e-5, exhibits=("B/Set 3",)) for k in (5, 30, 100)]),
    ((0,), [replace(_DECAYED, batch=batch, exhibits=("B/Set 4",)) for batch in (64, 256, 512)]),
    # What else can fix it (from no report): see chapter 08.
    ((0, 1, 2), _FIXES),
    ((0,), _ASKED),
]
# Report C, "Let's go deeper in CNN", by the code that it links to, for 90 epochs, three steps of the rate, not 300.
RESNET = dict(optimizer="sgd", lr=5e-2, weight_decay=5e-4, batch=128, schedule="step30", epochs=90)
_PAIR = [Run(model, **RESNET, exhibits=("C/Day 7",)) for model in ("resnet18", "resnet18-no-bn")]
PRETRAINED, _ = _PAIR_10 = [replace(run, dataset="cifar10") for run in _PAIR]
_DAY_10 = replace(PRETRAINED, exhibits=("C/Day 10",))
# Report D, part 2, by its course's code, SGD at a rate that does not fall, and by the project's defaults.
FEW = dict(dataset="cifar100-30", lr=5e-4, batch=32, epochs=30, normalise="own")
BY_SGD = dict(optimizer="sgd", schedule="step30")
_BY_ADAM = [
    Run("resnet18", **FEW, start=PRETRAINED.name, trained="last"),
    Run("resnet18", **FEW, start=PRETRAINED.name),
    Run("resnet18", **FEW),
]
_TRANSFER = [replace(run, **BY_SGD, exhibits=("D/Part 2",) if run.start else ()) for run in _BY_ADAM]
# The same after three epochs of pre-training.
BRIEFLY = replace(PRETRAINED, epochs=3, exhibits=())
_AFTER_IT = [replace(run, start=BRIEFLY.name) for run in _BY_ADAM if run.start]
# Report D, part 1: steps 0 to 7 change the net (see `resnets.STEPS`), 8 and 9 the data. It names no recipe. Optimiser
# and rate are those of its course's code (chapter 10): the usual Adam at 1e-3 kills the head of step 1 in ten steps.
STEPWISE = dict(optimizer="sgd", lr=5e-3)
AS_THEY_ARE = dict(**STEPWISE, normalise="none", augment=False)  # the images
_STEPS = [Run(f"basenet-{i}", **AS_THEY_ARE, epochs=30, exhibits=(f"D/Ablation {i or 1}",)) for i in range(8)]
_STEPS += [replace(_STEPS[6], normalise="own", exhibits=("D/Ablation 8",))]
_STEPS += [replace(_STEPS[8], augment=True, exhibits=("D/Ablation 9",))]
# Where the report probably began: the code of its course, a net and a recipe (a rate that does not fall in 15 epochs).
HANDED_OUT = dict(**AS_THEY_ARE, batch=32, schedule="step30", epochs=15)
_BASENET = Run("basenet", **STEPWISE, normalise="own", exhibits=("D/Ablation 10", "D/Result"))
_GROUPS += [
    ((0, 1, 2), _PAIR_10 + _PAIR),
    ((0, 1, 2), _TRANSFER),
    ((0, 1, 2), _STEPS),
    ((0,), [_BASENET]),
    ((0, 1, 2), [Run(f"basenet-start{norm}", **HANDED_OUT) for norm in ("", "-bn")]),
    # Other readings of report D: step 10 in the net of step 9; steps 9 and 4 in nets as deep as BaseNet; the other
    # optimiser, the usual schedule; and the course's code before the report changed it.
    ((0,), [replace(_BASENET, model="basenet-6", exhibits=())]),
    ((0, 1, 2), _BY_ADAM),
    (
        (0,),
        [
            replace(_BY_ADAM[-1], optimizer="sgd"),
            replace(_TRANSFER[0], lr=1e-4, batch=8, epochs=10, normalise="none", augment=False),
            replace(_BASENET, epochs=30, exhibits=()),
            Run("basenet-no-skip", **AS_THEY_ARE, epochs=30),
            *(replace(run, optimizer="adam", lr=1e-3, exhibits=()) for run in (_STEPS[0], _STEPS[1], _BASENET)),
        ],
    ),
    # Report C's other questions: depth, dropout, Inception, augmentation.
    ((0,), [replace(_DAY_10, model=f"resnet{variant}") for variant in ("34", "34-no-bn", "50", "50-no-bn")]),
    ((0,), [replace(PRETRAINED, model="resnet18-dropout")]),
    ((0,), [replace(_DAY_10, model="inception", exhibits=("C/Day 8-9",)), replace(_DAY_10, augment=False)]),
    # For machines without a GPU: 5 or 15 epochs of the story's nets, 3 of report C's pairs; the first net of the
    # second pair is the pre-training.
    ((0,), [replace(run, epochs=5, exhibits=()) for run in _TABLE_1 if run.name != "vgg38-bn-lr1e-2"]),
    ((0,), [replace(run, epochs=5) for run in (*_FIXES, TWO_RATES, MENDED_68, _BY_COSINE[1], MUON_68)]),
    ((0,), [replace(run, epochs=5) for run in (*_BY_MUON, SCALED, *_CHANGED)]),
    ((0,), [replace(run, epochs=15) for run in (MUON, MUON_BN_RC, MUON_PLAIN, SCALED)]),
    ((0,), [replace(run, epochs=3, exhibits=()) for run in _PAIR + _PAIR_10] + _AFTER_IT),
]
RUNS: dict[str, Run] = {run.name: run for _, group in _GROUPS for run in group}
QUEUE: list[tuple[Run, int]] = [(run, seed) for seeds, group in _GROUPS for seed in seeds for run in group]
TABLE_1 = [run.name for run in _TABLE_1]
FIXES = [run.name for run in _FIXES + _ASKED]
# Runs whose best weights (of seed 0) are kept beside the records.
WEIGHTS = {"vgg08", "vgg38", "vgg38-bn", "vgg38-rc", "vgg38-bn-rc-lr1e-2", PRETRAINED.name, BRIEFLY.name}
WEIGHTS |= {"vgg38-resnet-wd1e-3", "vgg68-resnet-wd1e-3"}


def find(name: str) -> Run:
    """The registered run of that name.

    Raises:
        UserError: no such run; the message names the nearest ones.
    """
    if name not in RUNS:
        longer = [other for other in RUNS if other.startswith(name)]
        near = longer[:4] or get_close_matches(name, RUNS, n=4, cutoff=0.3)
        told = f"the nearest: {', '.join(near)}" if near else "`vggres list` names them all"
        raise UserError(f"no run is called {name!r}; {told}")
    return RUNS[name]


def versions(name: str) -> list[str]:
    """The run of that name, and those that differ from it only in having fewer epochs, the longest first."""
    run = find(name)
    same = [other for other in RUNS.values() if replace(other, epochs=run.epochs) == run and other.epochs <= run.epochs]
    return [other.name for other in sorted(same, key=lambda other: -other.epochs)]
