# %% [markdown]
# # Compare ResNet-18 with and without batch normalisation
#
# Report C, days 7 to 10 of a thirty-day blog, trains ResNet-18 on CIFAR-10 or CIFAR-100 (it names both) with and
# without batch normalisation (BN), and shows two loss curves: with BN the net learns faster, and lower. Chapter 02
# asked what shortcuts buy where BN is there. Now the converse: given shortcuts, what does BN buy?
#
# **You will see** both nets before their first step, their first steps at three learning rates, and their first three
# epochs of CIFAR-10 and CIFAR-100. (The report's full curves are registered, but not measured yet.)
# **You will learn** that with shortcuts and He's weights the gradient arrives without BN, and that with BN the same
# steps along it lead somewhere.
# **You need** chapter 02 and about a minute of two CPU cores; no GPU, no dataset.
#
# Cells marked *live* compute on your machine, on a small procedural set of 100 classes; the rest is replayed from the
# records in `results/`.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

from vggres import RUNS, Run, build, data, figures, records, tables
from vggres.engine import Engine, pick_device
from vggres.gradients import propagation
from vggres.models import count_parameters, layers, multiply_adds
from vggres.runs import versions

# %% [markdown]
# ## Build the nets
#
# The nets are torchvision's. Its `ResNet` takes what stands in BN's place as an argument, so nothing else differs: the
# convolutions have no bias either way, and He's initialisation (by fan-out) is what the report's author used. For
# images of 32x32 the net begins with a 3x3 convolution of stride 1 and no max pooling. The report's text does not say
# what its net does there; the code it links to enlarges the images to 224x224 and keeps torchvision's 7x7 convolution
# of stride 2, at 3.3 times the work. (It trains on CIFAR-10 only, and leaves the net its 1000 outputs, so that its loss
# would begin near $\ln 1000 = 6.9$.)
#
# (The layers counted here include the 1x1 convolutions of shortcuts; ResNet-18's name does not count them.)

# %%
names = ["resnet18", "resnet18-no-bn"]
pd.DataFrame(
    {
        "layers": [len(layers(build(name))) for name in names],
        "parameters": [f"{count_parameters(build(name)):,}" for name in names],
        "multiply-adds (G)": [f"{multiply_adds(name) / 1e9:.2f}" for name in names],
    },
    index=[tables.label(Run(name)) for name in names],
)

# %%
assert count_parameters(build("resnet18")) == 11_220_132

# %% [markdown]
# BN holds less than a thousandth of the parameters. Without it ResNet-18 does the same work.
#
# ## Look before the first step
#
# *Live.* Send 32 images through both nets, and a gradient back. For speed, the images keep every second row and column,
# 16x16 pixels.

# %%
source = data.load("synthetic")
train_set = data.Images(source.train[0][:, 1::2, 1::2].copy(), source.train[1])
x, y = train_set.batch(next(data.plan_epoch(len(train_set), seed=0, epoch=0, augment=False).batches(32)))
PAIR = {"with BN": "resnet18", "without BN": "resnet18-no-bn"}
probe = {text: pd.DataFrame(propagation(build(name, seed=0), x, y)).set_index("layer") for text, name in PAIR.items()}

# %% tags=["nbval-ignore-output"]
share = {text: rows.signal / rows.rms for text, rows in probe.items()}
columns = {(text, "gradient"): rows.gradient for text, rows in probe.items()}
columns |= {(text, "signal / size"): share[text] for text in PAIR}
pd.DataFrame(columns).loc[["conv1", "layer2.0.conv1", "layer4.1.conv2", "fc"]].map("{:.2g}".format)

# %%
assert all(rows.gradient.min() > 1e-3 for rows in probe.values()), "the gradient arrives everywhere, BN or not"
assert share["with BN"]["layer4.1.conv2"] > 0.6 and share["without BN"]["layer4.1.conv2"] < 0.45

