# %% [markdown]
# # Train on CUDA
#
# Training one of these nets takes 47,500 steps. This chapter takes one step apart: the loop, the data, the random
# numbers, the number format, the cost, and what survives when the machine stops midway. The code is small enough to
# read in full, and the same lines serve a GPU and a CPU. (To follow the argument only, read the loop and the precision,
# then go on to chapter 04.)
#
# **You will see** the loop on one screen, one image in four random crops, a gradient that a 16-bit format cannot hold,
# where the time of a step goes on your machine, a convolution with a quarter of its products, and a run that is cut off
# and still ends as if nothing had happened.
# **You will learn** how to train any run of the reports by its name, and what a GPU changes.
# **You need** chapter 02 and half a minute on two CPU cores. No GPU or dataset is needed.
#
# A cell marked *live* computes on your machine, on the GPU if there is one, and its numbers may differ from those
# printed here. GPU times are replayed from a measurement.

# %%
import contextlib
import inspect
import itertools
import json
import os
import tempfile
import textwrap
import time
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vggres import build, data, figures, records, training, winograd
from vggres.engine import Engine, pick_device
from vggres.gradients import gradient_flow
from vggres.models import layers, multiply_adds
from vggres.runs import find

# %% [markdown]
# ## Read the loop
#
# This is all that repeats when `training.train` trains a run. Above it, the net is built and the data is put on the
# device; below it, the record is written.

# %%
source_code = inspect.getsource(training.steps)
loop = source_code[source_code.index("        with progress(") : source_code.index("        record = measure(")]
print(textwrap.dedent(loop))

# %% [markdown]
# Read it from the inside out. `engine.step` trains on one batch. An epoch is a `plan`, all its random `choices`, cut
# into batches; `draw_from` seeds dropout, in the few nets that have it. Each epoch ends with one line of history, one
# line of gradients (those of its last batch), and a checkpoint. The two `return None` enforce the deadline of
# `--minutes`. The two `yield` give other runs their turn where several are trained together. `engine.turn` queues work
# on this run's own GPU stream, and `engine.ready` asks whether the epoch's work is done. What is *not* there: a data
# loader, worker processes, and any reading back of a loss within an epoch.
#
# ## Keep the images on the device
#
# CIFAR-100 is small. As bytes its training set fits into any GPU's memory. As float32 it would be four times as large,
# for the same 256 values.

# %%
for kind, size in (("uint8", 1), ("float32", 4)):
    print(f"{kind}: {47_500 * 32 * 32 * 3 * size / 1e6:.0f} MB")

# %% [markdown]
# Each image of a batch gets an edge of four zeros. A random crop is then a choice of 32 rows and 32 columns out of 40,
# and a flip reverses the columns. So the augmentation of a whole batch is *one* gather, `padded[image, rows, cols]`,
# wherever the bytes lie. *Live*, a plan that asks for the same image four times:

# %%
source = data.load("cifar100").subset(5000) if data.available() else data.load("synthetic")
device = pick_device("auto")
train_set = data.Images(*source.train, device)

plan = data.plan_epoch(4, seed=3, epoch=0)._replace(index=torch.full((4,), 6)).to(device)
x, y = train_set.batch(plan)
assert x.shape == (4, 3, 32, 32) and x.dtype == torch.float32 and y.shape == (4,)
assert x.is_contiguous(memory_format=torch.channels_last)

# %% tags=["nbval-ignore-output"]
fig, panels = plt.subplots(1, 6, figsize=(10, 2.1), width_ratios=(32, 40, 32, 32, 32, 32))
crops = (x.permute(0, 2, 3, 1).cpu() * torch.tensor(data.STD) + torch.tensor(data.MEAN)).clip(0, 1)
padded = np.pad(source.train[0][6], ((4, 4), (4, 4), (0, 0)))
shown = [source.train[0][6], padded, *crops]
for axes, picture, title in zip(panels, shown, ("the image", "padded", *"ABCD"), strict=True):
    axes.imshow(picture)
    axes.set(title=title, xticks=[], yticks=[])
