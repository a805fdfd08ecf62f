# %% [markdown]
# # Reproduce Table 1
#
# Report A's Table 1 prints losses and accuracies of seven runs of five networks on CIFAR-100; six figures go with it.
# This chapter sets our own beside them.
#
# **You will see** Table 1 as reported and as measured, and Figures 1 to 6 redrawn from our own runs. **You will learn**
# where ours agree with the report, where they do not, and how to read the record behind each. (Chapter 07 judges the
# single numbers.) **You need** chapter 01 for the idea. Nothing is trained here but one tiny net at the end; the rest
# is replayed from the records in `results/`, the same on every machine.

# %%
import os
import tempfile

import numpy as np
import pandas as pd

from vggres import RUNS, data, figures, records, tables, training
from vggres.runs import TABLE_1

# %% [markdown]
# ## The protocol
#
# Of CIFAR-100's 50,000 training images, 47,500 train and 2,500, 25 of each class, validate. Adam trains for 100 epochs
# in batches of 100, at a learning rate of 1e-3 (or 1e-2) that falls once an epoch along a cosine to 2e-5, with random
# crops of 32 after padding by 4, and horizontal flips. We take the reported losses and accuracies to be those after the
# last epoch. The test set is used only at the end, with the weights of the best validation accuracy (`test_acc`, which
# we quote) and with the last (`test_acc_last`).

# %%
protocol = pd.DataFrame([RUNS[name].to_dict() for name in tables.TABLE_1]).set_index("name")
protocol[["model", "epochs", "batch", "lr", "weight_decay", "schedule", "augment"]]

# %% [markdown]
# ## Table 1
#
# An interval is Student's t over seeds, at 95 %.

# %%
table = tables.table_1()
tables.as_text(table)

# %% [markdown]
# **Table 1.** Reported and measured. (Report A prints VGG38's accuracies as "00.01", and its text has 0.01 and 0.001.
# We read 1 %, which is what guessing gives.) Five of the rows came with the report's assignment. It trained the other
# two itself, VGG38 BN at 1e-3 and BN + RC at 1e-2, and for 250 epochs in batches of 264 (chapter 07); ours of these had
# the protocol above, like all others.
#
# ### VGG38, plain and repaired
#
# The table's rows of VGG38: accuracies in percent, and by how many points ours lie above the report's:

# %%
deep = table[table.run.isin(TABLE_1[1:]) & table.metric.isin(["train_acc", "val_acc"])]
above = (100 * (deep.measured - deep.reported)).rename("above")
text = deep.assign(reported=100 * deep.reported, measured=100 * deep.measured, above=above).set_index("run")
columns = ["reported", "measured", "above"]
parts = {metric: text[text.metric == metric][columns] for metric in ("train_acc", "val_acc")}
pd.concat(parts, axis=1).loc[TABLE_1[1:]].round(2)

# %%
vgg08 = table[table.run == "vgg08"].set_index("metric").measured
fit, val = (part.measured for part in parts.values())
assert val["vgg38"] == 1 and abs(fit["vgg38"] - 1) < 0.2
seeds = records.load_runs()
by_seed = 100 * seeds.set_index("run").train_acc
assert parts["train_acc"].above.filter(like="-rc").between(8, 17.5).all()
for name in ("vgg38-bn", "vgg38-bn-lr1e-2"):
    assert by_seed[name].min() < parts["train_acc"].reported[name] < by_seed[name].max()
than_vgg08 = val - 100 * vgg08["val_acc"]
assert -2 < than_vgg08["vgg38-bn"] < 0 < 2 < than_vgg08["vgg38-rc"] < 4 < 10 < than_vgg08["vgg38-bn-rc"]
assert val["vgg38-bn-rc"] > val[["vgg38-bn", "vgg38-rc"]].max() + 7 and parts["val_acc"].above["vgg38-bn-rc"] > 5
gained = {name: val[f"{name}-lr1e-2"] - val[name] for name in ("vgg38-bn", "vgg38-bn-rc")}
assert -5 < gained["vgg38-bn"] < -3 < 0 < gained["vgg38-bn-rc"] < 1
right = 100 * seeds.set_index("run").val_acc
assert right["vgg38-bn-rc"].min() > right["vgg38-rc"].max() and 0 < right["vgg38-rc"].min() - 100 * vgg08["val_acc"] < 1
outside = tables.verdicts().query("report == 'A' and metric == 'val_acc' and verdict == 'outside'")
assert outside.run.tolist() == ["vgg38-bn-rc"]

# %%
largest, *others = sorted(100 * seeds[seeds.run == "vgg38-bn-lr1e-2"].val_acc, reverse=True)
assert 4.5 < largest - max(others) < 5 and np.ptp(others) < 0.5
tested = seeds.groupby("run").test_acc.mean()
told = tables.reported().query("report == 'A' and metric == 'test_acc' and run in @TABLE_1").set_index("run").value
assert (tested[told.index] < told - 0.01).all()
(100 * pd.DataFrame({"reported": told, "measured": tested[told.index]})).round(2).rename_axis("test images, % right")

