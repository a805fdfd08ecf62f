"""Reported against measured: the reports' tables, joined to the records."""

import math
import re
from pathlib import Path

import pandas as pd
from scipy.special import ndtri, stdtrit  # quantiles; `scipy.stats` takes a second to import

from vggres import records
from vggres.errors import UserError
from vggres.models import build, count_parameters
from vggres.runs import FIXES, TABLE_1, Run, find, versions

OTHER_IMAGES = {"val_acc": 2_500}  # the reports' validation images are not ours; all else is (nearly) the same
OTHERWISE = ("vgg38-bn", "vgg38-bn-rc-lr1e-2")  # report A trained these two by another recipe than ours: chapter 07
METRICS = ("train_loss", "train_acc", "val_loss", "val_acc")
FEW = {1: "single run", 2: "two runs"}  # of which an interval would say nothing


def reported(results: Path | str | None = None) -> pd.DataFrame:
    """Every number that reports A, B and D print (C prints none), with accuracies as fractions of 1.

    Columns: report, exhibit, run, seed, metric, value, unit, decimals, note. A folder of results without its own
    `reported.csv` is compared with the repository's.

    Raises:
        UserError: neither exists.
    """
    places = [Path(root) / "reported.csv" for root in (results or records.default_root(), records.default_root())]
    if not (found := [place for place in places if place.exists()]):
        raise UserError(f"{places[0]}: not there; copy it from the repository's results/, or work in a clone")
    table = pd.read_csv(found[0])
    percent = table.unit == "%"
    table.loc[percent, "value"] /= 100
    table.loc[percent, "decimals"] += 2
    table.loc[percent, "unit"] = "fraction"
    return table


def label(run: Run) -> str:
    """The network as the reports write it: "VGG38 BN + RC", "ResNet-18 without BN"; then its initialisation, slope
    and optimiser where they are not the reports'."""
    if not run.model.startswith("vgg"):
        words = {"resnet": "ResNet-", "-no-bn": " without BN", "-dropout": " with dropout", "inception": "Inception"}
        words |= {"basenet-start-bn": "course's net with BN", "basenet-start": "course's net"}
        words |= {"basenet-no-skip": "BaseNet, plain", "basenet-": "BaseNet, step ", "basenet": "BaseNet"}
        return re.sub("|".join(words), lambda found: words[found[0]], run.model)
    model, *variant = run.model.split("-")
    words = {"bn": "BN", "rc": "RC", "resnet": "ResNet", "sigmoid": "sigmoid", "skipinit": "SkipInit"}
    notes = [run.init.replace("he", "He")] * (run.init != "default") + [f"slope {run.slope:g}"] * (run.slope != 0.01)
    notes += [run.optimizer.capitalize().replace("-", ", ", 1).replace("-", " ")] * (run.optimizer != "adam")
    return ", ".join([" ".join([model.upper(), " + ".join(words[v] for v in variant)]).strip(), *notes])


def _number(value: float) -> str:
    return "not finite" if math.isnan(value) else f"{value:.2f}"


def interval(values: pd.Series) -> float | None:
    """Half width of the 95 % Student-t confidence interval of the mean over seeds; None for a single run."""
    if len(values) < 2:
        return None
    return float(stdtrit(len(values) - 1, 0.975) * values.sem(skipna=False))


def _row(name: str, metric: str, runs: pd.DataFrame, told: pd.DataFrame) -> dict:
    """One metric of a run, as reported and as measured; NaN where it was not printed or not measured."""
    values = runs[runs.run == name][metric].astype(float)
    here = told[(told.run == name) & (told.metric == metric)].value
    both = {"reported": here.item() if len(here) else math.nan, "measured": values.mean(skipna=False)}
    return {"run": name, "metric": metric, **both, "interval": interval(values), "n": len(values)}


def table_1(results: Path | str | None = None, names: list[str] = TABLE_1) -> pd.DataFrame:
    """Report A's Table 1, or other runs: one row per run and metric.

    Columns: run, metric, reported, measured (mean over seeds), interval (half width), n, network, lr, params. What is
    not reported or not measured is NaN, and so is a mean over seeds of which one has diverged. Losses in nats,
    accuracies as fractions. Measured values are those after the last epoch.
    """
    runs, told = records.load_runs(results), reported(results).query("report == 'A' and exhibit == 'Table 1'")
    rows = []
    for run in map(find, names):
        heads = {"network": label(run), "lr": run.lr, "params": count_parameters(build(run.model))}
        rows += [_row(run.name, metric, runs, told) | heads for metric in METRICS]
    return pd.DataFrame(rows).astype({"interval": float})


