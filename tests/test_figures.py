"""Figures: the plotted data, and the same bytes on every render."""

import hashlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from typer.testing import CliRunner

from vggres import figures, records
from vggres.cli import app
from vggres.errors import UserError
from vggres.runs import MENDED, MENDED_68, RUNS

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "figures"


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The folder to which the command wrote, and what it said of each figure."""
    out = tmp_path_factory.mktemp("figures")
    done = CliRunner().invoke(app, ["figures", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out, dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_rendering_again_gives_the_bytes_that_are_committed(rendered):
    versions = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("matplotlib==")]
    if versions != [f"matplotlib=={matplotlib.__version__}"]:
        pytest.skip(f"figures are rendered by {versions}; here is {matplotlib.__version__}")
    assert hashes(KEPT) == hashes(rendered[0]), "run `vggres figures`"


def test_what_is_not_measured_is_said_and_not_drawn(rendered):
    (out, said), recorded = rendered, set(records.load_runs().run)
    assert set(said) == {"headline", *figures.EXHIBITS}
    for name, told in said.items():
        missing = None if told == f"{out / name}.svg, .png" else told
        assert (out / f"{name}.svg").exists() == (out / f"{name}.png").exists() == (missing is None)
        if name in figures.EXHIBITS:
            compared = set(figures.EXHIBITS[name][1])
            assert set(figures.unmeasured(name)) == compared - recorded
            assert (missing is None) == (len(compared & recorded) >= min(len(compared), 2))
            assert missing in (None, f"not measured: {', '.join(figures.unmeasured(name))}")


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
    linear, log = figures.flow("vgg08").axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    for axes in (linear, log):
        drawn = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == table.shape[1]]
        assert np.array_equal(drawn, table.to_numpy())


def test_the_headline_names_each_seed_where_they_lie_far_apart(monkeypatch):
    load = records.load_series

    def cut(name, file, results=None):
        table = load(name, file, results)
        return table[(table.seed != 2) | (table.epoch <= 5)] if name == "vgg38-bn" else table

    monkeypatch.setattr(records, "load_series", cut)
    last = 100 * cut("vgg38-bn", "history.csv").groupby("seed").val_acc.last()
    texts = [" ".join(text.get_text().split()) for text in figures.headline().axes[1].texts]
    assert np.ptp(last) > 10 and {f"VGG38 BN: {end:.1f}" for end in last} <= set(texts)


def test_the_headline_shows_the_gradient_before_the_first_step_and_what_is_then_learnt():
    start = (
        records.load_series("vgg38", "gradients.csv").query("seed == 0 and epoch == 0").drop(columns=["epoch", "seed"])
    )
    learnt = records.load_series("vgg38", "history.csv").query("seed == 0").val_acc
    for axes, values in zip(figures.headline().axes, (start.iloc[0], 100 * learnt), strict=True):
        assert any(np.array_equal(line.get_ydata(), values) for line in axes.lines)


def test_a_figure_carries_its_provenance():
    commit = records.load_runs().set_index(["run", "seed"]).loc[("vgg08", 0), "commit"]
    assert commit[:7] in figures.flow("vgg08")._supxlabel.get_text()


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    """Records of report B's set 2, but for one run; of three epochs, for the layout only."""
    out = tmp_path_factory.mktemp("results")
    for i, name in enumerate(figures.EXHIBITS["B-set-2"][1][:3]):
        row = dict(train_loss=1.0, train_acc=0.5, val_loss=1.0, lr=1e-3, seconds=1.0)
        history = [row | dict(epoch=e, val_acc=0.1 * (i + e)) for e in (1, 2, 3)]
        parts = {key: {} for key in records.PARTS} | {"run": RUNS[name].to_dict(), "seed": 0, "status": "completed"}
        parts |= {"device": dict(name="none", type="cpu", precision="fp32"), "git": {"commit": "0" * 40}}
        parts |= {"data": {"digest_train": "0" * 64}, "time": {"wall_s": 3.0}, "model": {"params": 1}}
        parts |= {"env": {"torch": "none"}, "result": records.summarise(history)}
        folder = records.folder_of(out, name, 0)
        folder.mkdir(parents=True)
        records.write(folder, parts, history, [{"epoch": 0, "entry.conv": 1.0, "head": 2.0}])
    return out