for i in range(4):
    (down, right), flip = plan.shift[i].tolist(), bool(plan.flip[i])
    look = dict(color=figures.PALETTE[(0, 1, 2, 4)[i]], lw=2)
    panels[1].add_patch(plt.Rectangle((right - 0.5, down - 0.5), 32, 32, fill=False, **look))
    _ = panels[2 + i].spines[:].set(visible=True, **look)
    panels[2 + i].set_xlabel(f"down {down}, right {right}" + ", flipped" * flip, fontsize=8)
plt.show()

# %% [markdown]
# **Figure 1.** One image, its padded copy, and four crops A to D, each framed in the colour of its window. The black
# margin enters where a window reaches over the edge. A is also flipped. The same call applies means and deviations, so
# the net receives float32 with a mean near 0.
#
# ## Draw all randomness from (seed, epoch)
#
# Which images come in which order, and how each is shifted and flipped, is all drawn before the epoch begins, by a
# generator seeded with two numbers: the run's seed and the epoch's. Nothing else enters, neither what ran before nor
# the device. Ask twice and you get the same; ask for the next epoch and you do not.


# %%
def same(a, b):
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in ("index", "shift", "flip"))


tenth = data.plan_epoch(5000, seed=0, epoch=10)
assert same(tenth, data.plan_epoch(5000, seed=0, epoch=10))
assert not same(tenth, data.plan_epoch(5000, seed=0, epoch=11))
assert not same(tenth, data.plan_epoch(5000, seed=1, epoch=10))

# %% [markdown]
# This keeps a checkpoint simple: it stores the epoch number and no generator state. It also gives a CPU and a GPU the
# same batches. Their results still differ: at first in the last digits, because they add in another order (in more,
# where one computes in bfloat16). After a hundred epochs even two CPUs were more than a point apart (chapter 07).
#
# ## Choose the precision
#
# Half the bits cost half the memory traffic, and many processors multiply 16-bit numbers faster. There are two such
# formats, and for this project they are not equal:

# %%
formats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
info = {name: torch.finfo(dtype) for name, dtype in formats.items()}
pd.DataFrame(
    {
        "smallest normal number": [f"{f.smallest_normal:.0e}" for f in info.values()],
        "smallest above zero": [f"{f.smallest_normal * f.eps:.0e}" for f in info.values()],
        "relative spacing": [f"{f.eps:.0e}" for f in info.values()],
    },
    index=info,
)

# %% [markdown]
# bfloat16 keeps the exponent of float32 and gives up digits; float16 keeps more digits and gives up range. Chapter 01
# is about numbers of the size $10^{-18}$. In float16 they do not exist.
#
# *Live.* Backpropagate through a fresh VGG38 as usual, but round the gradient to one of the formats wherever 16-bit
# training would: at the output of each layer, and at its weight. The last row first multiplies the loss by $2^{16}$,
# the usual remedy for float16 (Micikevicius et al., 2018), and divides it out at the end.


# %%
def rounded_flow(dtype, scale=1.0):
    """Mean |dE/dW| by layer of VGG38, where every dE/dz and dE/dW is rounded to `dtype`."""
    net = build("vgg38", seed=0).train()

    def cast(g):
        return (g * scale).to(dtype).float() / scale

    def watch(module, inputs, z):
        z.register_hook(cast)

    for _, layer in layers(net):
        layer.register_forward_hook(watch)
        layer.weight.register_hook(cast)
    F.cross_entropy(net(x), y).backward()
    return pd.Series(gradient_flow(net))


x, y = data.Images(*source.train).batch(next(data.plan_epoch(len(train_set), seed=0, epoch=0).batches(100)))
rounded = {name: rounded_flow(dtype) for name, dtype in formats.items()}
rounded["float16, loss x 65,536"] = rounded_flow(torch.float16, scale=2.0**16)

# %% tags=["nbval-ignore-output"]
zeros = pd.Series({name: int((flow == 0).sum()) for name, flow in rounded.items()})
first = pd.Series({name: f"{flow.iloc[0]:.0e}" for name, flow in rounded.items()})
pd.DataFrame({"layers of 38 whose gradient is 0": zeros, "gradient of the first layer": first})

# %%
assert zeros["float32"] == zeros["bfloat16"] == 0
assert zeros["float16"] > 30 and zeros["float16, loss x 65,536"] > 20
assert (rounded["bfloat16"] / rounded["float32"]).between(0.9, 1.1).all()