# %% [markdown]
# Each row has three runs, and the report's story is there. The plain VGG38 does not move in a hundred epochs: its loss
# is $\ln 100$, and it gives the same answer to all 2,500 validation images (its kept weights: class 83), so exactly 1 %
# are right. Either repair makes the same 38 layers train. BN alone makes them no better than eight plain layers (49.4
# %); shortcuts alone, three points better on average (one of three seeds by less than one, so three runs each do not
# prove it). The two together are seven points above that, each run above every run of RC, and at 1e-2 they have the
# report's best validation accuracy.
#
# Three things differ from the report. First, BN + RC at 1e-3 has 59.6 % of the validation images right and not 53.8:
# seven points above RC, not one. It is the only validation accuracy in the course's rows that chapter 07 calls
# *outside*.
#
# Second, with shortcuts our nets *fit* better than the report's, by 8 to 17 points of training accuracy, as VGG08 does
# by three. With BN alone they do not: the report's accuracy lies between our runs'.
#
# Third, the larger rate. In the report it seems to cost BN five points and to give both together six. But in each pair
# one net had 250 epochs in batches of 264 and the other 100 in batches of 100 (about as many steps, two and a half
# times as many images), so that is not the rate's doing alone. Here, all else equal, it costs BN nearly four on average
# (one of three runs is five points above the others: not proved, either), and gives both together less than one: our BN
# + RC is good at 1e-3 already. The test accuracies of the text (the last table), above ours by more than a point, are
# those of the two longer runs.
#
# ### VGG08 against its reports
#
# Reports A and B answer assignments of one course. For VGG08 each prints the course's numbers, not its own, and not the
# same ones: A a row of this table, B a run that the course handed out. By their words the recipe is one. Where do ours
# lie? Accuracies in percent, losses in nats.

# %%
told = tables.reported().query("run == 'vgg08' and exhibit in ('Table 1', 'Set 1') and metric != 'params'")
compared = told.pivot(index="metric", columns="report", values="value").add_prefix("report ")
compared["measured"] = vgg08
compared[compared.index.str.endswith("acc")] *= 100
off = (compared["measured"] - compared["report B"]).abs()
assert off.filter(like="acc").max() < 1 and off.filter(like="loss").max() < 0.02
compared.round(3)

# %% [markdown]
# Our VGG08 agrees with report B's: all four numbers to a point or 0.02 nats. Ours was trained with crops and flips, and
# B's very likely, too: without them ours fits its training images far better (66 % instead of 55, `vgg08-no-augment`).
# Report A's row lies two and a half points below ours in validation and more than three in training. The nets agree as
# far as A prints (60 K parameters), so the recipes probably differ: chapter 07 finds one that fits, and says by what
# rule a number counts as reproduced.
#
# ## Figures 1 to 6
#
# `vggres figures` draws them from the records.

# %%
figures.show("A-figure-1")

# %% [markdown]
# **Figure 1 of report A**: loss and accuracy of VGG08 and VGG38. By its table the report's VGG08 ends at a training
# loss of 1.74, and its VGG38 at 4.61. Here VGG08 ends lower, between 1.57 and 1.63, with a validation loss near the
# reported value (star). VGG38 lies on the dotted line of guessing from first epoch to last.

# %%
assert seeds[seeds.run == "vgg08"].train_loss.between(1.57, 1.63).all()

# %%
figures.show("A-figure-2")

# %% [markdown]
# **Figure 2 of report A**: gradient flow of VGG08. The report's falls from between 0.1 and 0.2 at the input to about
# 0.01. Ours (left, seed 0) falls from about 0.1 (0.01 to 0.20 in all three runs) to 0.01, and is 0.025 at the head.
# Before the first step (right, black) it is far smaller: a ten-thousandth of the later ones at the input, a
# two-hundredth at the output. VGG08 gets out of this within an epoch, VGG38 not in a hundred.

# %%
flow = records.load_series("vgg08", "gradients.csv")
late = flow[flow.epoch > 50].mean()
assert 0.05 < late["entry.conv"] < 0.5 and late["stage3.reduce.conv1"] < 0.02
for _, seed in flow.groupby("seed"):
    grew = seed[seed.epoch > 50].mean() / seed[seed.epoch == 0].iloc[0]
    assert 10_000 < grew["entry.conv"] < 13_000 and 170 < grew["head"] < 220
entry = flow[flow.epoch > 0]["entry.conv"]
assert entry.min() > 0.01 and 0.19 < entry.max() < 0.205

# %%
figures.show("A-figure-3")

# %% [markdown]
# **Figure 3 of report A**: gradient flow of VGG38. The report's reads 0 at every convolution and at most 0.0002 at the
# last layer. So does ours (left, seed 0; 0.0002 to 0.0003 in the three runs), but for the last convolution, which stays
# below 0.00006. On the right, before the first step, it is 1e-18 in the first stage and climbs in stairs, which chapter
# 01 explains. Training lowers it there, to about 1e-20.

