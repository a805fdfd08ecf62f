"""What is committed under results/ was measured, whole, on the real data."""

from pathlib import Path

import pandas as pd
import pytest

import vggres
from vggres import checkpoints, records
from vggres.data import SPECS
from vggres.models import layers
from vggres.runs import RUNS, Run

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
AGAIN = RESULTS / "again"  # runs that were measured a second time
FOLDERS = records.folders(RESULTS) + records.folders(AGAIN)
UNFINISHED = [path.parent for path in ROOT.glob("unfinished/runs/*/*/checkpoint.pt")]


def test_there_are_records_and_verify_finds_them_whole():
    assert FOLDERS and records.verify(RESULTS) == records.verify(AGAIN) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: "-".join(f.relative_to(RESULTS).parts))
def test_a_record_is_of_a_registered_run_of_all_its_epochs_on_the_whole_dataset(folder):
    record = records.read(folder)
    run = RUNS[folder.parent.name]
    assert record["status"] == "diverged" or record["result"]["epochs"] == run.epochs
    few = SPECS[run.dataset].images_a_class
    train = few * SPECS[run.dataset].classes if few else 47_500
    assert (record["data"]["train"], record["data"]["val"], record["data"]["test"]) == (train, 2_500, 10_000)
    assert not record["git"]["dirty"] and set(record["git"]["commit"]) != {"0"}


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("weights/*.safetensors")))
def test_kept_weights_and_recorded_gradients_are_of_the_net_as_it_is_built_now(name):
    names = [layer for layer, _ in layers(vggres.load(name))]
    assert list(pd.read_csv(records.folder_of(RESULTS, name, 0) / "gradients.csv")) == ["epoch", *names]


def test_nothing_else_lies_among_the_results():
    allowed = {"run.json", "history.csv", "gradients.csv", "train.lock", "checkpoint.pt", "checkpoint-previous.pt"}
    assert {p.name for p in RESULTS.glob("**/runs/*/*/*")} <= allowed


@pytest.mark.parametrize("folder", UNFINISHED, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_an_unfinished_run_is_one_that_can_be_resumed_and_has_no_record(folder):
    saved, damaged = checkpoints.newest(folder)
    assert saved and not damaged
    run = Run.from_dict(saved["run"])
    assert RUNS[run.name] == run and folder.parts[-2:] == (run.name, f"seed{saved['seed']}")
    assert 0 < len(saved["state"]["history"]) < run.epochs
    assert saved["state"]["digests"]["train"] == SPECS[run.dataset].digests["train"]
    assert not any(entry["dirty"] for entry in saved["state"]["git"])
    assert not (RESULTS / "runs" / run.name / folder.name / "run.json").exists()
