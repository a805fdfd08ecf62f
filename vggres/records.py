"""The record on disk: what it holds, how it is written and read, and how it is verified.

`results/runs/<run>/seed<k>/` holds `history.csv`, `gradients.csv` and, written last, `run.json`, with the SHA-256
of both and of itself, and the provenance. Losses are in nats, accuracies are fractions of 1, times are seconds.
"""

import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vggres.data import SPECS
from vggres.errors import Unready, UserError
from vggres.files import write_atomically
from vggres.runs import RUNS, Run

LOCAL_WEIGHTS = "weights-local"  # kept where they were made, not committed
COMMIT = re.compile("[0-9a-f]{40}")
PARTS = {"run", "seed", "status", "model", "data", "result", "device", "env", "git", "time", "files"}
HISTORY = {
    "epoch": "d",
    "train_loss": ".6f",
    "train_acc": ".6f",
    "val_loss": ".6f",
    "val_acc": ".6f",
    "lr": ".6g",  # of the epoch's last step
    "seconds": ".2f",
}


def default_root() -> Path:
    """`results/` of the checkout, or `./results/` if vggres is installed outside one."""
    checkout = Path(__file__).resolve().parent.parent / "results"
    return checkout if (checkout / "reported.csv").is_file() else Path("results")


def folder_of(results: Path | str, name: str, seed: int) -> Path:
    """The folder of the record of a run and seed."""
    return Path(results) / "runs" / name / f"seed{seed}"


@functools.cache
def provenance() -> dict:
    """The commit of the running code, and whether this package's tracked files differ from it.

    It is read once per process, since later edits are not what runs. For a tree without a
    repository `VGGRES_COMMIT` names the commit, and goes first; whether the files differ is then unknown: None.

    Raises:
        UserError: no commit can be found, and a record without one would prove nothing; or `VGGRES_COMMIT` is not one.
    """
    if commit := os.environ.get("VGGRES_COMMIT"):
        if not COMMIT.fullmatch(commit):
            raise UserError(f"VGGRES_COMMIT must be the 40 hexadecimal digits of a commit, not {commit!r}")
        return {"commit": commit, "dirty": None}
    here = Path(__file__).resolve()

    def git(*args: str) -> str:
        return subprocess.check_output(["git", "-C", here.parent, *args], stderr=subprocess.PIPE, text=True).strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError) as e:
        why = " ".join((getattr(e, "stderr", None) or str(e)).split())
        raise UserError(
            f"a record needs the commit of the code, and git does not tell that of {here.parent} ({why}); train from "
            "a clone, or set VGGRES_COMMIT to the commit"
        ) from None


def environment() -> dict:
    """Versions that a number could depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _csv(rows: list[dict], formats: dict[str, str]) -> bytes:
    text = [{k: format(row[k], f) for k, f in formats.items()} for row in rows]
    return pd.DataFrame(text).to_csv(index=False, lineterminator="\n").encode()


def write(folder: Path, record: dict, history: list[dict], gradients: list[dict]) -> None:
    """Write a whole record; `run.json` comes last, so any record that is visible is complete."""
    columns = dict.fromkeys(gradients[0], ".4g") | {"epoch": "d"}  # epoch 0 is before the first step
    files = {"history.csv": _csv(history, HISTORY), "gradients.csv": _csv(gradients, columns)}
    for name, content in files.items():
        write_atomically(folder / name, content)
    record = {"schema": 1, **record, "files": {name: _sha256(content) for name, content in files.items()}}
    record["sha256"] = _sha256(_canonical(record))
    write_atomically(folder / "run.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def summarise(history: list[dict]) -> dict:
    """The part of a record's result that follows from its history: the last epoch and the best validation accuracy.

    The first of equally good epochs counts; non-finite values become None.
    """
    last = history[-1]
    best = max((r for r in history if math.isfinite(r["val_loss"])), key=lambda r: r["val_acc"], default=None)
    result = {"epochs": last["epoch"]}
    result |= {k: rounded(last[k]) for k in ("train_loss", "train_acc", "val_loss", "val_acc")}
    return result | {"best_epoch": best and best["epoch"], "best_val_acc": best and rounded(best["val_acc"])}


def rounded(x: float) -> float | None:
    """Rounded to as many digits as `history.csv` prints; None if not finite."""
    return float(format(x, ".6f")) if math.isfinite(x) else None


def read(folder: Path) -> dict:
    """The record in a folder.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as e:
        raise Unready(f"{folder / 'run.json'}: no readable record ({e}); restore it, or move {folder} away") from e
    if not isinstance(record, dict) or not record.keys() >= PARTS:
        parts = ", ".join(sorted(PARTS))
        raise Unready(f"{folder / 'run.json'}: no record; it must have {parts}; restore it, or move {folder} away")
    return record


def folders(results: Path | str | None = None, name: str | None = None) -> list[Path]:
    """All folders that hold a record (of one run), sorted, except those moved aside, such as `seed0.old`."""
    found = (p.parent for p in Path(results or default_root()).glob("runs/*/seed*/run.json"))
    return sorted(f for f in found if name in (None, f.parent.name) and f.name.removeprefix("seed").isdigit())