# %% [markdown]
# bfloat16 keeps the *size* of every gradient. Its *direction* it keeps less well: if the forward pass is rounded, too,
# as in training, that of VGG38 BN + RC's first layer has a cosine of about 0.8 with float32's (20 images, before the
# first step; not shown). Does that cost accuracy? Of four of our runs there are seeds in both formats. In three float32
# is ahead by 0.2 to 1.3 points on the mean, in the fourth bfloat16 by half a point: no more than seeds differ by
# themselves. float16 turns nearly all gradients into 0. Scaling the loss brings back the third stage and little before
# it. A study of vanishing gradients in float16 would study float16.
#
# So the engine uses bfloat16 where the device computes in it, otherwise float32, and only for the arithmetic inside the
# net (`torch.autocast`). Whatever is *accumulated* stays in float32: weights, their gradients, Adam's averages, BN's
# running statistics. With a relative spacing of 0.8 %, a bfloat16 weight would not notice a step of 0.1 %.

# %%
engine = Engine(build("vgg08", seed=0), lr=1e-3, weight_decay=0.0, device=device)
engine.step(train_set, next(data.plan_epoch(len(train_set), seed=0, epoch=0).to(device).batches(100)), lr=1e-3)
kept = [*engine.net.state_dict().values(), *(p.grad for p in engine.net.parameters())]
kept += [average for state in engine.optimizer.state.values() for average in state.values()]
assert {t.dtype for t in kept if t.is_floating_point()} == {torch.float32}

# %% tags=["nbval-ignore-output"]
print(f"here: {device.type}, {engine.precision}")

# %% [markdown]
# ## Count what a step costs
#
# A convolution multiplies and adds once for each weight and each pixel of its output. The backward pass does the same
# work twice, once for the input's gradient and once for the weights'. At two operations per multiply-add, a training
# step costs $2 \cdot 3$ times the multiply-adds of the forward pass, for each image:


# %%
work = pd.Series({name: multiply_adds(name) for name in ("vgg08", "vgg38-bn-rc")})
columns = {
    "forward, million multiply-adds": (work / 1e6).round(1),
    "training step, GFLOP an image": (6 * work / 1e9).round(2),
    "100 epochs, PFLOP": (6 * work * 47_500 * 100 / 1e15).round(2),
}
pd.DataFrame(columns)

# %% [markdown]
# Torch can count, too. It finds the same forward and a little less than twice as much back, since nobody asks for the
# gradient of the images:

# %%
with FlopCounterMode(display=False) as forward:
    loss = F.cross_entropy(build("vgg38-bn-rc", seed=0).train()(x), y)
with FlopCounterMode(display=False) as backward:
    loss.backward()
assert forward.get_total_flops() == 2 * work["vgg38-bn-rc"] * len(x)
print(f"back / forward: {backward.get_total_flops() / forward.get_total_flops():.2f}")

# %% [markdown]
# VGG38 costs eight and a half times as much as VGG08. That is arithmetic; now measure. *Live*, the four parts of a step
# at batch 100, each timed by itself: the batch (gather, crop, flip, normalise), the forward pass with the loss, the
# backward pass, and Adam.

# %%
PARTS = ("batch", "forward", "backward", "Adam")