# %% [markdown]
# The gradient (dE/dz, root mean square, times the number of images, as in chapter 02) arrives at every layer of both
# nets. Nothing vanishes as it did in VGG38 without either repair. (At the first layer the gradient is an order of
# magnitude larger with BN; a factor of three is that of the first BN, which divides by a deviation of 0.3. The weights'
# gradients, below, differ less.)
#
# The other columns tell the nets apart. They show how much of a layer's output *differs between images*: its signal, as
# in chapter 02, divided by its size. At the last convolution this is 0.75 with BN and a third without; at the head,
# 0.56 and 0.24. So without BN more and more of what the layers pass on is the same for every image. BN
# subtracts a part of that, the mean of each channel; what is common but differs from pixel to pixel stays.
#
# Is it the shortcuts that carry the gradient, or the initialisation, which keeps the size of what passes through a
# layer? Take away either, and both, from the net without BN:


# %% tags=["nbval-ignore-output"]
def smallest(shortcuts, he):
    """The smallest gradient of any layer of ResNet-18 without BN, with or without shortcuts and He's weights."""
    with torch.random.fork_rng(devices=[]):
        _ = torch.manual_seed(0)
        net = build("resnet18-no-bn", seed=0)
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and not he:
                module.reset_parameters()  # torch's default
    for group in (net.layer1, net.layer2, net.layer3, net.layer4):
        for i, block in enumerate(group):
            if not shortcuts:
                group[i] = nn.Sequential(block.conv1, nn.ReLU(), block.conv2, nn.ReLU())
    return pd.DataFrame(propagation(net, x, y)).gradient.min()


WITH = {"with shortcuts": True, "without": False}
left = {
    text: {how: smallest(shortcuts, he) for how, he in (("He's weights", True), ("torch's default", False))}
    for text, shortcuts in WITH.items()
}
pd.DataFrame(left).map("{:.0e}".format)

# %%
assert (
    left["without"]["torch's default"]
    < 1e-8
    < 1e-6
    < min(left["with shortcuts"]["torch's default"], left["without"]["He's weights"])
)

# %% [markdown]
# In a net of 18 layers either keeps the gradient from vanishing: it is some thirty or forty times smaller than with
# both. With neither it is ten million times smaller, a tenth of a billionth.
#
# ## Try three learning rates
#
# *Live.* Train both nets for 20 steps of 25 images with the report's optimiser, SGD with momentum 0.9 and weight decay
# 5e-4, at three rates. The last, 0.05, is the report's (with batches of 128).

# %%
RATES = (1e-3, 1e-2, 5e-2)


class Centre(nn.Module):
    """Subtract what all images of the batch have in common."""

    def forward(self, x):
        return x - x.mean(0)


def centred():
    """The net without BN; the inputs of its last layer are centred."""
    net = build("resnet18-no-bn", seed=0)
    net.fc = nn.Sequential(Centre(), net.fc)
    return net


# %%
def last_loss(make, lr, steps=20, batch=25):
    """Mean training loss (nats) of the last 5 steps."""
    engine = Engine(make(), lr, 5e-4, pick_device("cpu"), optimizer="sgd")
    for i, plan in enumerate(data.plan_epoch(len(train_set), 0, 0, augment=False).batches(batch), start=1):
        engine.step(train_set, plan, lr)
        if i == steps - 5:
            engine.metrics()
        if i == steps:
            return engine.metrics()[0]


loss = {text: {lr: last_loss(partial(build, name, seed=0), lr) for lr in RATES} for text, name in PAIR.items()}
loss["without BN, centred once"] = {RATES[1]: last_loss(centred, RATES[1])}

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(figsize=(6, 3.6))
for (text, values), colour, marker in zip(loss.items(), figures.PALETTE[:3], "osD", strict=True):
    axes.plot(list(values), list(values.values()), color=colour, marker=marker, ms=7, label=text)
