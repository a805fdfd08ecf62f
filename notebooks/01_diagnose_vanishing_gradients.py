# %% [markdown]
# # Diagnose vanishing gradients
#
# Two networks are built from the same parts and trained on the same images by the same recipe. The one with 8 layers
# learns. The one with 38 layers does not: after a hundred epochs it still guesses.
#
# **You will see** both nets train, their gradients layer by layer, and the factor by which each layer shrinks them,
# predicted and measured.
# **You will learn** why, with Adam, VGG38's failure is decided before its first step.
# **You need** the chain rule, a little PyTorch, and a minute on two CPU cores. No GPU or dataset is needed: without
# CIFAR-100 the live cells use a small procedural set of 100 classes.
#
# The nets come from two student reports on CIFAR-100, here called A and B; `vggres` rebuilds them exactly. A cell
# marked *live* computes on your machine. Everything else is replayed from the records of real training runs in
# `results/`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from vggres import build, data, figures, records, tables
from vggres.engine import Engine, pick_device
from vggres.gradients import flow_on, propagation
from vggres.models import count_parameters, layers

# %% [markdown]
# ## Two nets
#
# Both are plain VGGs: 3x3 convolutions with 32 filters, LeakyReLU, one batch normalisation after the first convolution,
# three stages, global average pooling and one linear layer. Each stage ends in a *reduction block*, two convolutions
# and a pooling that halves the image. VGG38 has five *processing blocks* of two convolutions before it in each stage,
# VGG08 none. Nothing else differs.

# %%
vgg08, vgg38 = build("vgg08", seed=0), build("vgg38", seed=0)
pd.DataFrame(
    {
        "layers": [len(layers(net)) for net in (vgg08, vgg38)],
        "parameters": [count_parameters(vgg08), count_parameters(vgg38)],
    },
    index=["VGG08", "VGG38"],
)

# %% [markdown]
# Whatever the depth, 100 logits come out.

# %%
images = torch.zeros(2, 3, 32, 32)
assert vgg08(images).shape == vgg38(images).shape == (2, 100)

# %% [markdown]
# ## One learns, one does not
#
# *Live.* Both nets train with Adam at 1e-3, as in the reports, on batches of 50 (theirs: 100). (VGG38, which costs
# eight times as much a step, gets only 40 steps here; the records below give both a hundred epochs.) We use 5,000
# images of CIFAR-100 if they are on this machine (`vggres data` fetches them), otherwise the procedural set.

# %%
source = data.load("cifar100").subset(5000) if data.available() else data.load("synthetic")
train_set = data.Images(*source.train)
SET = {"cifar100": "CIFAR-100", "synthetic": "the procedural set"}[source.name]


def first_steps(net, steps, batch=50):
    """Train the net; its mean loss over the last ten of `steps` steps."""
    engine, done = Engine(net, lr=1e-3, weight_decay=0, device=pick_device("cpu")), 0
    for epoch in range(steps):
        for plan in data.plan_epoch(len(train_set), seed=0, epoch=epoch).batches(batch):
            if done == steps - 10:
                engine.metrics()
            engine.step(train_set, plan, lr=1e-3)
            done += 1
            if done == steps:
                return engine.metrics()[0]


# %% tags=["nbval-ignore-output"]
loss08, loss38 = first_steps(vgg08, steps=250), first_steps(vgg38, steps=40)
print(
    f"On {SET}, in nats: VGG08 after 250 steps {loss08:.3f}, VGG38 after 40 {loss38:.3f}, guessing {np.log(100):.3f}."
)

# %%
assert loss08 < 4.4, "VGG08 should have begun to learn"
assert abs(loss38 - np.log(100)) < 0.03, "VGG38 should still be guessing"

# %% [markdown]
# A net that gives each of 100 classes the same probability has a cross-entropy of $\ln 100 = 4.605$ nats. VGG08 has
# left that plateau; VGG38 sits on it. Is it only slow? Here are records of a hundred epochs on the real training set of
# 47,500 images, beside what report A's Table 1 prints:

# %%
measured = tables.table_1(names=["vgg08", "vgg38"])
tables.as_text(measured)