# %%
plain = records.load_series("vgg38", "gradients.csv").drop(columns=["epoch", "seed"])
assert plain.iloc[:, :13].max().max() < 1e-14 and plain["head"].max() < 0.0003 and plain.iloc[:, -2].max() < 6e-5
assert plain["entry.conv"].median() < 0.1 * plain["entry.conv"][0]

# %%
figures.show("A-figure-4")

# %% [markdown]
# **Figure 4 of report A**: curves of VGG38 BN + RC at learning rate 1e-2, the report's best row, here by the protocol
# of the table. (The star stands at our last epoch; the report's was its 250th.) Our validation accuracy ends half a
# point above it, and has been near it since the seventieth epoch. The validation loss is lowest between epochs 38 and
# 51 and ends above the report's: the net goes on to fit its training images, eight points further than the report's,
# which saw them two and a half times as often, and becomes surer of its mistakes.

# %%
best = records.load_series("vgg38-bn-rc-lr1e-2", "history.csv").groupby("epoch").mean()
seed_by_seed = records.load_series("vgg38-bn-rc-lr1e-2", "history.csv").groupby("seed")
assert sorted(seed.set_index("epoch").val_loss.idxmin() for _, seed in seed_by_seed) == [38, 45, 51]
assert best.val_loss[100] > best.val_loss.min() + 0.1
assert abs(best.val_acc[70:].mean() - 0.5995) < 0.01 and best.train_acc[100] > 0.7133 + 0.05

# %%
figures.show("A-figure-5")

# %% [markdown]
# **Figure 5 of report A**: gradient flow of VGG38 BN + RC at learning rate 1e-2. Unlike in Figure 3, no layer is
# starved, neither before the first step nor after any epoch. All gradients but the last layer's become smaller once the
# net trains, and they stay within a factor of 340 of each other. (On the linear axis the middle layers read as 0, too;
# only the right panel tells them from Figure 3's.)

# %%
healthy = records.load_series("vgg38-bn-rc-lr1e-2", "gradients.csv").drop(columns=["epoch", "seed"])
assert healthy.min(axis=None) > 1e-5 and (healthy.max(axis=1) / healthy.min(axis=1) < 340).all()
for _, seed in records.load_series("vgg38-bn-rc-lr1e-2", "gradients.csv").groupby("seed"):
    seed = seed.set_index("epoch").drop(columns=["seed", "head"])
    assert (seed.loc[1:] < seed.loc[0]).all(axis=None)

# %%
figures.show("A-figure-6")

# %% [markdown]
# **Figure 6 of report A**: curves of VGG38 BN at learning rate 1e-3, here for 100 epochs in batches of 100; the
# report's had 250 in batches of 264, with a weight decay of 1e-6 (`vgg38-bn-wd1e-6-batch264-250ep`, registered). All
# three of our runs end below its star in validation accuracy and above it in loss. Two fit their training images
# better, 58.5 and 58.7 against 56.0 %; the third, at 55.8 %, does not.

# %%
ends, star = seeds[seeds.run == "vgg38-bn"], table[table.run == "vgg38-bn"].set_index("metric").reported
assert (ends.val_acc < star.val_acc).all() and (ends.val_loss > star.val_loss).all()
assert (100 * ends.train_acc).round(1).tolist() == [58.5, 58.7, 55.8]

# %% [markdown]
# ## The record behind a number
#
# Behind each run is a folder of three text files. `vggres verify` hashes them again, and notices a single changed
# digit.

# %%
record = records.read(records.folder_of(records.default_root(), "vgg08", 0))
wanted = {key: record[key] for key in ("status", "model", "data", "result", "device", "git")}
pd.json_normalize(wanted).T.set_axis(["vgg08, seed 0"], axis=1)

# %%
assert records.verify(records.default_root()) == []

# %% [markdown]
# ## The same path, live
#
# *Live.* The function that made the records makes one here, of 300 images and one epoch, in a folder that is thrown
# away. A record needs a commit; here any will do.

# %% tags=["nbval-ignore-output"]
tiny = RUNS["vgg08"].tiny(limit=300, epochs=1)
os.environ.setdefault("VGGRES_COMMIT", "0" * 40)
with tempfile.TemporaryDirectory() as folder:
    made = training.train(tiny, 0, data.load("synthetic"), folder, "cpu")
    assert records.verify(folder) == [] and made["status"] == "completed"
made["result"]

# %% [markdown]
# ## What was shown
#
# - VGG08, three seeds, agrees with every number that report B prints for it, to a point or 0.02 nats. In report A's
#   table the training accuracy is three points lower, the validation accuracy two and a half (chapter 07 has a probable
#   reason).
# - VGG38 fails as both reports say, from the first epoch to the hundredth. Batch normalisation makes it about as good
#   as VGG08, residual connections three points better (one seed of three by less than one), the two together ten. In
#   the report the two together are little better than residual connections alone at 1e-3; here, by seven points.
# - Two of the table's rows had another recipe than the others, so its two pairs of learning rates compare more than the
#   rate.
# - Our VGG08, and our VGG38 with shortcuts, fit their training images better than report A's. With BN alone our
#   VGG38 does not.
# - Each number carries its seeds, commits, devices and the digest of its data.
