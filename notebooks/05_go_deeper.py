# %% [markdown]
# # Go deeper
#
# Batch normalisation (BN) and residual connections (RC) make 38 layers train (chapter 02). The reports go on: to 68, 72
# and "106" layers (report B), and to 50 and 150 (report A). What does depth do to a repaired net's gradient, and what
# does it buy?
#
# **You will see** BN alone unbalance the gradient, by too much of it instead of too little; nets with shortcuts and up
# to 132 layers that stay healthy; and one of 150 that does not quite.
# **You will learn** why BN alone costs a *factor* a layer and a shortcut only a *power* of the depth, and how much of
# the reports' gain by depth could be luck.
# **You need** chapter 02 and a minute of two CPU cores. No GPU and no dataset are needed. The accuracies are the
# reports': no net deeper than 38 layers has been trained here in full yet. We measure the nets at the start, *live*, on
# CIFAR-100 if it is on this machine, else, as for the numbers printed here, on the procedural set.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats

from vggres import RUNS, build, data, figures, records, tables
from vggres.gradients import flow_on
from vggres.models import MODELS, VGG, Block, count_parameters, layers, multiply_adds

# %% [markdown]
# ## Seven nets
#
# Report B stacks more of chapter 02's blocks: two convolutions each, a shortcut in every block, an average-pooled
# identity where the image is halved. Report A's deeper nets differ in two ways: three convolutions a block, and a
# shortcut with a 1x1 convolution and BN of its own where the image is halved. (A names neither the kernel nor the place
# of the pooling: both are our choice.)

# %%
report_b = ["vgg38-resnet", "vgg68-resnet", "vgg72-resnet", "vgg106-resnet"]
report_a = ["vgg16-bn-rc", "vgg50-bn-rc", "vgg150-bn-rc"]
pd.DataFrame(
    {
        "report": ["B"] * 4 + ["A"] * 3,
        "stages": [MODELS[m]["stages"] for m in report_b + report_a],
        "processing blocks a stage": [MODELS[m]["blocks"] for m in report_b + report_a],
        "layers": [len(layers(build(m, seed=0))) for m in report_b + report_a],
        "parameters": [f"{count_parameters(build(m, seed=0)):,}" for m in report_b + report_a],
        "million multiply-adds": [round(multiply_adds(m) / 1e6) for m in report_b + report_a],
    },
    index=[model.upper() for model in report_b + report_a],
)

# %%
assert len(layers(build("vgg106-resnet"))) == 132
assert build("vgg150-bn-rc", seed=0).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 100)

# %% [markdown]
# Each name but one gives the number of layers (in report A's nets, counting the 1x1 convolutions of shortcuts).
# VGG106's five stages of twelve processing blocks and one that halves the image make 5 · 13 · 2 + 2 = 132 layers, not
# 106, which four such stages would have. VGG72 is deeper than VGG68 and cheaper, since it halves the image five times:
# its late stages work on 4x4 and 2x2 pixels.
#
# ## Watch the gradient explode
#
# BN alone does not hold the gradient at 1. Chapter 02 derived the factor: on the way back each normalised layer
# *enlarges* it by about $\sqrt{\pi/(\pi-1)} = 1.21$. A net of 38 layers can bear that. What happens deeper?
#
# *Live.* Take report B's net with 1 to 20 blocks a stage, with and without its shortcuts, before the first step. How
# much larger is the gradient of the first convolution than that of the last?

# %%
source = data.load("cifar100").subset(5000) if data.available() else data.load("synthetic")
train_set = data.Images(*source.train)
x, y = train_set.batch(next(data.plan_epoch(len(train_set), seed=0, epoch=0).batches(25)))


def imbalance(**net):
    """Mean |dE/dW| of the first convolution over that of the last, before the first step."""
    _ = torch.manual_seed(0)
    flow = flow_on(VGG(**net), x, y)
    last = [layer for layer in flow if "shortcut" not in layer][-2]
    return flow["entry.conv"] / flow[last]