# %% [markdown]
# It is not slow; it stands still. After a hundred epochs VGG38 has not moved from 4.605 nats and one hit in a hundred.
#
# ## Look at the gradients
#
# Training moves a weight along its gradient, so look at each layer's weight gradient *before the first step*. We use
# the reports' measure: the mean of $|\partial E/\partial W|$ over a layer's weights, for one batch of 100 images, in
# training mode. *Live*, on freshly built nets.

# %%
x, y = train_set.batch(next(data.plan_epoch(len(train_set), seed=0, epoch=0).batches(100)))
trained, vgg08, vgg38 = vgg38, build("vgg08", seed=0), build("vgg38", seed=0)
flow = {"VGG08": flow_on(vgg08, x, y), "VGG38": flow_on(vgg38, x, y)}

# %% tags=["nbval-ignore-output"]
fig, panels = plt.subplots(1, 2, figsize=(9, 3.4))
for axes, scale in zip(panels, ("linear", "log"), strict=True):
    for (name, values), model in zip(flow.items(), ("vgg08", "vgg38"), strict=True):
        colour, marker = figures.STYLE[model]
        axes.plot(range(1, len(values) + 1), values.values(), color=colour, marker=marker, ms=3.5, label=name)
    axes.set(yscale=scale, xlabel="layer, input to output", ylabel="mean |dE/dW|", title=f"{scale} axis, {SET}")
panels[1].legend(frameon=False)
plt.show()

# %% [markdown]
# **Figure 1.** Gradient flow before the first step. *Left*: on the reports' linear axis, VGG38's gradient "is 0"
# everywhere but at the very end, which is how report A's Figure 3 reads. *Right*: on a logarithmic axis, it is not 0
# but about $10^{-18}$ in the first stage, $5 \cdot 10^{-15}$ in the second and $10^{-10}$ in the third, with the last
# convolution of a stage already near the next step: it climbs in stairs. VGG08's lies between $5 \cdot 10^{-6}$ and
# about $10^{-4}$.

# %%
first, *_, last = flow["VGG38"].values()
assert 1e-20 < first < 1e-16 and last > 1e-5
assert min(flow["VGG08"].values()) > 1e-6

# %% [markdown]
# ## The factor of one layer
#
# Where do fourteen orders of magnitude go? By the chain rule the gradient at the output $z^{(l)}$ of layer $l$ is a
# product of Jacobians, one for each later layer:
#
# $$\frac{\partial E}{\partial z^{(l)}} = \frac{\partial E}{\partial z^{(L)}}\,
# \frac{\partial z^{(L)}}{\partial z^{(L-1)}} \cdots \frac{\partial z^{(l+1)}}{\partial z^{(l)}} .$$
#
# Each Jacobian multiplies by the weights and by the slope of the activation. PyTorch draws a convolution's weights
# uniformly with variance $1/(3 n)$, where $n$ is the fan-in, here $9 \cdot 32 = 288$. (On the way back the sum is over
# the fan-out, also 288.) LeakyReLU passes half of the units and cuts the other half to a hundredth. So each layer
# multiplies the mean square of the gradient by
#
# $$ n \cdot \frac{1}{3 n} \cdot \frac12 = \frac16 , \qquad\text{its root by}\qquad \frac{1}{\sqrt 6} \approx 0.41 .$$
#
# The same holds forwards for what distinguishes one image from another (He et al., 2015, derive both, and the cure: a
# larger variance). We first check the variance; `n * 3` times it should be 1:

# %%
variances = [3 * layer.weight[0].numel() * layer.weight.var().item() for name, layer in layers(vgg38) if "conv" in name]
assert np.allclose(np.mean(variances), 1, atol=0.02)

# %% [markdown]
# Then the gains. `propagation` keeps every layer's output, runs the loss backwards and reports the ratio between
# neighbouring layers. It works in double precision; we will soon see why it must. (Its `gradient` is that of one
# image's own loss: $\partial E / \partial z$ times the number of images, since $E$ is a mean over them. Its `signal` is
# a unit's standard deviation over the images, as a root mean square over units.) *Live.*