def test_a_set_is_drawn_from_what_is_recorded_and_says_what_is_missing(invented):
    fig = figures.draw("B-set-2", invented)
    drawn = {line.get_color(): line.get_ydata() for line in fig.axes[1].lines if len(line.get_xdata()) == 3}
    assert sorted(y[-1] for y in drawn.values()) == pytest.approx([30, 40, 50])
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names[:3] == ["VGG38 ResNet", *(f"VGG38 ResNet\nweight decay {decay}" for decay in ("0.0001", "0.001"))]
    assert "not measured: vgg38-resnet-wd1e-2" in fig._supxlabel.get_text()
    stars = [line for line in fig.axes[1].lines if line.get_marker() == "*"]
    white, filled = (
        {round(y, 2) for line in stars if (line.get_color() == "white") is told for y in line.get_ydata()}
        for told in (True, False)
    )
    assert white == {86.26, 88.23, 87.83} and filled == {62.32, 61.76, 61.36, 62.64, 65.32}


def test_settings_show_what_is_reported_and_each_seed_measured(invented):
    names = figures.EXHIBITS["B-set-2"][1]
    (axes,) = figures.settings(names, invented).axes
    marks = {
        m: [(round(y), round(x, 2)) for line in axes.lines if line.get_marker() == m for x, y in line.get_xydata()]
        for m in "*o"
    }
    assert marks["o"] == [(0, 30), (1, 40), (2, 50)]
    assert marks["*"] == [(0, 62.32), (0, 61.76), (0, 61.36), (1, 62.64), (2, 65.32), (3, 53.52)]


def test_an_exhibit_that_is_not_measured_is_not_drawn(tmp_path):
    assert figures.draw("B-set-2", tmp_path) is None
    assert figures.unmeasured("B-set-2", tmp_path) == figures.EXHIBITS["B-set-2"][1]
    with pytest.raises(UserError, match="B-set-2"):
        figures.draw("B-set-7")


def test_every_network_of_the_story_has_its_own_colour_and_marker():
    colours, markers = zip(*figures.STYLE.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(figures.STYLE)


def test_runs_of_the_story_keep_their_colours_and_runs_that_look_alike_do_not():
    story = ["vgg38-5ep", "vgg38-bn-5ep", f"{MENDED.name}-5ep", f"{MENDED_68.name}-5ep"]
    assert figures.colours(story) == [figures.look(name)[0] for name in story]
    fig = figures.curves(story)
    assert {len(line.get_xdata()) for axes in fig.axes for line in axes.lines} == {0, 2, 5}, "guessing has two points"
    history = records.load_series("vgg38-bn-5ep", "history.csv").query("seed == 0")
    for axes, values in zip(fig.axes, (history.train_loss, 100 * history.val_acc), strict=True):
        (own,) = (line for line in axes.lines if np.array_equal(line.get_ydata(), values))
        assert own.get_color() == figures.look("vgg38-bn")[0]
    assert len(set(figures.colours(["vgg38-resnet", "vgg38-resnet-wd1e-3", "vgg16-bn-rc-wd1e-3-batch264-300ep"]))) == 3


def test_histories_show_each_seed_and_say_what_is_not_measured():
    other = next(name for name in RUNS if name not in set(records.load_runs().run))
    panels = {"one": {"VGG08": "vgg08", "another": other}, "two": {"short": "vgg38-5ep"}}
    fig = figures.histories(panels, "acc")
    history = records.load_series("vgg08", "history.csv")
    drawn = [line.get_ydata() for line in fig.axes[0].lines if len(line.get_ydata())]
    assert len(drawn) == 2 * history.seed.nunique()
    assert np.array_equal(drawn[1], 100 * history[history.seed == 0].val_acc)
    assert "another: not measured" in [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert fig._supxlabel.get_text().startswith("CIFAR-100 6d2a03c4 · ")
    assert figures.histories({"none": {"another": other}}) is None


def test_histories_draw_a_label_in_one_colour_in_all_panels_and_on_one_scale():
    fig = figures.histories({"one": {"a": "vgg38-bn-5ep", "b": "vgg38-5ep"}, "two": {"b": "vgg08"}}, "acc")
    one, two = fig.axes
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in (one, two)]
    assert colours[0]["b"] == colours[1]["b"] != colours[0]["a"]
    drawn = [y for axes in (one, two) for line in axes.lines for y in line.get_ydata()]
    assert one.get_ylim() == two.get_ylim() and 0 == one.get_ylim()[0] < max(drawn) <= one.get_ylim()[1]