def now():
    """Seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# %%
def profile(name, steps=8):
    """Fewest seconds of each part of a step, least disturbed by other programs; the first step warms up."""
    engine, times = Engine(build(name, seed=0).train(), lr=1e-3, weight_decay=0.0, device=device), []
    for plan in itertools.islice(data.plan_epoch(len(train_set), 0, 0).to(device).batches(100), steps):
        marks = [now()]
        x, y = train_set.batch(plan)
        marks.append(now())
        with torch.autocast(device.type, torch.bfloat16, enabled=engine.precision == "bf16"):
            loss = F.cross_entropy(engine.net(x).float(), y)
        marks.append(now())
        loss.backward()
        marks.append(now())
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        times.append(np.diff([*marks, now()]))
    return pd.Series(np.min(times[1:], axis=0), PARTS)


# %% tags=["nbval-ignore-output"]
spent = pd.DataFrame({name: profile(name) for name in work.index}).T
share = 100 * spent.div(spent.sum(axis=1), axis=0)
fig, axes = plt.subplots(figsize=(8, 1.9))
left = np.zeros(len(share))
for part, colour, hatch in zip(PARTS, figures.PALETTE, ("", "//", "", "xx"), strict=False):
    _ = axes.barh(["VGG08", "VGG38 BN + RC"], share[part], left=left, color=colour, hatch=hatch, label=part, ec="white")
    left += share[part].to_numpy()
axes.set(
    xlim=(0, 100), xlabel="share of a training step (%)", title=f"Where a step goes: {device.type}, {engine.precision}"
)
axes.invert_yaxis()
_ = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
if device.type == "cpu":
    assert (share["forward"] + share["backward"] > 50).all()

# %% [markdown]
# **Figure 2.** The share of each part, on the machine that ran this cell. On a CPU the two middle parts fill the bar.
# The net costs nearly everything, its backward pass about twice its forward pass, as counted. Batch and Adam take less
# than a tenth of VGG08's step and are hardly visible in VGG38's: a data loader with worker processes could save a
# twentieth at most. These shares come from one short measurement on one machine, which may have been busy; they
# are no benchmark.
#
# ## Multiply less
#
# Along a line of an image, a convolution with three weights takes, by definition, three products an output, so twelve
# for four outputs. Six suffice. Four outputs $y$ depend on six inputs $d$ and three weights $g$, and Winograd's
# algorithm (Lavin and Gray, 2016) computes
#
# $$y = A^\top \left[ (G g) \odot (B^\top d) \right],$$
#
# where $A$, $B$ and $G$ hold constants. The idea is to multiply two polynomials by their values at six points, here 0,
# $\pm 1$, $\pm 2$ and infinity (where the value is the highest coefficient), instead of by their coefficients.

# %%
B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
B = np.array([*B, [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]).T
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).T
d, g = np.random.default_rng(0).normal(size=6), np.random.default_rng(1).normal(size=3)
assert np.allclose(A.T @ ((G @ g) * (B.T @ d)), np.correlate(d, g, "valid"))

# %% [markdown]
# For an image this is done along rows and columns: a tile of 4x4 outputs takes $6^2 = 36$ products where the definition
# has $4^2 \cdot 3^2 = 144$. $A$, $B$ and $G$ cost additions and products with constants, shared by 32 channels. On a
# CPU that computes in float32 the engine does this, gradients included, in C (`vggres/winograd.c`), if there is a
# compiler. *Live*, the logits of a VGG38 and the gradient of its first layer, by torch's convolutions and by these,
# against torch's in float64. (The net has the initial weights and the slope of chapter 08, since the default net's
# logits do not depend on the image.)


# %%
def outcome(net, batch):
    net.zero_grad()
    logits = net(batch)
    F.cross_entropy(logits, y).backward()
    return logits.detach().double(), net.entry.conv.weight.grad.double()


def errors(ours, exact):
    return [((a - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)]


net = build("vgg38", seed=0, init="delta-orthogonal", slope=0.6).train()
exact, by_torch = outcome(net.double(), x.double()), outcome(net.float(), x)
found = {"torch, float32": errors(by_torch, exact)}
if winograd.use(net):
    found["winograd, float32"] = errors(outcome(net, x), exact)

# %% tags=["nbval-ignore-output"]
pd.DataFrame(found, index=["logits", "gradient of the first layer"]).T.map("{:.0e}".format)

# %%
assert all(np.allclose(row, found["torch, float32"], rtol=2, atol=1e-5) for row in found.values())

# %% [markdown]
# By itself such a convolution is less exact: it errs by $1.4 \cdot 10^{-6}$ of its output instead of $3 \cdot 10^{-7}$
# (`benchmarks/NOTES.md`), since the constants in $A$ and $B$ make its terms larger than their sum. In the net no
# difference shows. (For scale: bfloat16 rounds by up to 0.4 %.)
#
# ## Compare it with the reports' loop
#
# The benchmark (`make bench`) writes the training loop as the reports did, here called the *naive* loop: torchvision
# transforms on PIL images, a `DataLoader` with two workers, float32, channels first, the loss read after each batch. It
# runs both loops by turns in one process and prints their ratio, the median of several rounds. It also measures the
# machine's *ceiling*, its best matrix product and its fastest copy, and how near each loop comes to it. Replayed from
# `benchmarks/`, from two machines that report the same name, of which only one computes in bfloat16 (a third is in the
# README):

# %%
benchmarks, names = records.default_root().parent / "benchmarks", {"vgg08": "VGG08", "vgg38-bn-rc": "VGG38 BN + RC"}
benches = [json.loads((benchmarks / f"cpu-{precision}.json").read_text()) for precision in ("bf16", "fp32")]
assert len({(bench["device"]["name"], bench["rounds"], bench["env"]["torch"]) for bench in benches}) == 1
print(f"{benches[0]['device']['name']}, {benches[0]['rounds']} rounds, torch {benches[0]['env']['torch']}")
measured = [(bench, row) for bench in benches for row in bench["models"]]


def convolution(profile):
    return profile["convolution"] + profile.get("layers of our own", 0)


columns = {
    (bench["precision"], names[row["model"]]): {
        "ratio to the naive loop": f"{row['ways']['vggres']['ratio']:.1f}",
        "naive, of the ceiling": f"{row['ways']['naive']['of_ceiling']:.0%}",
        "this loop, of the ceiling": f"{row['ways']['vggres']['of_ceiling']:.0%}",
        "convolution and what is fused with it, of a step": f"{convolution(row['profile']):.0%}",
        "peak memory": f"{row['peak_memory'] / 1e9:.1f} GB",
    }
    for bench, row in measured
}
pd.DataFrame(columns).T

# %%
for bench, row in measured:
    naive, ours = row["ways"]["naive"], row["ways"]["vggres"]
    assert ours["ratio"] > 2 and naive["of_ceiling"] < ours["of_ceiling"]
    assert 0.5 < ours["of_ceiling"] < 0.75 if bench["precision"] == "bf16" else ours["of_ceiling"] > 1

# %% [markdown]
# The ratios hold within a row: each processor against itself. On both, this loop is about three times as fast as the
# naive one, or more, for different reasons. The first processor multiplies far faster in bfloat16. The naive loop, in
# float32, uses about a quarter of that or less. This loop uses it, and it normalises, adds the shortcut and activates
# in few passes over memory, so that these do not eat up the gain (`vggres/fused_cpu.c`; on the second processor
# `vggres/winograd.c` does the same). The second processor has only float32. There the naive loop with VGG38 already
# reaches half of the ceiling, so a loop at the ceiling would be twice as fast. This one is above it, because the
# ceiling counts the products of the definition, and Winograd's algorithm saves most of them. On both, part of the gain
# comes from having no worker processes and from keeping memory instead of allocating it anew in every step.
# `benchmarks/NOTES.md` tells what was tried and what each change gave.
#
# ## Stop, and go on
#
# A machine may not last a hundred epochs. *Live*, on the CPU: a tiny VGG08, 600 images, three epochs of six steps. A
# record names the commit of the code that made it. These records are deleted with their folder, so zeros stand in for
# the commit.

# %%
_ = os.environ.setdefault("VGGRES_COMMIT", "0" * 40)
tiny = find("vgg08").tiny(limit=600, epochs=3)
synthetic, scratch = data.load("synthetic"), tempfile.TemporaryDirectory()


def train(place, **options):
    folder = Path(scratch.name) / place
    return training.train(tiny, seed=0, data=synthetic, results=folder, device="cpu", say=print, **options)


print(tiny.name)
whole = train("whole")

# %% [markdown]
# That was the run as it should go. Now the power fails in the ninth step, in the middle of the second epoch:

# %%
steps, whole_step = itertools.count(1), Engine.step


class PowerCut(Exception):
    """Nothing in the loop catches this."""


def step_until_the_power_fails(*args):
    if next(steps) == 9:
        raise PowerCut
    whole_step(*args)


with patch.object(Engine, "step", step_until_the_power_fails), contextlib.suppress(PowerCut):
    train("cut")

# %% [markdown]
# What is left is the checkpoint of the first epoch: weights, Adam's averages, history and gradients, preceded by a
# SHA-256 that reveals damage. From the second epoch on, the previous checkpoint is kept too.

# %%
folder = records.folder_of(Path(scratch.name) / "cut", tiny.name, seed=0)
print(sorted(path.name for path in folder.iterdir() if path.suffix != ".lock"))

# %% [markdown]
# The same call continues from there. Give it too little time first: it stops cleanly, returns nothing and loses
# nothing. Then let it finish.

# %%
assert train("cut", minutes=1e-6) is None
cut = train("cut")
print(sorted(path.name for path in folder.iterdir() if path.suffix != ".lock"))

# %% [markdown]
# (It reports the resume twice, once per call; the record counts one, since the call without time trained nothing.) Two
# steps of the second epoch were lost in the cut and trained again. Does it show?


# %%
def series(place, file):
    table = records.load_series(tiny.name, file, Path(scratch.name) / place)
    return table.drop(columns="seconds", errors="ignore")


assert series("cut", "history.csv").equals(series("whole", "history.csv"))
assert series("cut", "gradients.csv").equals(series("whole", "gradients.csv"))
assert cut["result"] == whole["result"]
assert cut["time"]["resumes"] == 1 and whole["time"]["resumes"] == 0

# %% tags=["nbval-ignore-output"]
both = {
    place: series(place, "history.csv").set_index("epoch")[["train_loss", "val_loss"]] for place in ("whole", "cut")
}
pd.concat(both, axis=1)

# %%
scratch.cleanup()

# %% [markdown]
# Every digit of history, gradients and result is the same; only the times and the count of resumes differ. A test is
# stricter: it kills the process with SIGKILL and compares the weights bit for bit.
#
# ## Train any run by its name
#
# A run is one line: net, data, recipe. Its name says what differs from report A's recipe (Adam at 1e-3, batch 100, 100
# epochs, cosine annealing an epoch at a time).

# %%
run = find("vgg38-resnet-wd1e-3")
print(f"{run.name}: {run.model}, {run.optimizer}, lr {run.lr}, weight decay {run.weight_decay}")
print(f"batch {run.batch}, {run.epochs} epochs, {run.schedule}")
print("reported in", ", ".join(run.exhibits))

# %% [markdown]
# On the command line:
#
# ```
# vggres list                                       # every run, reported and measured
# vggres data                                       # fetch CIFAR-100, check every image
# vggres train vgg38-bn-rc-lr1e-2 --seed 3          # one run
# vggres train vgg08 vgg38 --seed 3 --minutes 30    # two; stop after half an hour, status 3
# vggres train vgg38 --seed 3 --seed 4 --together 2 # two seeds at once, to fill a GPU
# vggres train --missing --together 7 --minutes 60  # what has no record, by importance
# vggres verify                                     # re-hash every record
# ```
#
# Repeat a line and it continues where it stopped; a run that has its record is not trained again. The record lands in
# `results/runs/<run>/seed<k>/`. From Python it is `training.train(find(name), seed=0, data=data.load(), results=...)`.
#
# ## Move to a GPU
#
# With `--device cuda`, or where `auto` finds a GPU, the loop above stays the same. The changes are inside the engine:
#
# | | on a CPU | on CUDA |
# | --- | --- | --- |
# | images, as bytes | in memory | on the GPU, sent once, 146 MB |
# | an epoch's plan | drawn by NumPy | the same, sent once an epoch, 1.2 MB |
# | crop, flip, normalise | one gather | the same gather, on the GPU |
# | arithmetic of the net | bf16 if the CPU has it, else fp32 by Winograd | bf16 if the GPU has it, else fp32 |
# | a layer | two passes forward, two back | in bf16 two kernels forward, five back |
# | a step | one operation after the other | one CUDA graph, captured once |
# | loss and hits | summed up, read after the epoch | the same: the CPU never waits for a step |
# | bit-identical resume | yes, tested | in fp32 with deterministic algorithms, tested |
#
# Three rows matter most: loss and hits, a step, a layer. A GPU works through a queue that the CPU fills. To print every
# step's loss, the CPU would have to wait until the queue is empty, and the GPU then until it is filled again, so the
# sums stay on the device until the epoch is over. A step of VGG38 is several hundred small operations, each launched by
# the CPU. A *CUDA graph* records them once, from the crop to Adam's update, and launches them all as one. What it reads
# must then always lie in the same place: each step copies its part of the plan and its learning rate there.
#
# What is left is the traffic between the GPU and its memory. For a layer with batch normalisation, torch's kernels read
# or write a tensor of the layer's size nineteen times, forward and back. Kernels written for these nets
# (`vggres/kernels.py`, in Triton) do so thirteen times. Forward, one convolves and sums up what the normalisation
# needs, and another normalises, adds the shortcut and applies the activation; back, two do the same in reverse and
# three compute the gradients. On a CPU (`vggres/fused_cpu.c`, and in float32 `vggres/winograd.c`) it is ten times:
# back, one pass computes all gradients.
#
# One such net is too small to fill a large GPU; several come nearer. `--together 7` trains seven runs side by side in
# one process, each with its own graph and queue, a step each in turn. Replayed from `benchmarks/`:

# %%
bench = json.loads((benchmarks / "cuda-bf16.json").read_text())
(ways,) = (row["ways"] for row in bench["models"])
print(f"VGG38 BN + RC on one {bench['device']['name']}, {bench['rounds']} rounds, torch {bench['env']['torch']}")
columns = {
    {"vggres": "this loop", "naive": "naive loop"}.get(way, way.replace("vggres", "this loop")): {
        "images a second": f"{found['images_per_s']:,.0f}",
        "seconds for each epoch trained": f"{found['epoch_s'] / (7 if 'together' in way else 1):.2f}",
        "ratio to the naive loop": f"{found['ratio']:.1f}",
        "of the ceiling": f"{found['of_ceiling']:.0%}",
    }
    for way, found in ways.items()
}
pd.DataFrame(columns).T

# %%
assert (
    ways["vggres"]["ratio"] > 10 and ways["vggres, 7 together"]["images_per_s"] > 1.8 * ways["vggres"]["images_per_s"]
)
assert 100 * 7 * 3 * ways["vggres, 7 together"]["epoch_s"] / 7 / 60 < 20

# %% [markdown]
# A naive step of VGG38 BN + RC takes 25 ms: hundreds of launches, and two workers that can hardly prepare 100 PIL
# images any faster; which of the two is the bottleneck was not measured. Captured as one graph of torch's own kernels,
# it takes 4.0 ms; with those written for these nets 2.0 ms; and with seven runs side by side a step is done every 1.1
# ms. At that rate Table 1 (seven rows, a hundred epochs, three seeds) takes 18 minutes, without the validation. It is
# still only a fifth of what the memory could do: in stage 1 the caches hold up a convolution, and the kernels of stages
# 2 and 3 do so little that they are over as soon as they begin. `benchmarks/NOTES.md` has the numbers.
#
# *Live*, on the CPU, where this gains nothing but everything can be checked: two seeds together, and each of them
# alone.

# %%
with tempfile.TemporaryDirectory() as place:
    both = (training.steps(tiny, seed, synthetic, Path(place) / "together", "cpu") for seed in (0, 1))
    together = dict(training.train_together(both))
    alone = [training.train(tiny, seed, synthetic, Path(place) / "alone", "cpu") for seed in (0, 1)]
for seed in (0, 1):
    assert together[seed]["result"] == alone[seed]["result"]
    assert together[seed]["files"]["gradients.csv"] == alone[seed]["files"]["gradients.csv"]

# %% [markdown]
# ## What was shown
#
# - The loop fits on one screen. Data, plan and sums live on the device, and nothing is read back within an epoch.
# - Augmentation is one gather, and all its randomness depends on (seed, epoch) alone.
# - bfloat16 holds the size of the gradients that this project studies; float16 would turn most of VGG38's into zeros.
# - A step of VGG38 costs 0.84 GFLOP an image. On a CPU the time goes into the net, not the data.
# - On a CPU this loop is 2.8 to 3.7 times as fast as the reports', up to 5.3 times on a third processor (README): by
#   cheaper products in bfloat16 or fewer in float32, and by fewer passes over memory. On a GPU it is 12 times as fast,
#   by one launch a step, fewer passes over memory, and images already on the device; with seven runs side by side it is
#   23 times as fast.
# - Runs trained together give the same results and gradients as when trained alone.
# - A run cut off anywhere and resumed ends with the same history, gradients and result.
#
# The next chapter sets the numbers that this loop has measured beside those of report A.