# %%
signal = pd.DataFrame(propagation(vgg38, x[:50], y[:50])).set_index("layer")
plain = signal[~signal.index.str.contains("entry|reduce|head")]
gain = plain.backward_gain.median()
assert abs(gain / (1 / np.sqrt(6)) - 1) < 0.05
print(f"theory {1 / np.sqrt(6):.2f}, measured {gain:.2f} (median of the {len(plain)} layers of the processing blocks)")

# %% [markdown]
# The prediction holds to a few per cent. The three poolings shrink the gradient further: each spreads it over four
# pixels, a factor of 1/4. With 36 layers between the first convolution and the last,
#
# $$ \left(\tfrac{1}{\sqrt 6}\right)^{36} \left(\tfrac14\right)^{3} \approx 1.5 \cdot 10^{-16} .$$

# %%
factors = [1 / np.sqrt(6) / (4 if name.endswith("reduce.conv1") else 1) for name in signal.index[:-2]]
theory = signal.gradient.iloc[-2] * np.cumprod([1, *factors[::-1]])[::-1]
convs = signal.iloc[:-1]
assert (theory / convs.gradient).between(1 / 5, 5).all()

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(figsize=(8, 3.6))
depth = np.arange(1, len(convs) + 1)
axes.plot(
    depth, convs.gradient, "v", color=figures.STYLE["vgg38"][0], ms=5, label="measured: gradient at the layer's output"
)
axes.plot(depth, theory, color="black", lw=1, label="theory: 0.41 a layer, 1/4 a pooling")
figures.depth_axis(axes, list(signal.index))
axes.set(
    yscale="log", ylabel="RMS of dE/dz (E: of one image)", title="Each layer shrinks the gradient to 0.41, as predicted"
)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# **Figure 2.** The gradient on its way back, right to left. The line is not a fit: it starts at the last convolution
# and multiplies by 0.41 and 1/4 as the theory says. Over sixteen orders of magnitude the measured points stay within a
# factor of five of it. The rest is mostly the luck of the draw: with 32 channels a layer's factor scatters between 0.34
# and 0.47, and 36 of them multiply. (The *weight* gradients of Figure 1 span only fourteen orders: the first layer has
# a larger input than the last, and sums over 64 times as many pixels, whose shares, differing in sign, add up to some 8
# times as much.)
#
# ## Why the stairs?
#
# Figure 2 falls steadily, Figure 1 in stairs. The gradient of a *weight* is the product of what comes back to the
# layer's output and what came forward to its input, summed over images and pixels:
#
# $$\frac{\partial E}{\partial W^{(l)}} = \sum \frac{\partial E}{\partial z^{(l)}} \; a^{(l-1)\top} .$$
#
# One layer deeper, the first factor grows by $\sqrt 6$ and the second shrinks by as much, so the product stays level
# within a stage. Each stage ends in a reduction block, whose convolutions have a *bias*. It puts a constant of about
# $0.03$ in place of the vanished activations, and the product jumps. Set these biases to 0, and the stairs are gone:
# the gradient is 1e-18 or a few times that in every layer, the last included.

# %%
bare = build("vgg38", seed=0)
for name, layer in layers(bare):
    if "conv" in name and layer.bias is not None:
        _ = torch.nn.init.zeros_(layer.bias)
level = np.array(list(flow_on(bare, x, y).values()))
assert level.min() > 1e-19 and level.max() < 1e-16 and level.max() < 100 * level.min(), "without biases, no stairs"

# %% tags=["nbval-ignore-output"]
fig, axes = plt.subplots(figsize=(8, 3.6))
axes.plot(depth, convs.rms, "o-", ms=3.5, lw=1, color="0.55", label="size of the output")
axes.plot(depth, convs.signal, "^-", ms=3.5, lw=1, color=figures.PALETTE[0], label="its difference between images")
figures.depth_axis(axes, list(signal.index))
axes.set(
    yscale="log", ylabel="RMS of z, and of its spread", title="Forwards: the biases lift the size, not the difference"
)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# **Figure 3.** The forward pass. *Grey*: the outputs shrink to about 0.4 a layer, and the biases lift them at each
# stage's end. *Blue*: the lift is the same for every image, so the difference between two images keeps falling. At the
# last convolution the outputs are a constant that depends on the image only in the fifteenth digit. Float32 keeps
# seven: to the head of VGG38 all images are *the same image*, bit for bit. That is why `propagation` needs double
# precision, and it is the other half of the diagnosis: as long as the early layers stand still, nothing of an image
# reaches the head.