def recorded(names: Iterable[str], results: Path | str | None = None) -> list[str]:
    """The names that have a record."""
    have = {folder.parent.name for folder in folders(results)}
    return [name for name in names if name in have]


def _row(r: dict) -> dict:
    devices, git = ([r[part], *r[part].get("later", [])] for part in ("device", "git"))
    shared = {device.get("together", r["time"].get("together", 1)) for device in devices}
    return {
        "run": r["run"]["name"],
        "seed": r["seed"],
        "status": r["status"],
        **r["result"],
        "params": r["model"]["params"],
        "device": ", then ".join(dict.fromkeys(device["name"] for device in devices)),
        "device_type": r["device"]["type"],
        "precision": ", then ".join(dict.fromkeys(device["precision"] for device in devices)),
        "commit": ", then ".join(dict.fromkeys(entry["commit"] for entry in git)),
        "digest": r["data"]["digest_train"],
        "wall_s": r["time"]["wall_s"] / shared.pop() if len(shared) == 1 else math.nan,
    }


def load_runs(results: Path | str | None = None) -> pd.DataFrame:
    """All records as a tidy table: one row per run and seed, with the result, the device and the provenance.

    Columns: run, seed, status, every field of the record's `result`, params, device, device_type, precision, commit,
    digest, wall_s (divided by the number of runs that shared the device; NaN where that changed).

    Raises:
        UserError: a record cannot be read, or is not whole.
    """
    rows = []
    for folder in folders(results):
        try:
            rows.append(_row(read(folder)))
        except (KeyError, TypeError) as e:
            raise UserError(f"{folder / 'run.json'}: no whole record ({e!r}); restore it, or move {folder} away") from e
    measured = [f"{split}_{metric}" for split in ("train", "val", "test") for metric in ("loss", "acc")]
    return pd.DataFrame(rows, columns=None if rows else ["run", "seed", "status", *measured, "commit"])


def load_series(name: str, file: str, results: Path | str | None = None) -> pd.DataFrame:
    """`history.csv` or `gradients.csv` of every seed of a run, with a `seed` column; empty if there is none.

    Raises:
        UserError: the file cannot be read.
    """
    parts = []
    for folder in folders(results, name):
        try:
            table = pd.read_csv(folder / file)
        except (OSError, ValueError) as e:
            raise UserError(f"{folder / file}: cannot be read ({e}); restore it, or move {folder} away") from e
        parts.append(table.assign(seed=int(folder.name.removeprefix("seed"))))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["epoch", "seed"])


def verify(results: Path | str) -> list[str]:
    """Check every record against its own hashes, its history, the registry and the published digests.

    Returns: one line per problem; an empty list means that all records are intact.
    """
    problems = []
    for folder in folders(results):
        try:
            for problem in _check(folder):
                problems.append(f"{folder}: {problem}")
        except Exception as e:  # whatever a tampered file may cause
            problems.append(f"{folder}: is no readable record ({type(e).__name__}: {e})")
    return problems


def _check(folder: Path):
    record = read(folder)
    claimed = record.pop("sha256", None)
    if claimed != _sha256(_canonical(record)):
        yield "run.json was changed after it was written"
    for name, digest in record["files"].items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif _sha256((folder / name).read_bytes()) != digest:
            yield f"{name} was changed after it was written"
    if kept := record.get("weights"):
        weights = folder.parents[2] / kept["file"]
        absent = not weights.is_file()
        may_be = kept["file"].startswith(f"{LOCAL_WEIGHTS}/")
        if (absent and not may_be) or (not absent and _sha256(weights.read_bytes()) != kept["sha256"]):
            yield f"{kept['file']} is missing or was changed after it was written"
    run = Run.from_dict(record["run"])
    if run.name != record["run"]["name"] or folder.parent.name != run.name or folder.name != f"seed{record['seed']}":
        yield f"lies in the wrong place: it is {run.name}, seed {record['seed']}"
    if run.name in RUNS and run != RUNS[run.name]:
        yield "its settings are not those of the registered run"
    if run.dataset in SPECS:
        genuine = SPECS[run.dataset].digests
        if any(record["data"][f"digest_{split}"] != genuine[split] for split in ("train", "test")):
            yield f"was not trained on the genuine {run.dataset}"
    for entry in (record["git"], *record["git"].get("later", [])):
        if not COMMIT.fullmatch(entry["commit"]):
            yield f"has no commit: {entry['commit']!r}"
    history = pd.read_csv(folder / "history.csv").to_dict("records")
    if [r["epoch"] for r in history] != list(range(1, record["result"]["epochs"] + 1)):
        yield "history.csv has not one line an epoch"
    elif any(record["result"][k] != v for k, v in summarise(history).items()):
        yield "run.json and history.csv disagree"
    if record["status"] == "completed" and record["result"]["epochs"] != run.epochs:
        yield f"is called completed after {record['result']['epochs']} of {run.epochs} epochs"


def _canonical(record: dict) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
