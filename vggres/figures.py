"""The reports' figures, redrawn from the records, and the headline; the same bytes on every render."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from vggres import records
from vggres.files import write_atomically
from vggres.runs import find
from vggres.tables import SHORT, label, table_1

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
PALETTE = sns.color_palette("colorblind")
# One colour and marker a network in every figure.
STYLE = {
    "vgg08": (PALETTE[4], "o"),
    "vgg38": (PALETTE[3], "v"),
    "vgg38-bn": (PALETTE[1], "s"),
    "vgg38-rc": (PALETTE[2], "^"),
    "vgg38-bn-rc": (PALETTE[0], "D"),
}
# Exhibits of report A: how each is drawn, and from which runs.
EXHIBITS = {
    "A-figure-1": ("curves", ["vgg08", "vgg38"]),
    "A-figure-2": ("flow", ["vgg08"]),
    "A-figure-3": ("flow", ["vgg38"]),
    "A-figure-4": ("curves", ["vgg38-bn-rc-lr1e-2"]),
    "A-figure-5": ("flow", ["vgg38-bn-rc-lr1e-2"]),
    "A-figure-6": ("curves", ["vgg38-bn"]),
}


def recorded(name: str, results: Path | str | None = None) -> str | None:
    """The run of that name, or else its five-epoch version, whichever has a record; None if neither has."""
    for candidate in (name, f"{name}-5ep"):
        if len(records.load_series(candidate, "history.csv", results)):
            return candidate
    return None


def title(name: str) -> str:
    """The network, with the learning rate and the epochs where they are not Table 1's defaults."""
    run = find(name)
    notes = [f"lr {run.lr:g}"] * (run.lr != 1e-3) + [f"{run.epochs} epochs only"] * (run.epochs != 100)
    return label(run) + (f" ({', '.join(notes)})" if notes else "")


def curves(names: list[str], results: Path | str | None = None) -> Figure:
    """Loss and accuracy by epoch: training faint and dashed, validation solid, one colour a run, a line a seed.

    A star at the last epoch is what report A's Table 1 prints for the validation set.
    """
    fig = Figure(figsize=(8, 3.4))
    loss, acc = fig.subplots(1, 2)
    told = table_1(results, names).set_index(["run", "metric"]).reported
    for name in names:
        colour, text = STYLE[find(name).model][0], title(name)
        for axes, metric, scale in ((loss, "loss", 1), (acc, "acc", 100)):
            axes.plot([], [], color=colour, label=text)
            axes.plot(
                find(name).epochs, scale * told[name, f"val_{metric}"], "*", color=colour, ms=9, mec="black", mew=0.6
            )
            for _, history in records.load_series(name, "history.csv", results).groupby("seed"):
                axes.plot(history.epoch, scale * history[f"train_{metric}"], "--", color=colour, alpha=0.5, lw=1.2)
                axes.plot(history.epoch, scale * history[f"val_{metric}"], color=colour, lw=1.5)
    loss.axhline(np.log(100), color="0.6", lw=0.8, ls=":")
    acc.axhline(1, color="0.6", lw=0.8, ls=":")
    loss.set(ylabel="cross-entropy (nats)", title="Loss (dotted: guessing, ln 100)")
    acc.set(ylabel="accuracy (%)", title="Accuracy (dotted: guessing, 1 %)", ylim=(0, None))
    loss.plot([], [], "--", color="0.4", lw=1.2, label="training")
    loss.plot([], [], color="0.4", lw=1.5, label="validation")
    if told.notna().any():
        loss.plot([], [], "*", color="0.4", ms=9, mec="black", mew=0.6, label="validation, reported")
    loss.legend(frameon=False)
    for axes in fig.axes:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    stamp(fig, names, results)
    return fig


def flow(names: list[str], results: Path | str | None = None) -> Figure:
    """Gradient flow by layer, a line an epoch, of the first seed: the reports' linear axis beside a logarithmic one."""
    (name,) = names
    table = records.load_series(name, "gradients.csv", results)
    seed = table.seed.min()
    table = table[table.seed == seed]
    layers, colour = [c for c in table if c not in ("epoch", "seed")], STYLE[find(name).model][0]
    x = np.arange(1, len(layers) + 1)
    fig = Figure(figsize=(8, 3.4))
    for axes, scale in zip(fig.subplots(1, 2), ("linear", "log"), strict=True):
        for _, row in table.iterrows():
            start = row.epoch == 0
            style = (
                dict(color="black", lw=1.4, zorder=3)
                if start
                else dict(color=colour, lw=1, alpha=min(0.6, max(0.12, 4 / len(table))))
            )
            axes.plot(x, row[layers].astype(float), **style)
        axes.set_yscale(scale)
        depth_axis(axes, layers)
    linear, log = fig.axes
    linear.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    linear.set(ylabel="mean |dE/dW|", title="as the reports draw it", ylim=(0, None))
    log.set(title="on a logarithmic axis")
    fig.suptitle(title(name), fontsize=10)
    log.plot([], [], color="black", lw=1.4, label="before the first step")
    log.plot([], [], color=colour, lw=1.4, label="last mini-batch of an epoch")
    log.legend(frameon=False)
    stamp(fig, names, results, seed)
    return fig


def depth_axis(axes, layers: list[str]) -> None:
    """Layers by number in forward order, with a line after each stage, where the image is halved."""
    ends = [i + 1 for i, layer in enumerate(layers) if ".reduce." in layer and layer.endswith("conv2")]
    for end in ends:
        axes.axvline(end + 0.5, color="0.8", lw=0.8, zorder=0)
    axes.xaxis.set_major_locator(FixedLocator([1, *ends[:-1], len(layers)]))
    axes.set(xlabel="layer, input to output (lines: end of a stage)", xlim=(0.5, len(layers) + 0.5))
    axes.grid(False, axis="x")


