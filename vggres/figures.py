"""The reports' figures, redrawn from the records, and the headline; the same bytes on every render."""

import io
import textwrap
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from vggres import records
from vggres.errors import UserError
from vggres.files import write_atomically
from vggres.runs import MENDED, MENDED_68, MUON, MUON_68, MUON_BN_RC, MUON_PLAIN, SCALED, TWO_RATES, find
from vggres.tables import METRICS, label, reported

matplotlib.rcParams |= {
    "svg.hashsalt": "vggres",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
}
# seaborn's "colorblind"
PALETTE = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"]
# One colour and marker per network in every figure; a run with a look of its own is listed by name.
STYLE = {
    "vgg08": (PALETTE[4], "o"),
    "vgg38": (PALETTE[3], "v"),
    "vgg38-bn": (PALETTE[1], "s"),
    "vgg38-rc": (PALETTE[2], "^"),
    "vgg38-bn-rc": (PALETTE[0], "D"),
    "vgg38-resnet": (PALETTE[9], "P"),
    "vgg38-resnet-sigmoid": (PALETTE[5], "X"),
    "vgg38-skipinit": (PALETTE[6], "p"),
    "vgg38-delta-orthogonal-lr4e-4": (PALETTE[7], "x"),
    MENDED.name: ("black", "*"),
    MENDED_68.name: ("#808000", "h"),
    MUON.name: ("#5b0a91", "<"),
    MUON_68.name: ("#9c7fd1", ">"),
    MUON_BN_RC.name: ("#003f66", "d"),
    TWO_RATES.name: ("#8c510a", "8"),
}
DASHES = {MUON_PLAIN.name: ":", SCALED.name: "--"}  # of the headline, where VGG38 as it is has three optimisers
# Exhibits of the reports: how each is drawn, and from which runs.
EXHIBITS = {
    "A-figure-1": ("curves", ["vgg08", "vgg38"]),
    "A-figure-2": ("flow", ["vgg08"]),
    "A-figure-3": ("flow", ["vgg38"]),
    "A-figure-4": ("curves", ["vgg38-bn-rc-lr1e-2"]),
    "A-figure-5": ("flow", ["vgg38-bn-rc-lr1e-2"]),
    "A-figure-6": ("curves", ["vgg38-bn"]),
    "A-figure-7": ("curves", ["vgg16-bn-rc-wd1e-3-batch264-300ep"]),
    "A-figure-8": ("curves", ["vgg50-bn-rc-wd1e-3-batch264-250ep"]),
    "A-figure-9": ("curves", ["vgg150-bn-rc-wd1e-3-batch264-250ep"]),
    "B-flow-vgg08": ("flow", ["vgg08"]),
    "B-flow-vgg38": ("flow", ["vgg38"]),
    "B-flow-vgg38-resnet": ("flow", ["vgg38-resnet"]),
    "B-set-1": ("curves", ["vgg08", "vgg38", "vgg38-bn", "vgg38-resnet", "vgg38-resnet-sigmoid"]),
    "B-set-1a": ("curves", ["vgg38-resnet", "vgg38-resnet-wd1e-3"]),
    "B-set-2": ("curves", ["vgg38-resnet", *(f"vgg38-resnet-wd1e-{k}" for k in (4, 3, 2))]),
    "B-set-3": (
        "curves",
        [f"vgg38-resnet{lr}-wd1e-3" for lr in ("", "-lr5e-3-to1e-4", "-lr3e-2-to6e-4", "-lr1e-1-to2e-3")],
    ),
    "B-set-4": ("curves", [f"vgg38-resnet-wd1e-3{batch}" for batch in ("-batch64", "", "-batch256", "-batch512")]),
    "B-set-5": ("curves", [f"vgg{depth}-resnet-wd1e-3" for depth in (38, 68, 72, 106)]),
}