def what_else(results: Path | str | None = None) -> pd.DataFrame:
    """The runs that no report has, for reading, below the nets of Table 1 that they are compared with.

    One row per run, indexed by network, learning rate and epochs: parameters, training loss (nats) and validation
    accuracy after the last epoch, test accuracy of the best epoch (%), mean over n seeds. A shorter run has a row
    only if it is recorded; a full-length run without a record says "not measured".
    """
    runs, rows = records.load_runs(results), []
    table_1 = [name for name in TABLE_1 if name.startswith("vgg38")]
    shorter = records.recorded((n for name in table_1 + FIXES for n in versions(name)[1:]), results)
    for run in map(find, [*table_1, *FIXES, *sorted(shorter, key=lambda n: -find(n).epochs)]):
        mine = runs[runs.run == run.name]
        row = {"network": label(run), "learning rate": f"{run.lr:g}", "epochs": run.epochs}
        row["parameters"] = f"{count_parameters(build(run.model)):,}"
        heads = {"training loss": (1, "train_loss"), "validation (%)": (100, "val_acc"), "test (%)": (100, "test_acc")}
        for head, (scale, metric) in heads.items():
            row[head] = _number(scale * mine[metric].astype(float).mean(skipna=False)) if len(mine) else "not measured"
        rows.append(row | {"n": len(mine)})
    return pd.DataFrame(rows).set_index(["network", "learning rate", "epochs"])


def prediction(values: pd.Series, other_images: int | None = None) -> float | None:
    """Half width of the 95 % interval in which one new run is expected, given those measured; None below three.

    `sqrt((t s)^2 (1 + 1/n) + z^2 2 p (1 - p) / other_images)`: Student's t with n - 1 degrees of freedom for a new
    seed; and, for an accuracy p over other images than ours, the sampling error of both sets. (A record does not tell
    that of a loss, whose interval is the first term alone.)
    """
    n = len(values)
    if n < 3 or values.isna().any():
        return None
    tail, mean = 0.975, values.mean()
    sampling = ndtri(tail) ** 2 * 2 * mean * (1 - mean) / other_images if other_images else 0.0
    return float(((stdtrit(n - 1, tail) * values.std()) ** 2 * (1 + 1 / n) + sampling) ** 0.5)


def verdict(told: float, decimals: float, values: pd.Series, other_images: int | None = None) -> str:
    """One rule for all numbers: "reproduced" when the reported value, anywhere within its printed precision, lies in
    the `prediction` interval, else "outside". With one or two runs, no verdict: "single run" or "two runs"; with
    none, "not measured"; and "diverged" where a value is not finite.

    Args:
        told, decimals: the reported value, in the unit of `values`, and how many digits of it are printed.
        values: one a seed, NaN where it is not finite.
        other_images: see `prediction`.
    """
    if not len(values):
        return "not measured"
    if values.isna().any():
        return "diverged"
    half = prediction(values, other_images)
    if half is None:
        return FEW[len(values)]
    return "reproduced" if abs(told - values.mean()) <= half + 0.5 * 10.0**-decimals + 1e-12 else "outside"


def verdicts(results: Path | str | None = None) -> pd.DataFrame:
    """Every number of reports A and B against what was measured.

    Columns: those of `reported`, then measured (mean over seeds), `prediction`, n, verdict, difference (reported -
    measured). Parameter counts need no training: their n is 0, and they are reproduced if they are right as printed.
    Where report A used another recipe than the run beside it (`OTHERWISE`), that is the verdict: "other recipe".
    """
    runs, told = records.load_runs(results), reported(results)
    told = told[told.report.isin(["A", "B"])].reset_index(drop=True)
    rows = []
    for row in told.itertuples():
        if row.metric == "params":
            values = pd.Series([count_parameters(build(find(row.run).model))])
            right = abs(row.value - values[0]) <= 0.5 * 10.0**-row.decimals
            rows.append((values[0], None, 0, "reproduced" if right else "outside"))
            continue
        if row.metric == "max_mean_abs_grad":
            flow = records.load_series(row.run, "gradients.csv", results)
            values = flow[flow.epoch > 0].drop(columns="epoch").groupby("seed").max().max(axis=1)
        else:
            values = runs[runs.run == row.run].get(row.metric, pd.Series(dtype=float)).astype(float)
        others = OTHER_IMAGES.get(row.metric)
        half, found = prediction(values, others), verdict(row.value, row.decimals, values, others)
        if row.report == "A" and row.run in OTHERWISE and len(values):
            half, found = None, "other recipe"
        rows.append((values.mean(skipna=False), half, len(values), found))
    told[["measured", "prediction", "n", "verdict"]] = pd.DataFrame(rows).astype({1: float})
    return told.assign(difference=told.value - told.measured)