# %% tags=["nbval-ignore-output"]
blocks = np.array([1, 5, 10, 20])
depth = 6 * blocks + 8
bn = np.array([imbalance(stages=3, blocks=b, norm=True) for b in blocks])
bn_rc = np.array([imbalance(stages=3, blocks=b, norm=True, residual="all") for b in blocks])
pd.DataFrame({"BN": bn, "BN + RC": bn_rc}, index=pd.Index(depth, name="layers")).map("{:.3g}".format)

# %%
a_layer = (bn[-1] / bn[1]) ** (1 / (depth[-1] - depth[1]))
power, height = np.polyfit(np.log(depth), np.log(bn_rc), 1)
assert 1.1 < a_layer < 1.25, "BN alone: a factor a layer"
assert bn_rc.max() < 30 and 0.55 < power < 0.8, "BN + RC: a power of the depth"
trained = records.load_series("vgg38-bn", "gradients.csv").set_index("epoch")
falls = trained["entry.conv"] / trained["stage3.reduce.conv2"]
assert falls[0].between(96, 203).all() and falls[1].between(14, 22).all()

# %% [markdown]
# BN alone multiplies the gradient by about 1.16 a layer, a little less than the theory says: harmless at 14 layers,
# hundreds at 38, two hundred million at 128. (One draw of the weights, and 25 images; at 38 layers draws differ by a
# factor of three, and on a hundred images chapter 02 has 199 for this one.) It is chapter 01 reversed, with a gentler
# factor.
#
# Yang et al. (2019) derive this growth, and find that deep nets with BN alone are not trainable, but also that the
# imbalance shrinks much after one step. In the records of our VGG38 BN it falls from 97, 130 and 202 to between 15 and
# 21 within an epoch. (Whether Adam, which divides out the size of the gradient, would train a net of 128 layers with BN
# alone is not measured.)
#
# With shortcuts the imbalance grows as well, but no faster than the depth itself. Now the reports' own nets, each with
# its shortcuts and, for comparison, without (and then without the convolutions on them, so that report A's have 14, 47
# and 146 layers):

# %% tags=["nbval-ignore-output"]
theirs = pd.DataFrame(
    {
        "layers": [len(layers(build(m, seed=0))) for m in report_b + report_a],
        "BN": [imbalance(**MODELS[m] | dict(residual="none")) for m in report_b + report_a],
        "BN + RC": [imbalance(**MODELS[m]) for m in report_b + report_a],
    },
    index=report_b + report_a,
)
theirs.map("{:.3g}".format)

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(figsize=(8, 4))
axes.plot(depth, bn, "s-", color=figures.STYLE["vgg38-bn"][0], label="BN alone, 3 stages")
axes.plot(depth, bn_rc, "D", color=figures.STYLE["vgg38-bn-rc"][0], label="BN + RC, 3 stages")
line = np.arange(14, 151)
axes.plot(line, np.exp(height) * line**power, color=figures.STYLE["vgg38-bn-rc"][0], label="a power of the depth")
axes.plot(theirs.layers, theirs["BN + RC"], "*", ms=11, color="white", mec="black", label="the reports' nets, BN + RC")
for model, row in theirs.iterrows():
    place = (6, -12 if model == "vgg68-resnet" else 5)
    axes.annotate(
        model.split("-")[0].upper(), (row.layers, row["BN + RC"]), place, textcoords="offset points", fontsize=8
    )
axes.set(yscale="log", xlabel="layers", ylabel="gradient of the first conv / the last")
axes.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# **Figure 1.** How much larger the first gradient is than the last, before the first step. *BN alone* is nearly a
# straight line on this axis: a factor a layer. *BN + RC* bends over, and follows a power of the depth (line, fitted).
# Of the reports' nets (stars), B's stay within a factor of three of that line, up to 132 layers; A's VGG50 and VGG150
# lie above it. (The fitted nets of 38 and 68 layers are B's own, and hidden by its stars.) VGG150's gradient is
# balanced several hundred thousand times better than without shortcuts, but some seventy times worse than VGG106's.