axes.axhline(np.log(100), color="0.6", lw=0.8, ls=":", label="guessing, ln 100")
axes.set(
    xscale="log",
    xlabel="learning rate",
    ylabel="training loss (nats)",
    title="At 0.01 BN, or centring, leads away from guessing",
)
_ = axes.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# **Figure 1.** ResNet-18, the mean of steps 16 to 20. Compare each net at its best rate: with BN the loss is far below
# guessing at 0.01 (at the report's 0.05 it is not, in these twenty steps); without BN it is still next to the dotted
# line, at each of the three rates. Shortcuts, images and steps are the same. So what BN gives a net with shortcuts here
# is not that a gradient arrives, but that steps along it lead somewhere. And what stands in the way without BN is what
# all images have in common: subtract from the last layer's inputs, and nowhere else, their mean over the batch (green),
# and the net without BN has 3.9 at 0.01 (the one rate tried), nearly as low as with BN. Report C itself says that BN is
# "mostly about improving optimization".
#
# This is a small set and the first seconds of training.

# %%
with_bn, without, centred_once = (min(values.values()) for values in loss.values())
assert with_bn < without - 0.3, "each at its best rate"
assert without > 4.3, "without BN none of the rates leads away from guessing yet"
assert centred_once < without - 0.3, "what all images share was in the way"

# %% [markdown]
# ## Replay three epochs
#
# Now the real images. The recipe is that of the linked code: SGD as above, rate 0.05, divided by ten after every 30
# epochs, batches of 128, weight decay 5e-4. That code also flips the images and crops them at random at any scale,
# enlarged to 224x224; the crop here is the padded 32x32 one of the other chapters. Each net is measured for three
# epochs on each of the report's two sets, a single run each.

# %%
day7 = [run for run in RUNS.values() if "C/Day 7" in run.exhibits and run.model in PAIR.values()]
panels = {"CIFAR-10": {}, "CIFAR-100": {}}
for run in day7:
    panels[run.dataset.upper().replace("CIFAR", "CIFAR-")][tables.label(run)] = run.name
three = {
    (dataset, text): versions(name)[-1]
    for dataset, runs in panels.items()
    for text, name in zip(PAIR, runs.values(), strict=True)
}
history, flow = (
    {key: records.load_series(name, f"{file}.csv") for key, name in three.items()} for file in ("history", "gradients")
)

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), width_ratios=(1, 1, 1.3))
*losses, gradient = axes
COLOUR = dict(zip(PAIR, figures.PALETTE, strict=False))
for panel, (dataset, classes) in zip(losses, {"CIFAR-10": 10, "CIFAR-100": 100}.items(), strict=True):
    for text, colour in COLOUR.items():
        figures.by_epoch(panel, history[dataset, text], "loss", colour)
    panel.axhline(np.log(classes), color="0.6", lw=0.8, ls=":")
    panel.text(3, np.log(classes), "guessing", color="0.4", ha="right", va="top", fontsize=8)
    panel.set(xlabel="epoch", title=f"{dataset}: loss (nats; dashed: training)", xticks=[1, 2, 3])
for text, colour in COLOUR.items():
    by_layer = flow["CIFAR-100", text].drop(columns="seed").set_index("epoch")
    by_layer = by_layer.loc[:, ~by_layer.columns.str.contains("downsample")]
    depth = range(1, len(by_layer.columns) + 1)
    gradient.plot(depth, by_layer.loc[0], ":", color=colour, lw=2, label=f"{text}: before")
    gradient.plot(depth, by_layer.loc[3], "-", color=colour, lw=2, label=f"{text}: after three epochs")
    losses[0].plot([], [], color=colour, label=text)
gradient.axvspan(1.5, 5.5, color="0.93", lw=0, zorder=0)
gradient.set(
    yscale="log", ylim=(2e-4, 0.5), xlabel="layer, input to output (grey: first stage)", xticks=[1, 5, 9, 13, 18]
)
gradient.set_title("CIFAR-100: mean |dE/dW| of each layer")
losses[0].legend(frameon=False, loc="lower left")
_ = gradient.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
plt.show()

