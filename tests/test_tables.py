"""Reported against measured, and the README's generated part."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from vggres import records, tables
from vggres.models import MODELS
from vggres.runs import FIXES, RUNS, TABLE_1, Run

ROOT = Path(__file__).parent.parent


def measured(monkeypatch, **columns):
    """Pretend that these records exist, in memory only."""
    monkeypatch.setattr(records, "load_runs", lambda results: pd.DataFrame(columns))


def test_reported_accuracies_are_fractions():
    told = tables.reported().set_index(["report", "exhibit", "run", "metric"]).value
    assert told["A", "Table 1", "vgg08", "val_acc"] == pytest.approx(0.4684)
    assert told["A", "Table 1", "vgg38", "val_acc"] == pytest.approx(0.01)
    assert told["B", "Set 1", "vgg38", "val_acc"] == pytest.approx(0.0064)
    assert told["A", "Table 1", "vgg38-bn-rc-lr1e-2", "train_loss"] == pytest.approx(0.93)


def test_every_registered_exhibit_is_reported_under_that_run():
    told = tables.reported()
    for run in RUNS.values():
        for exhibit in run.exhibits:
            report, name = exhibit.split("/")
            if name.startswith(("Table", "Set")) and name != "Set 1a":
                here = told[(told.report == report) & (told.exhibit == name) & (told.run == run.name)]
                assert "val_acc" in set(here.metric), f"{run.name}: {exhibit}"


def test_the_rows_of_reports_a_and_b_name_networks_that_exist():
    told = tables.reported()
    for name in told[told.report.isin(["A", "B"])].run.unique():
        assert any(name == model or name.startswith(f"{model}-") for model in MODELS), name


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("vgg38-bn-rc", "VGG38 BN + RC"),
        ("resnet34-no-bn", "ResNet-34 without BN"),
        ("resnet18-dropout", "ResNet-18 with dropout"),
        ("basenet", "BaseNet"),
        ("basenet-6", "BaseNet, step 6"),
        ("inception", "Inception"),
    ],
)
def test_networks_are_called_as_the_reports_call_them(model, label):
    assert tables.label(Run(model)) == label


def test_a_row_without_a_record_says_not_measured(tmp_path):
    (tmp_path / "reported.csv").write_text((ROOT / "results" / "reported.csv").read_text())
    text = tables.as_text(tables.table_1(tmp_path))
    assert text.shape == (len(TABLE_1), 4 * 2 + 1) and set(text["n"].squeeze()) == {"0"}
    assert (text.xs("measured", axis=1, level=1) == "not measured").all(axis=None)
    assert "46.84 | not measured | – | – | 0 | not measured |" in tables.markdown(
        tables.table_1(tmp_path), tables.verdicts(tmp_path)
    )


def test_one_seed_has_no_interval(monkeypatch):
    zero = [0.5]
    measured(monkeypatch, run=["vgg08"], train_loss=zero, train_acc=zero, val_loss=zero, val_acc=zero)
    row = tables.table_1(ROOT / "results").iloc[3]
    assert (row.run, row.metric, row.n) == ("vgg08", "val_acc", 1)
    assert tables.format_cells(row) == ("46.84", "50.00", "single run")


def test_the_interval_is_student_t_over_seeds(monkeypatch):
    values = [0.46, 0.47, 0.50]
    measured(monkeypatch, run=["vgg08"] * 3, train_loss=values, train_acc=values, val_loss=values, val_acc=values)
    row = tables.table_1(ROOT / "results").iloc[3]
    low, high = stats.t.interval(0.95, 2, loc=row.measured, scale=pd.Series(values).sem())
    assert row.interval == pytest.approx((high - low) / 2) and row.n == 3
    text = tables.as_text(tables.table_1(ROOT / "results"))
    assert text.loc[("VGG08", "0.001"), ("validation accuracy (%)", "measured")] == "47.67 ± 5.17"
    text = tables.markdown(tables.table_1(ROOT / "results"), tables.verdicts(ROOT / "results"))
    assert "| 46.84 | 47.67 | ± 5.17 | ± 10.7 | 3 | reproduced |" in text


def test_a_collapsed_run_is_shown_and_not_averaged_away(monkeypatch):
    values = [0.01, 0.55]
    measured(monkeypatch, run=["vgg38-rc"] * 2, train_loss=values, train_acc=values, val_loss=values, val_acc=values)
    row = tables.table_1(ROOT / "results").set_index(["run", "metric"]).loc[("vgg38-rc", "val_acc")]
    assert row.measured == pytest.approx(0.28) and row.interval > 1


def test_a_diverged_run_is_not_left_out_of_the_mean(monkeypatch):
    losses, values = [2.0, 2.1, None], [0.4, 0.5, 0.01]
    measured(monkeypatch, run=["vgg08"] * 3, train_loss=losses, train_acc=values, val_loss=losses, val_acc=values)
    text = tables.as_text(tables.table_1(ROOT / "results")).loc[("VGG08", "0.001")]
    assert text["training loss", "measured"] == "not finite" and text["n", ""] == "3"
    assert text["validation accuracy (%)", "measured"].startswith("30.33 ±")
    judged = tables.verdicts(ROOT / "results").query("run == 'vgg08' and metric == 'train_loss'")
    assert set(judged.verdict) == {"diverged"} and judged.n.eq(3).all() and judged.prediction.isna().all()


def test_the_readme_is_current():
    text = (ROOT / "README.md").read_text()
    assert tables.update_readme(text) == text, "run `vggres tables --readme README.md`"


def test_the_readme_counts_the_verdicts_as_they_are():
    trained = tables.verdicts().query("metric != 'params'")
    found = trained[trained.verdict.isin(["reproduced", "outside"])]
    one, right = found[found.exhibit == "Table 1"], found[found.verdict == "reproduced"]
    told = " ".join((ROOT / "README.md").read_text().split())
    missing = (trained.verdict == "not measured").sum()
    assert f"Of the {len(trained)} that need training {missing} are not measured yet" in told
    assert f"and {len(found)} have a verdict: {len(right)} are *reproduced*" in told
    given = "losses and accuracies in the five rows that its course gave are reproduced"
    assert f"{(one.verdict == 'reproduced').sum()} of the {len(one)} {given}" in told
    beside = found[(found.report == "A") & (found.exhibit != "Table 1")]
    assert (beside.verdict == "reproduced").all() and len(beside) == 1  # "and the one beside it"
    assert f"{(right.report == 'B').sum()} of their {(found.report == 'B').sum()} numbers are reproduced" in told


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="table 1 begins"):
        tables.update_readme("# Another file")


@pytest.mark.parametrize(
    ("values", "told", "decimals", "expected"),
    [
        ([], 0.5, 4, "not measured"),
        ([0.5], 0.5, 4, "single run"),
        ([0.49, 0.51], 0.5, 4, "two runs"),
        ([0.49, 0.50, 0.51], 0.5, 4, "reproduced"),
        ([0.49, 0.50, 0.51], 0.549, 4, "reproduced"),  # 4.303 * 0.01 * sqrt(4 / 3) = 0.0497
        ([0.49, 0.50, 0.51], 0.551, 4, "outside"),
        ([0.49, 0.50, 0.51], 0.6, 0, "reproduced"),  # printed as "1": anything from 0.5 to 1.5
        ([0.5, 0.5, 0.5], 0.5001, 4, "outside"),
        ([0.5, 0.5, 0.5], 0.50005, 4, "reproduced"),
    ],
)
def test_the_verdict_is_one_rule(values, told, decimals, expected):
    assert tables.verdict(told, decimals, pd.Series(values, dtype=float)) == expected


def test_the_sampling_error_of_the_evaluation_widens_the_interval():
    same = pd.Series([0.5, 0.5, 0.5])
    assert tables.prediction(same) == 0
    assert tables.prediction(same, other_images=2500) == pytest.approx(1.96 * 0.5 / 50 * 2**0.5, rel=1e-3)


def test_a_new_run_falls_into_the_prediction_interval_19_times_of_20():
    draws = np.random.default_rng(0).normal(0.5, 0.01, (2000, 4))
    inside = [abs(row[3] - row[:3].mean()) <= tables.prediction(pd.Series(row[:3])) for row in draws]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_every_number_of_reports_a_and_b_has_a_verdict():
    table = tables.verdicts()
    assert len(table) == 124 and set(table.report) == {"A", "B"}
    words = ["reproduced", "outside", "other recipe", "single run", "two runs", "not measured"]
    assert table.verdict.isin(words).all()
    other = table[table.verdict == "other recipe"]
    assert set(other.run) == {*tables.OTHERWISE} and set(other.report) == {"A"} and other.prediction.isna().all()
    counts = table[table.metric == "params"]
    assert (counts.verdict == "reproduced").all() and len(counts) == 15
    assert (table.measured.isna() == (table.verdict == "not measured")).all()


def test_verdicts_without_any_record_are_not_measured(tmp_path):
    shutil.copy(records.default_root() / "reported.csv", tmp_path)
    table = tables.verdicts(tmp_path)
    assert (table[table.metric != "params"].verdict == "not measured").all()


def test_what_else_has_a_row_for_each_fix_and_says_what_is_measured():
    table = tables.what_else()
    rows = {(row.Index, row.n) for row in table.itertuples()}
    assert (("VGG38", "0.001", 5), 1) in rows
    assert table.index.is_unique and len(table) > len(FIXES) + 6
    for row in table.to_dict("records"):
        assert (row["n"] == 0) == (row["test (%)"] == "not measured")
    measured = records.load_runs().set_index(["run", "seed"]).loc[("vgg38-bn-5ep", 0)]
    told = table.loc[("VGG38 BN", "0.001", 5)]
    assert told["test (%)"] == f"{100 * measured.test_acc:.2f}"
    assert told["training loss"] == f"{measured.train_loss:.2f}"
    assert table.loc[("VGG68, delta-orthogonal, slope 0.49", "0.0004", 100), "parameters"] == "612,676"


def test_any_runs_are_compared_as_reported_and_as_measured(monkeypatch):
    deep, first = "basenet-sgd-lr5e-3-own-statistics", "basenet-0-sgd-lr5e-3-unnormalised-no-augment-30ep"
    measured(monkeypatch, run=[first, first, "vgg08"], val_acc=[0.2, 0.3, 0.9], test_acc=[0.1, 0.1, 0.1])
    table = tables.compare({"first": first, "BaseNet": deep}, results=ROOT / "results")
    assert table.reported.tolist() == [0.23, 0.65] and table.n.tolist() == [2, 0]
    words = tables.in_words(table)
    assert words.loc["first"].tolist() == ["23.00", "25.00", "two runs", "2"]
    assert words.loc["BaseNet"].tolist() == ["65.00", "not measured", "–", "0"]
    tested = tables.in_words(tables.compare({"BaseNet": deep}, "test_acc", ROOT / "results"))
    assert tested.loc["BaseNet", "reported"] == "62.60"


def test_the_log_of_report_d_is_not_taken_for_its_result():
    whole = next(n for n in RUNS if n.startswith("resnet18-cifar100-30-from-cifar10-90ep-sgd"))
    assert tables.compare({"whole": whole}, "train_acc").reported.tolist() == [0.9457]
    log = tables.reported().query("exhibit.str.startswith('Part 2, epoch')")
    assert len(log) == 60 and set(log.run) == {whole}


def test_of_several_reported_values_none_is_taken_silently():
    assert len(tables.reported().query("run == 'vgg08' and metric == 'val_acc'")) > 1
    with pytest.raises(ValueError):
        tables.compare({"VGG08": "vgg08"})