# %%
assert theirs["BN + RC"][report_b].max() < 200 and theirs.BN["vgg106-resnet"] > 1e7
assert theirs["BN + RC"]["vgg150-bn-rc"] > 10 * theirs["BN + RC"]["vgg106-resnet"]
assert theirs.BN["vgg150-bn-rc"] > 1e5 * theirs["BN + RC"]["vgg150-bn-rc"]

# %% [markdown]
# ## Why a power and not a factor
#
# Follow the stream that runs along the shortcuts. Block $k$ adds a branch that ends in BN, so what it adds has about
# unit size, whatever came in:
#
# $$ x_{k+1} = \phi\big(x_k + f_k(x_k)\big), \qquad \overline{x_k^2} \approx c\, k . $$
#
# The stream grows and the additions do not, so a later block changes it by a smaller share (De and Smith, 2020). On the
# way back the same share counts: the BN in the branch divides the gradient by the size of the stream it normalised, and
# a block multiplies the squared gradient by about $1 + a/k$ rather than by a constant. Over $K$ blocks
#
# $$ \prod_{k=1}^{K} \Big(1 + \frac{a}{k}\Big) \propto K^{a} , $$
#
# and the gradient itself grows as $K^{a/2}$. If this is so, the mean square of the stream must rise along a straight
# line. *Live.*


# %%
def stream(model):
    """Mean square of each block's output, before the first step."""
    net, sizes = build(model, seed=0).train(), []
    for module in net.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda block, inputs, out: sizes.append(out.square().mean().item()))
    with torch.no_grad():
        net(x)
    return np.array(sizes)


# %% tags=["nbval-ignore-output"]
pooled, projected = stream("vgg68-resnet"), stream("vgg150-bn-rc")
fig, axes = plt.subplots(figsize=(8, 3.4))
for sizes, text, colour in (
    (pooled, "VGG68 of report B: the shortcut is pooled", figures.PALETTE[9]),
    (projected, "VGG150 of report A: the shortcut is convolved and normalised", figures.PALETTE[7]),
):
    axes.plot(range(1, len(sizes) + 1), sizes, "o-", ms=3, lw=1, color=colour, label=text)
axes.set(xlabel="block", ylabel="mean square of its output", ylim=(0, None))
axes.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# **Figure 2.** It does: each block adds a little less than 1. And here is what sets report A's VGG150 apart. Where it
# halves the image, its shortcut has a BN of its own, which brings the stream back to 1. One long stream has become four
# short ones, each beginning again at $k = 1$, where a block's factor is largest. Report B's pooling keeps the stream
# going (the small steps down come from averaging four pixels). This is only the premise. Which power follows from it is
# not derived here: Figure 1 has about two thirds, for the gradient of weights.
#
# The test: leave VGG150 its three convolutions a block, and give it report B's shortcut.

# %%
slope = np.polyfit(range(10), pooled[:10], 1)[0]
straight = np.corrcoef(range(10), pooled[:10])[0, 1]
assert 0.5 < slope < 1.2 and straight > 0.99
ends = [11, 23, 35, 47]  # blocks of VGG150 that halve the image
assert (projected[ends] < 1.2).all() and (projected[[e - 1 for e in ends]] > 6).all()

# %% tags=["nbval-ignore-output"]
pooled_150 = imbalance(**MODELS["vgg150-bn-rc"] | dict(project=False))
print(f"VGG150, first conv / last: {theirs['BN + RC']['vgg150-bn-rc']:.0f}; with report B's shortcut: {pooled_150:.0f}")
assert pooled_150 < theirs["BN + RC"]["vgg150-bn-rc"] / 10 and pooled_150 < 6 * theirs["BN + RC"]["vgg106-resnet"]