# %%
last = pd.DataFrame({key: epochs.iloc[-1] for key, epochs in history.items()}).T
last = last[["train_loss", "val_loss", "train_acc", "val_acc"]]
last[["train_acc", "val_acc"]] *= 100
last.round(2)

# %% [markdown]
# **Figure 2**, and the table: losses in nats, dashed on the training images and solid on the validation images;
# accuracies in percent. *Left and middle*: on both sets the loss with BN is lower from the first epoch on, in training
# and validation, as in the report's curves. It also falls faster, but for CIFAR-10's validation loss after the first
# epoch. (A training loss is the mean over an epoch's steps, a validation loss is taken at its end, so the dashed lines
# begin above the solid ones.) What the net without BN reaches on the validation images in three epochs, the other has
# passed in two, and on CIFAR-100 in one. The net without BN does learn, and would perhaps learn better at other rates:
# 0.05 is the report's, and none was searched for either net.
#
# *Right*, for CIFAR-100: before the first step (dotted) the gradients of the two nets' weights, by which SGD steps, lie
# within a factor of three of each other, and at all layers but one the larger are those *without* BN. So it was no lack
# of gradient at the start that held that net back. Three epochs later (solid; one mini-batch) the layers of the first
# stage get four to ten times less without BN than with it; this figure does not tell whether that is a cause or a
# consequence. (The shortcuts' 1x1 convolutions are left out.)

# %%
with_bn, without = ({d: history[d, text].val_loss for d in panels} for text in PAIR)
assert all(without[d].gt(with_bn[d]).all() and without[d].iloc[-1] > with_bn[d].iloc[1] for d in panels)
assert all(history[d, "without BN"].train_loss.gt(history[d, "with BN"].train_loss).all() for d in panels)
assert without["CIFAR-100"].iloc[-1] > with_bn["CIFAR-100"].iloc[0], "three epochs without BN, one with it"
start, after = ({t: flow["CIFAR-100", t].drop(columns="seed").set_index("epoch").loc[i] for t in PAIR} for i in (0, 3))
dotted, solid = (by["with BN"] / by["without BN"] for by in (start, after))
dotted, stage = dotted.filter(regex=r"conv\d|fc"), solid["layer1.0.conv1":"layer1.1.conv2"]
assert dotted.between(1 / 3, 3).all() and (dotted > 1).sum() == 1 and stage.between(4, 10).all()

# %% [markdown]
# The report's own curves are longer: its code is set to 300 epochs. Ninety are registered, three levels of the rate
# (after epoch 120 it would be below 1e-5), and with the same recipe the report's other questions, on CIFAR-10:
# ResNet-34 and -50 with and without BN; dropout where BN ends a branch or a shortcut, as in a version of the linked
# code; a net of GoogLeNet's modules, narrowed until it does as much work as ResNet-18 (the report mentions GoogLeNet
# and its successors, and does not say which it would compare); and ResNet-18 without crop and flip. None of them is
# measured yet, and the report prints no accuracy to compare with.
#
# ## What was shown
#
# - With shortcuts and He's initialisation the gradient of ResNet-18 arrives at every layer, with BN and without; at
#   this depth either of the two keeps it from vanishing.
# - Without BN more and more of what a layer passes on is common to all images, far more than with it.
# - On the small set the net with BN learns within 20 steps, at the best of three rates; the net without BN hardly
#   leaves guessing at any of them, unless what all images share is subtracted before its last layer.
# - Report C's claim holds for the first three epochs of both sets, a single run each: with BN the loss is lower
#   throughout, and the net gets 61.1 % of CIFAR-10's validation images right, without it 47.2 %; on CIFAR-100, 33.4 and
#   16.0 %. Whether it holds for ninety epochs is not measured yet.
#
# The next chapter takes a net of the same family apart, one ingredient at a time.