# %%
assert convs.signal.iloc[-1] / convs.rms.iloc[-1] < 1e-12
float32 = vgg38.train()(x).std(0)
assert float32.max() == 0, "the logits of 100 images agree to the last bit"

# %% [markdown]
# ## Why Adam does not rescue it
#
# Adam divides the gradient by its own running size, so a small gradient should do as well as a large one:
#
# $$ \Delta W = -\eta \, \frac{\hat m}{\sqrt{\hat v} + \epsilon}, \qquad \epsilon = 10^{-8} . $$
#
# But a gradient of $10^{-18}$ drowns in $\epsilon$: the step is $10^{-3} \cdot 10^{-18} / 10^{-8} = 10^{-13}$, and the
# weights are about $0.03$, where float32 cannot represent a change smaller than $10^{-9}$. So compare the weights of
# the VGG38 trained above with its initial weights.

# %% tags=["nbval-ignore-output"]
pairs = zip(layers(vgg38), layers(trained), strict=True)
moved = {name: (old.weight != new.weight).float().mean().item() for (name, old), (_, new) in pairs}
stages = pd.Series(moved).groupby(lambda name: name.split(".")[0], sort=False).mean()
pd.DataFrame({"weights that changed at all (%)": (100 * stages).round(2)})

# %%
recorded = records.load_series("vgg38", "gradients.csv")
assert recorded["entry.conv"].max() < 1e-17 and 47_500 * 1e-3 * 1e-17 / 1e-8 < 1e-7
assert stages["entry"] == 0 and stages["stage1"] < 0.05 and stages["stage2"] < 0.6 and stages["head"] > 0.99

# %% [markdown]
# After 40 steps nearly all weights of the first stage are, bit for bit, unchanged. In the second stage fewer than half
# have changed, in their last digits. The third stage and the head do move, but what reaches the one differs between
# images in the last digit at most, and what reaches the other not at all: they can only learn one answer for all, which
# is worth $\ln 100$ nats. This is what "does not train" means here: neither a bad minimum nor slowness. The early
# layers cannot move, because their steps are far too short, and rounded away besides; the late ones cannot learn,
# because they see one image. In the records it stays so: in a hundred epochs the first layer's gradient is never above
# $10^{-17}$ (three seeds), and 47,500 such steps, even unrounded, would move a weight by less than $10^{-7}$.
#
# What if the early layers could move? They do see different images, and what comes back is each image's error, which
# depends on its label: their gradient is small, but it has a direction (chapter 12 shows that this is what counts).
# Multiply all gradients by $2^{56}$, and they no longer drown in $\epsilon$. Then, at a smaller rate, 1e-4, the same
# net, from the same weights, begins to learn within an epoch or two of CIFAR-100, and from then on its gradient is
# healthy in all layers. (It seems to need both: at 4e-4 Adam as it is guesses for five epochs; and in short trials, not
# recorded, scaled Adam did not begin at 2e-4 or above.) But after a hundred epochs it gets about 19 % of the validation
# images right (one run). Muon, an optimiser whose step does not depend on the gradient's size, brings it to 45.8 and
# 28.4 % in two runs; with other initial weights and slope it brings it to 61 % (chapter 12).
#
# ## What was shown
#
# - VGG08 learns and VGG38 does not, by the same recipe; the difference is there before the first step.
# - Each plain layer multiplies signal and gradient by $1/\sqrt 6 \approx 0.41$, because of PyTorch's default
#   initialisation; 36 such layers and three poolings leave $10^{-16}$ of the gradient.
# - A weight's gradient is the product of what comes back to the layer's output and the size of its input. It reads as 0
#   on the reports' linear axis, but is $10^{-18}$.
# - Such a gradient drowns in Adam's $\epsilon$ and in the rounding of float32, and the head receives the same input for
#   every image.
#
# The factor suggests the repair: keep it near 1. The next chapter builds two parts that help, batch normalisation and
# the residual connection.