def draw(exhibit: str, results: Path | str | None = None) -> Figure | None:
    """An exhibit drawn from its recorded runs; None if there are none, or only one of several to be compared.
    Missing runs are listed below the figure.

    Raises:
        UserError: no such exhibit.
    """
    if exhibit not in EXHIBITS:
        raise UserError(f"no exhibit is called {exhibit!r}; there are {', '.join(EXHIBITS)}")
    how, names = EXHIBITS[exhibit]
    if len(records.recorded(names, results)) < min(len(names), 2):
        return None
    return flow(*names, results) if how == "flow" else curves(names, results, report=exhibit[0])


def unmeasured(exhibit: str, results: Path | str | None = None) -> list[str]:
    """The runs of an exhibit that have no record."""
    have = records.recorded(EXHIBITS[exhibit][1], results)
    return [name for name in EXHIBITS[exhibit][1] if name not in have]


def show(exhibit: str):
    """For a notebook: the exhibit as a picture, or a line saying what is not measured."""
    from IPython.display import Markdown

    fig = draw(exhibit)
    return picture(fig) if fig else Markdown(f"*Not measured: {', '.join(unmeasured(exhibit))}.*")


def picture(fig: Figure):
    """For a notebook: the figure as it is, whatever backend is in use."""
    from IPython.display import Image

    return Image(encode(fig, "png", dpi=100))


def colours(names: list[str]) -> list:
    """A network of the story has its own colour; runs that differ by a number go from dark to light."""
    own = {colour for colour, _ in map(look, names) if colour}
    if len(own) == len(names):
        return [look(name)[0] for name in names]
    return list(map(tuple, matplotlib.colormaps["viridis"](np.linspace(0, 1, len(names) + 2)[1:-1])))


def look(name: str) -> tuple:
    """Colour and marker of a run: its own, or its network's; (None, None) if neither is in the story."""
    run = find(name)
    return STYLE.get(replace(run, epochs=100).name) or STYLE.get(run.model, (None, None))


def title(name: str) -> str:
    """The network, and what differs from Table 1's recipe: "VGG38 BN + RC (lr 0.01)"."""
    run, usual = find(name), find("vgg38")
    notes = [f"lr {run.lr:g}"] * (run.lr != usual.lr)
    notes += [f"weight decay {run.weight_decay:g}"] * (run.weight_decay != usual.weight_decay)
    notes += [f"batch {run.batch}"] * (run.batch != usual.batch)
    notes += [run.schedule] * (run.schedule != usual.schedule) + ["no augmentation"] * (not run.augment)
    notes += [f"{run.epochs} epochs{' only' * (run.epochs < usual.epochs)}"] * (run.epochs != usual.epochs)
    return label(run) + (f" ({', '.join(notes)})" if notes else "")


def curves(names: list[str], results: Path | str | None = None, report: str = "A") -> Figure:
    """Loss and accuracy by epoch: training faint and dashed, validation solid, one colour per run, one line per seed.

    A star at the last epoch marks what the report prints, for each seed that it trained: filled for the validation set,
    white for the training set.
    """
    fig = Figure(figsize=(10, 3.6))
    loss, acc = fig.subplots(1, 2)
    told = reported(results)
    have = records.recorded(names, results)
    told = told[(told.report == report) & told.run.isin(have) & told.metric.isin(METRICS)]
    star = dict(marker="*", ls="", ms=9, mew=0.6)
    for name, colour in zip(have, colours(have), strict=True):
        for axes, metric, scale in ((loss, "loss", 1), (acc, "acc", 100)):
            axes.plot([], [], color=colour, label=title(name).replace(" (", "\n").rstrip(")"))
            for part, how in (("train", dict(color="white", mec=colour)), ("val", dict(color=colour, mec="black"))):
                stars = scale * told[(told.run == name) & (told.metric == f"{part}_{metric}")].value
                axes.plot([find(name).epochs] * len(stars), stars, **star | how, zorder=3)
            by_epoch(axes, records.load_series(name, "history.csv", results), metric, colour)
    loss.axhline(np.log(100), color="0.6", lw=0.8, ls=":")
    acc.axhline(1, color="0.6", lw=0.8, ls=":")
    loss.set(ylabel="cross-entropy (nats)", title="Loss (dotted: guessing, ln 100)")
    acc.set(ylabel="accuracy (%)", title="Accuracy (dotted: guessing, 1 %)", ylim=(0, None))
    loss.plot([], [], "--", color="0.4", lw=1.2, label="training")
    loss.plot([], [], color="0.4", lw=1.5, label="validation")
    if len(told):
        loss.plot([], [], **star, color="white", mec="0.4", label="training, reported")
        loss.plot([], [], **star, color="0.4", mec="black", label="validation, reported")
    fig.legend(*loss.get_legend_handles_labels(), frameon=False, loc="outside right center")
    for axes in fig.axes:
        epoch_axis(axes)
    stamp(fig, names, results)
    return fig