def for_reading(verdicts: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` as text, accuracies in percent, by report, exhibit and run."""
    scale = verdicts.metric.str.endswith("acc").map({True: 100, False: 1})

    def text(values: pd.Series, form: str = ".4g") -> pd.Series:
        return (values * scale).map(lambda x: "–" if pd.isna(x) else format(x, form))

    columns = {
        "metric": verdicts.metric,
        "reported": text(verdicts.value),
        "measured": text(verdicts.measured),
        "difference": text(verdicts.difference, "+.4g"),
        "a new run, ±": text(verdicts.prediction, ".2g"),
        "n": verdicts.n,
        "verdict": verdicts.verdict,
    }
    return verdicts[["report", "exhibit", "run"]].assign(**columns).set_index(["report", "exhibit", "run"])


def format_cells(row) -> tuple[str, str, str]:
    """Reported, measured and interval of a row of `table_1` as text; accuracies in percent."""
    scale = 100 if row.metric.endswith("acc") else 1
    told = "–" if pd.isna(row.reported) else f"{scale * row.reported:.2f}"
    if row.n == 0:
        return told, "not measured", "–"
    spread = FEW.get(row.n) or ("–" if pd.isna(row.measured) else f"± {scale * row.interval:.2f}")
    return told, _number(scale * row.measured), spread


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """`table_1` for reading: one row per network; reported, and measured with its interval, side by side by metric.

    Accuracies in percent, losses in nats; the last column is the number of seeds.
    """
    heads = {"train_loss": "training loss", "train_acc": "training accuracy (%)"}
    heads |= {"val_loss": "validation loss", "val_acc": "validation accuracy (%)"}
    rows: dict[tuple, dict] = {}
    for row in table.itertuples():
        told, measured, spread = format_cells(row)
        line = rows.setdefault((row.network, f"{row.lr:g}"), {})
        line[heads[row.metric], "reported"] = told
        line[heads[row.metric], "measured"] = f"{measured} {spread}" if "±" in spread else measured
        line["n", ""] = "single run" if row.n == 1 else str(row.n)
    text = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["network", "learning rate"])
    return text[[*dict.fromkeys(c for c in text if c[0] != "n"), ("n", "")]]


def compare(names: dict[str, str], metric: str = "val_acc", results: Path | str | None = None) -> pd.DataFrame:
    """One metric of any runs, as reported and as measured: one row per label of `names` (label -> run).

    Columns: run, metric, reported, measured (mean over seeds), interval (half width), n; as in `table_1`.

    Raises:
        ValueError: the reports print several values for one of them, so none is *the* reported one.
    """
    runs, told = records.load_runs(results), reported(results)
    told = told[~told.exhibit.str.contains(", epoch")]
    rows = [_row(find(name).name, metric, runs, told) for name in names.values()]
    return pd.DataFrame(rows, index=list(names)).astype({"interval": float})


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """`compare` for reading: reported, measured, 95 % interval and n as text; accuracies in percent."""
    cells = [(*format_cells(row), str(row.n)) for row in table.itertuples()]
    return pd.DataFrame(cells, columns=["reported", "measured", "95 % interval", "n"], index=table.index)


def markdown(table: pd.DataFrame, judged: pd.DataFrame) -> str:
    """The validation accuracies of `table_1` as a Markdown table, with what `verdicts` says of the reported ones."""
    judged = judged[(judged.exhibit == "Table 1") & (judged.metric == "val_acc")][["run", "prediction", "verdict"]]
    table = table[table.metric == "val_acc"].merge(judged, how="left", on="run")
    heads = ["network", "learning rate", "parameters", "reported", "measured", "± of the mean", "± of a new run"]
    heads += ["n", "verdict"]
    lines = [heads, ["---"] * 2 + ["---:"] * 3 + ["---"] * 2 + ["---:", "---"]]
    for row in table.itertuples():
        told, measured, spread = format_cells(row)
        new_run = "–" if pd.isna(row.prediction) else f"± {100 * row.prediction:.1f}"
        cells = [row.network, f"{row.lr:g}", f"{row.params:,}", told, measured, spread, new_run]
        lines.append([*cells, str(row.n), "–" if pd.isna(row.verdict) else row.verdict])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cost(names: list[str], results: Path | str | None = None) -> str:
    """The commits at which these runs were measured, and the devices of all records, with the time where the only
    device is a GPU; folded when read as HTML."""
    runs = records.load_runs(results)
    if runs.empty:
        return "Nothing has been measured yet."
    parts = []
    for (device, kind, precision), g in runs.groupby(["device", "device_type", "precision"]):
        alone = kind == "cuda" and ", then " not in device
        time = f", {g.wall_s.sum() / 60:.0f} minutes" * alone
        count = f"{len(g)} runs" if len(g) > 1 else "1 run"
        parts.append(f"{count}, {g.epochs.sum()} epochs{time} on {device} ({precision})")
    commits = runs[runs.run.isin(names)].commit.str.split(", then ").explode().unique()
    commits = ", ".join(f"`{c[:7]}`" for c in commits)
    told = f"Measured at {commits}; all records of this repository together: {'; '.join(parts)}."
    return f"<details><summary>At which commits, and on what</summary>\n\n{told}\n\n</details>"


def readme_table(results: Path | str | None = None) -> str:
    """What goes between the README's markers."""
    fixes, judged = records.recorded(FIXES, results), verdicts(results)
    parts = ["The same for runs that no report has:", markdown(table_1(results, fixes), judged)] if fixes else []
    return "\n\n".join([markdown(table_1(results), judged), *parts, cost(TABLE_1 + fixes, results)])


MARKERS = "<!-- table 1 begins: made by `vggres tables --readme README.md` -->", "<!-- table 1 ends -->"


def update_readme(text: str, results: Path | str | None = None) -> str:
    """The README with its generated part renewed.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = MARKERS
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no line {begin!r} followed by {end!r}")
    return pattern.sub(lambda _: f"{begin}\n{readme_table(results)}\n{end}", text)