def headline(results: Path | str | None = None) -> Figure | None:
    """The story in one figure: the gradient before the first step decides what learns. None without records.

    It shows Table 1's nets at learning rate 1e-3 where all are recorded, else their five-epoch runs.
    """
    full = [name.removesuffix("-5ep") for name in SHORT]
    names = full if all(recorded(n, results) == n for n in full) else [n for n in SHORT if recorded(n, results)]
    if not names:
        return None
    fig = Figure(figsize=(9.5, 4.2))
    gradient, accuracy = fig.subplots(1, 2, width_ratios=(1.25, 1))
    for name in names:
        (colour, marker), text = STYLE[find(name).model], label(find(name))
        style = dict(color=colour, marker=marker, ms=3.5, lw=1.4)
        table = records.load_series(name, "gradients.csv", results)
        start = table[(table.epoch == 0) & (table.seed == table.seed.min())].drop(columns=["epoch", "seed"]).iloc[0]
        gradient.plot(np.arange(1, len(start) + 1), start, label=text, **style)
        for _, history in records.load_series(name, "history.csv", results).groupby("seed"):
            accuracy.plot(history.epoch, 100 * history.val_acc, **style | dict(ms=3.5 if len(history) < 20 else 0))
            end = history.iloc[-1]
        accuracy.annotate(
            text,
            (end.epoch, 100 * end.val_acc),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
        )
    gradient.set(
        yscale="log",
        xlabel="layer, input to output",
        ylabel="mean |dE/dW|",
        title="Before the first step: the gradient of each layer",
    )
    gradient.legend(frameon=False, loc="lower right")
    accuracy.axhline(1, color="0.6", lw=0.8, ls=":")
    accuracy.set(
        xlabel="epoch",
        ylabel="validation accuracy (%)",
        title="After it: what each net learns",
        ylim=(0, None),
    )
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    stamp(fig, names, results)
    return fig


def histories(
    panels: dict[str, dict[str, str]], metric: str = "loss", results: Path | str | None = None
) -> Figure | None:
    """The "loss" (nats) or "acc" (%) of runs by epoch, in panels: title -> label -> run. None if none is recorded.

    Training dashed, validation solid, one colour a label, a line a seed; what has no record says so in the legend.
    """
    fig, drawn = Figure(figsize=(4.2 * len(panels), 3.4)), []
    for axes, (heading, names) in zip(np.ravel(fig.subplots(1, len(panels))), panels.items(), strict=True):
        for colour, (text, name) in zip(PALETTE, names.items(), strict=False):
            history, scale = records.load_series(name, "history.csv", results), 1 if metric == "loss" else 100
            axes.plot([], [], color=colour, label=text if len(history) else f"{text}: not measured")
            drawn += [name] * bool(len(history))
            for _, seed in history.groupby("seed"):
                axes.plot(seed.epoch, scale * seed[f"train_{metric}"], "--", color=colour, alpha=0.5, lw=1.2)
                axes.plot(seed.epoch, scale * seed[f"val_{metric}"], color=colour, lw=1.5)
        axes.set(title=heading, xlabel="epoch", ylabel="cross-entropy (nats)" if metric == "loss" else "accuracy (%)")
        axes.set_ylim(0, None)
        axes.legend(frameon=False)
    if not drawn:
        return None
    stamp(fig, drawn, results)
    return fig


def stamp(fig: Figure, names: list[str], results: Path | str | None = None, seed: int | None = None) -> None:
    """Where the numbers come from, from the records of all seeds or of one: below the figure."""
    runs = records.load_runs(results)
    runs = runs[runs.run.isin(names) & ((seed is None) | (runs.seed == seed))]
    seeds = ", ".join(str(s) for s in sorted(runs.seed.unique()))
    each = "single run" if len(runs) == len(names) else f"n = {len(runs)} in all"
    commits, devices = (", ".join(sorted(set(c))) for c in (runs.commit.str[:7], runs.device + ", " + runs.precision))
    digests = runs.set_index("run").digest.items()
    sets = {find(n).dataset.partition("-")[0].replace("cifar", "CIFAR-"): digest[:8] for n, digest in digests}
    data = ", ".join(f"{name} {digest}" for name, digest in sets.items())
    fig.supxlabel(
        f"{data} · {each}, seed {seeds} · commit {commits} · {devices}",
        fontsize=6.5,
        color="0.45",
        x=0.99,
        ha="right",
    )


def encode(fig: Figure, kind: str, dpi: int = 150) -> bytes:
    """The figure as an "svg" or "png" file without dates or versions in it."""
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, metadata=metadata, dpi=dpi)
    return buffer.getvalue()


def save(fig: Figure, out: Path, name: str) -> None:
    """Write NAME.svg and NAME.png."""
    for kind in ("svg", "png"):
        write_atomically(out / f"{name}.{kind}", encode(fig, kind))


def render(out: Path | str, results: Path | str | None = None):
    """Write every figure that has a record behind it.

    Yields: (name, None) for what was written, (name, what is missing) for what was not.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    fig = headline(results)
    if fig:
        save(fig, out, "headline")
    yield "headline", None if fig else "no run of the story is recorded"
    for exhibit, (how, names) in EXHIBITS.items():
        have = [found for name in names if (found := recorded(name, results))]
        if have:
            save({"curves": curves, "flow": flow}[how](have, results), out, exhibit)
        yield exhibit, None if have else f"not measured: {', '.join(names)}"