def by_epoch(axes, history, metric: str, colour) -> None:
    """The "loss" (nats) or "acc" (%) of a run: training faint and dashed, validation solid, one line per seed."""
    scale = {"loss": 1, "acc": 100}[metric]
    for _, seed in history.groupby("seed"):
        axes.plot(seed.epoch, scale * seed[f"train_{metric}"], "--", color=colour, alpha=0.5, lw=1.2)
        axes.plot(seed.epoch, scale * seed[f"val_{metric}"], color=colour, lw=1.5)


def flow(name: str, results: Path | str | None = None) -> Figure:
    """Gradient flow by layer for the first seed, one line per epoch: the reports' linear axis and a logarithmic one."""
    table = records.load_series(name, "gradients.csv", results)
    seed = table.seed.min()
    table = table[table.seed == seed]
    layers, (colour,) = [c for c in table if c not in ("epoch", "seed")], colours([name])
    x = np.arange(1, len(layers) + 1)
    start = dict(color="black", lw=1.4, zorder=3)
    later = dict(color=colour, lw=1, alpha=min(0.6, max(0.12, 4 / len(table))))
    fig = Figure(figsize=(8, 3.4))
    for axes, scale in zip(fig.subplots(1, 2), ("linear", "log"), strict=True):
        for _, row in table.iterrows():
            axes.plot(x, row[layers].astype(float), **later if row.epoch else start)
        axes.set_yscale(scale)
        depth_axis(axes, layers)
    linear, log = fig.axes
    linear.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    linear.set(ylabel="mean |dE/dW|", title="as the reports draw it", ylim=(0, None))
    log.set(title="on a logarithmic axis")
    fig.suptitle(title(name), fontsize=10)
    log.plot([], [], color="black", lw=1.4, label="before the first step")
    log.plot([], [], color=colour, lw=1.4, label="last mini-batch of an epoch")
    fig.legend(frameon=False, loc="outside upper right")
    stamp(fig, [name], results, seed)
    return fig


