"""Figures: the plotted data, and the same bytes on every render."""

import hashlib
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from vggres import figures, records
from vggres.runs import RUNS

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "figures"


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    return out, dict(figures.render(out))


def test_rendering_again_in_another_process_gives_the_same_bytes(rendered, tmp_path):
    subprocess.run([sys.executable, "-m", "vggres", "figures", "--out", str(tmp_path)], check=True, capture_output=True)
    assert hashes(tmp_path) == hashes(rendered[0])


def test_the_committed_figures_are_current(rendered):
    versions = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("matplotlib==")]
    if versions != [f"matplotlib=={matplotlib.__version__}"]:
        pytest.skip(f"figures are rendered by {versions}; here is {matplotlib.__version__}")
    assert hashes(KEPT) == hashes(rendered[0]), "run `vggres figures`"


def test_what_is_not_measured_is_said_and_not_drawn(rendered):
    out, said = rendered
    assert set(said) == {"headline", *figures.EXHIBITS}
    for name, missing in said.items():
        assert (out / f"{name}.svg").exists() == (out / f"{name}.png").exists() == (missing is None)
        if name in figures.EXHIBITS:
            assert (missing is None) == any(figures.recorded(run) for run in figures.EXHIBITS[name][1])


def test_curves_show_the_history_of_the_record():
    fig = figures.curves(["vgg08"])
    history = records.load_series("vgg08", "history.csv")
    history = history[history.seed == 0]
    drawn = [line.get_ydata() for line in fig.axes[1].lines if len(line.get_xdata()) == RUNS["vgg08"].epochs]
    assert any(np.array_equal(y, 100 * history.val_acc) for y in drawn)
    assert any(np.array_equal(y, 100 * history.train_acc) for y in drawn)


def test_gradient_flow_shows_every_epoch_and_layer_of_the_record_on_both_axes():
    table = records.load_series("vgg08", "gradients.csv")
    table = table[table.seed == 0].drop(columns="seed").set_index("epoch")
    linear, log = figures.flow(["vgg08"]).axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    for axes in (linear, log):
        drawn = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == table.shape[1]]
        assert np.array_equal(drawn, table.to_numpy())


def test_what_else_shows_runs_of_one_length_and_the_history_of_each(tmp_path):
    assert figures.what_else(tmp_path) is None
    fig = figures.what_else()
    lengths = {len(line.get_xdata()) for axes in fig.axes for line in axes.lines if len(line.get_xdata()) > 2}
    assert len(lengths) == 1
    name = "vgg38-bn-5ep" if lengths == {5} else "vgg38-bn"
    history = records.load_series(name, "history.csv").query("seed == 0")
    for axes, values in zip(fig.axes, (history.train_loss, 100 * history.val_acc), strict=True):
        assert any(np.array_equal(line.get_ydata(), values) for line in axes.lines)


def test_a_figure_carries_its_provenance():
    commit = records.load_runs().set_index(["run", "seed"]).loc[("vgg08", 0), "commit"]
    assert commit[:7] in figures.flow(["vgg08"])._supxlabel.get_text()


def test_every_network_of_the_story_has_its_own_colour_and_marker():
    colours, markers = zip(*figures.STYLE.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(figures.STYLE)