# %% [markdown]
# That is more than ten times nearer to balance, and within a few times of VGG106. So a shortcut that is only pooled
# keeps the gradient better balanced than one with a convolution and a BN. (Figure 2 suggests that it is the BN; the two
# went together.) What that is worth in training is not measured here. He et al. (2016) found projections on *all*
# shortcuts slightly better in a net of 34 layers, and harmful in deeper ones ("Identity mappings in deep residual
# networks"). Where they project only at a halving, they compare with zeros for new channels, which these nets do not
# have.
#
# ## Ask what depth buys
#
# Here is what report B prints for its deeper nets, one run each. Is a gain of a point and a half a gain? The report
# gives one clue: VGG38 ResNet without weight decay, trained from three seeds (that none had 1e-3 is shown in chapter
# 07). If $s$ is their standard deviation, two single runs of one net differ by less than $t_2\, s \sqrt 2$ in 19 cases
# of 20 ($t_2 = 4.3$ is Student's t at 97.5 % with two degrees of freedom).

# %%
told = tables.reported().query("report == 'B' and metric == 'val_acc'")
seeds = told[told.run == "vgg38-resnet"].value
luck = stats.t.ppf(0.975, len(seeds) - 1) * 2**0.5 * seeds.std()
print(f"three seeds: {', '.join(f'{100 * v:.2f}' for v in seeds)} %")
print(f"two runs of one net differ by up to {100 * luck:.1f} points in 19 cases of 20")
assert 0.02 < luck < 0.04

# %%
deeper = [f"{model}-wd1e-3" for model in report_b]
base = told[told.run == deeper[0]].value.iloc[0]
fig = figures.settings(deeper, band=(base - luck, base + luck))
_ = fig.axes[0].set(xlim=(50, 75))
figures.picture(fig)

# %% [markdown]
# **Figure 3.** Report B's depths (stars) and our VGG38 (dots, one per seed). The grey band is where we expect a second
# run of VGG38 itself, if it varies as the three seeds did. All three deeper nets lie inside. Their order, 106 < 68 <
# 72, is not a finding. That none is worse than VGG38 by more than luck is one, since plain VGG38 is worse than VGG08.
#
# Report A's three nets differ by a factor of ten in depth and by two and a half points in validation accuracy, but the
# shallowest and the deepest are even:

# %%
gains = told[told.run.isin(deeper)].set_index("run").value - base
assert (abs(gains) < luck).all()

# %%
told_a = tables.reported().query("report == 'A' and exhibit in ('Figure 7', 'Figure 8', 'Figure 9')")
compared = (100 * told_a.pivot(index="run", columns="metric", values="value")).round(2)
compared["million multiply-adds"] = [round(multiply_adds(RUNS[name].model) / 1e6) for name in compared.index]
compared.sort_values("million multiply-adds")

# %%
shallow, deep = (told_a[told_a.run.str.startswith(model)].set_index("metric").value for model in report_a[::2])
assert abs(deep.val_acc - shallow.val_acc) < 0.001 and deep.test_acc < shallow.test_acc

# %% [markdown]
# The deepest net takes eight times the multiply-adds of the shallowest for six tenths of a point less on the test set,
# which is nothing beside luck. A's deeper nets also fit their *training* images worse, by six to eight points, so
# overfitting is not what holds them back. Nor is it simply the gradient: the deepest fits better than the middle one,
# whose gradient is eighty times better balanced. And VGG16 had fifty epochs more. Three single runs do not tell the
# cause. Report A concludes that depth alone stops paying, and that width and resolution have to grow with it (Tan and
# Le, 2019). These nets have 32 filters at every depth.
# None of the deeper nets is measured here yet. Chapter 07 lists every number that the reports print for them.
#
# ## What was shown
#
# - BN alone multiplies the gradient by about 1.16 a layer; at 128 layers that is a hundred million and more.
# - With identity shortcuts the stream grows, each block counts for less, and the gradient grows with a power of the
#   depth. A shortcut with a convolution and a BN of its own restarts the stream and gives part of that away; which of
#   the two does it was not separated.
# - The reports train nets of up to 150 layers; of these none with more than 38 has been trained here yet. What report B
#   gains by depth is less than two runs of one net may differ by. Report A's two deeper nets, trained for fewer epochs,
#   fit their training images worse than its shallow one.