def settings(names: list[str], results: Path | str | None = None, band: tuple[float, float] | None = None) -> Figure:
    """Validation accuracy, one line per run: what report B prints (stars), and each seed measured here (dots).

    Args:
        band: lowest and highest accuracy (fractions) that luck alone explains, to be shaded.
    """
    runs, told = records.load_runs(results), reported(results)
    told = told[(told.report == "B") & (told.metric == "val_acc")]
    fig = Figure(figsize=(8, 0.8 + 0.27 * len(names)))
    axes = fig.subplots()
    if band:
        axes.axvspan(100 * band[0], 100 * band[1], color="0.92", lw=0, label="as far as luck reaches")
    marks = dict(ls="", mec="black", mew=0.6)
    for i, name in enumerate(names):
        stars, dots = told[told.run == name].value, runs[runs.run == name].val_acc
        axes.plot(100 * dots, [i + 0.18] * len(dots), marker="o", ms=7, color=PALETTE[0], **marks)
        axes.plot(100 * stars, [i - 0.12] * len(stars), marker="*", ms=10, color="white", **marks)
    axes.plot([], [], marker="*", ms=10, color="white", label="reported (B)", **marks)
    axes.set(xlabel="validation accuracy (%)", ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(range(len(names)), [title(name) for name in names])
    if have := records.recorded(names, results):
        axes.plot([], [], marker="o", ms=7, color=PALETTE[0], label="measured here, a dot a seed", **marks)
        stamp(fig, have, results)
    fig.legend(frameon=False, loc="outside upper right", ncols=3)
    return fig


def epoch_axis(axes) -> None:
    """Epochs, in round numbers."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def depth_axis(axes, layers: list[str]) -> None:
    """Layers by number in forward order, with a line after each stage, where the image is halved."""
    ends = [i + 1 for i, layer in enumerate(layers) if ".reduce." in layer and layer.endswith("conv2")]
    for end in ends:
        axes.axvline(end + 0.5, color="0.8", lw=0.8, zorder=0)
    axes.xaxis.set_major_locator(FixedLocator([1, *ends[:-1], len(layers)]))
    axes.set(xlabel="layer, input to output (lines: end of a stage)", xlim=(0.5, len(layers) + 0.5))
    axes.grid(False, axis="x")


def headline(results: Path | str | None = None) -> Figure | None:
    """The story in one figure: the gradient before the first step, and what learns. None without records.

    It shows, as far as they are recorded, Table 1's nets, BN + RC at its best learning rate and with Muon, plain nets
    mended in other ways, and VGG38 as it is with other optimisers. Beside the curves of a run, one a seed, stands the
    mean of their ends, or each of them where they lie far apart.
    """
    names = ["vgg08", "vgg38", "vgg38-bn", "vgg38-rc", "vgg38-bn-rc-lr1e-2"]
    names += [run.name for run in (MENDED, MUON, MUON_68, MUON_BN_RC, MUON_PLAIN, SCALED)]
    names = records.recorded(names, results)
    if not names:
        return None
    fig = Figure(figsize=(9.5, 4.2))
    gradient, accuracy = fig.subplots(1, 2, width_ratios=(1.25, 1))
    beside, drawn = [], set()
    for name in names:
        run, (colour, marker) = find(name), look(name)
        style = dict(color=colour, marker=marker, ms=3.5, lw=1.4)
        table = records.load_series(name, "gradients.csv", results)
        start = table[(table.epoch == 0) & (table.seed == table.seed.min())].drop(columns=["epoch", "seed"]).iloc[0]
        if (net := (run.model, run.init, run.slope)) not in drawn:  # however it is then trained
            gradient.plot(np.arange(1, len(start) + 1), start, **style, label=label(replace(run, optimizer="adam")))
        drawn.add(net)
        histories = records.load_series(name, "history.csv", results)
        for _, history in histories.groupby("seed"):
            end = dict(marker=marker, markevery=[-1], ms=5, clip_on=False)
            accuracy.plot(history.epoch, 100 * history.val_acc, DASHES.get(name, "-"), color=colour, lw=1.4, **end)
        last = 100 * histories.groupby("seed").val_acc.last()
        text = label(run) + f", lr {run.lr:g}" * (run.optimizer == "adam" and run.lr != find("vgg38").lr)
        text += ", Adam" * (name == "vgg38")
        for value in last if np.ptp(last) > 10 else [last.mean()]:
            told = textwrap.fill(f"{text}: {value:.1f}", 28, break_on_hyphens=False)
            beside.append((value, told, colour, histories.epoch.max()))
    beside.sort()
    places, half = [place for place, *_ in beside], [1 + text.count("\n") for _, text, *_ in beside]
    half = [0.025 * places[-1] * lines for lines in half]
    for _, i in product(range(100), range(1, len(places))):  # neighbours that overlap move apart
        overlap = max(0.0, places[i - 1] + half[i - 1] + half[i] - places[i])
        places[i - 1], places[i] = places[i - 1] - overlap / 2, places[i] + overlap / 2
    for (_, text, colour, epoch), place in zip(beside, places, strict=True):
        how = dict(color=colour, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        accuracy.annotate(text, (epoch, place), **how)
    gradient.set(
        yscale="log",
        xlabel="layer, input to output",
        ylabel="mean |dE/dW|",
        title="Before training: VGG38's gradient has vanished",
    )
    gradient.set_ylim(gradient.get_ylim()[0] / 1e4)  # room for the legend
    gradient.legend(frameon=False, fontsize=8, loc="lower right", ncols=2, columnspacing=1)
    accuracy.axhline(1, color="0.6", lw=0.8, ls=":")
    accuracy.set(
        ylabel="validation accuracy (%)",
        title="After: by Adam, VGG38 has learnt nothing",
        ylim=(0, places[-1] + half[-1]),
    )
    epoch_axis(accuracy)
    stamp(fig, names, results)
    return fig


def histories(
    panels: dict[str, dict[str, str]], metric: str = "loss", results: Path | str | None = None
) -> Figure | None:
    """The "loss" (nats) or "acc" (%) of runs by epoch, in panels: title -> label -> run. None if none is recorded.

    Training dashed, validation solid, one line per seed. A label has one colour in all panels, that of its first run
    if it has one; the panels share one scale. The legend says what has no record.
    """
    fig, drawn = Figure(figsize=(max(9.5, 4.2 * len(panels)), 4)), []
    first = {text: name for names in reversed(panels.values()) for text, name in names.items()}
    free = (colour for colour in PALETTE if colour not in {look(name)[0] for name in first.values()})
    colour = {text: look(name)[0] or next(free) for text, name in first.items()}
    sharing = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, names) in zip(sharing, panels.items(), strict=True):
        for text, name in names.items():
            history = records.load_series(name, "history.csv", results)
            axes.plot([], [], color=colour[text], label=text if len(history) else f"{text}: not measured")
            drawn += [name] * bool(len(history))
            by_epoch(axes, history, metric, colour[text])
        axes.set_title(heading)
        epoch_axis(axes)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    ylabel = ("cross-entropy (nats)" if metric == "loss" else "accuracy (%)") + "; dashed: training"
    sharing[0].set(ylabel=ylabel, ylim=(0, None))
    if not drawn:
        return None
    stamp(fig, drawn, results)
    return fig


def stamp(fig: Figure, names: list[str], results: Path | str | None = None, seed: int | None = None) -> None:
    """Note below the figure where the numbers come from (the records of all seeds, or of one) and what is missing."""
    runs = records.load_runs(results)
    runs = runs[runs.run.isin(names) & ((seed is None) | (runs.seed == seed))]
    seeds = ", ".join(str(s) for s in sorted(runs.seed.unique()))
    each = "single run" if runs.run.is_unique else f"n = {len(runs)} in all"
    commits, devices, precisions = (
        sorted(set(runs[column].str.split(", then ").explode())) for column in ("commit", "device", "precision")
    )
    commits = ", ".join(commit[:7] for commit in commits)
    devices = f"{'; '.join(devices)} ({', '.join(precisions)})"
    digests = runs.set_index("run").digest.items()
    sets = {find(n).dataset.partition("-")[0].replace("cifar", "CIFAR-"): digest[:8] for n, digest in digests}
    data = ", ".join(f"{name} {digest}" for name, digest in sets.items())
    missing = [name for name in names if name not in set(runs.run)]
    absent = f"not measured: {', '.join(missing)}\n" if missing else ""
    told = f"{data} · {each}, seed {seeds} · commit {commits} · {devices}"
    told = textwrap.fill(told, int(19 * fig.get_figwidth()), break_on_hyphens=False)
    fig.supxlabel(absent + told, fontsize=6.5, color="0.45", x=0.99, ha="right")


def encode(fig: Figure, kind: str, dpi: int = 150) -> bytes:
    """The figure as an "svg" or "png" file, without dates or versions."""
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, metadata=metadata, dpi=dpi)
    return buffer.getvalue()


def render(out: Path | str, results: Path | str | None = None):
    """Write every figure that has a record behind it.

    Yields: (name, None) for what was written, (name, what is missing) for what was not.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("headline", *EXHIBITS):
        fig = draw(name, results) if name in EXHIBITS else headline(results)
        for kind in ("svg", "png") if fig else ():
            write_atomically(out / f"{name}.{kind}", encode(fig, kind))
        runs = unmeasured(name, results) if name in EXHIBITS else ["any run of the story"]
        yield name, None if fig else f"not measured: {', '.join(runs)}"
