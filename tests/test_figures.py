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


def test_a_figure_carries_its_provenance():
    commit = records.load_runs().set_index(["run", "seed"]).loc[("vgg08", 0), "commit"]
    assert commit[:7] in figures.flow(["vgg08"])._supxlabel.get_text()


def test_every_network_of_the_story_has_its_own_colour_and_marker():
    colours, markers = zip(*figures.STYLE.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(figures.STYLE)


def test_histories_show_each_seed_and_say_what_is_not_measured():
    panels = {"one": {"VGG08": "vgg08", "VGG38": "vgg38-resnet"}, "two": {"short": "vgg38-5ep"}}
    fig = figures.histories(panels, "acc")
    history = records.load_series("vgg08", "history.csv")
    drawn = [line.get_ydata() for line in fig.axes[0].lines if len(line.get_ydata())]
    assert len(drawn) == 2 * history.seed.nunique()
    assert np.array_equal(drawn[1], 100 * history[history.seed == 0].val_acc)
    assert "VGG38: not measured" in [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert fig._supxlabel.get_text().startswith("CIFAR-100 6d2a03c4 · ")
    assert figures.histories({"none": {"VGG38": "vgg38-resnet"}}) is None
