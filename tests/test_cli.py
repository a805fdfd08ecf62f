"""The command line: what bad input gets, and exit statuses that scripts can use."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from test_data import COUNTS, write_small
from typer.testing import CliRunner

from vggres import cli, data, queue, records, runs, tables, weights
from vggres.cli import app
from vggres.engine import Engine
from vggres.errors import UserError
from vggres.runs import QUEUE, RUNS, Run

pytestmark = pytest.mark.usefixtures("commit")
ONE_EPOCH = Run("vgg08", epochs=1)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with small datasets that pass for CIFAR-100 and CIFAR-10."""
    for name in ("cifar100", "cifar10"):
        write_small(monkeypatch, tmp_path / "data", name)
    monkeypatch.setitem(data.SPECS, "cifar100-30", replace(data.SPECS["cifar100"], images_a_class=1))
    return tmp_path / "data"


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def train(root, results):
    def train(*args, root=root, results=results):
        return vggres("train", *args, "--device", "cpu", "--data", root, "--results", results)

    return train


def vggres(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(done, *parts):
    """Assert exit status 2 and one line on stderr that holds every part."""
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit), "a traceback"
    assert done.stdout == ""
    assert done.stderr.startswith("vggres: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert str(part) in done.stderr
    return done.stderr


def nothing_trained(results):
    return not list(results.rglob("run.json")) and not list(results.rglob("checkpoint*"))


def test_train_writes_a_record_that_verifies_and_lists(train, results, caplog):
    done = train("vgg08", "--epochs", 1, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"vgg08-1ep, seed 3: validation \d.* %.*, test .* %.*\n", done.stdout)
    assert done.stderr == ""
    (line,) = caplog.messages  # without a terminal for a bar
    assert re.fullmatch(r"vgg08-1ep, seed 3: epoch 1, loss \d.*, val .* %, \d+ s", line)
    record = records.read(records.folder_of(results, "vgg08-1ep", 3))
    assert (record["seed"], record["result"]["epochs"], record["data"]["train"]) == (3, 1, COUNTS["train"] * 19 // 20)

    assert vggres("verify", "--results", results).exit_code == 0
    again = train("vgg08", "--epochs", 1, "--seed", 3)
    assert again.exit_code == 0 and again.stdout == done.stdout
    assert "recorded already" in again.stderr


@pytest.mark.parametrize(
    ("options", "order"), [((), "vgg08 vgg08 vgg38 vgg38"), (("--together", 2), "vgg08 vgg38 vgg08 vgg38")]
)
def test_several_runs_are_trained_one_after_the_other_or_together(train, monkeypatch, options, order):
    seen = []

    def steps(run, seed, *_):
        for _ in range(2):
            seen.append((run.model, seed))
            yield 1
        return {"result": dict(test_acc=0.5, val_acc=0.5, epochs=5, best_epoch=5)}

    monkeypatch.setattr(queue, "steps", steps)
    monkeypatch.setattr("vggres.training.APART", 0)
    done = train("vgg08", "vgg38", "vgg08", "--epochs", 5, *options)
    assert done.exit_code == 0 and done.stdout.count("vgg08-5ep") == done.stdout.count("vgg38-5ep") == 1
    assert seen == [(model, 0) for model in order.split()]
    seen.clear()
    assert train("vgg08", "--seed", 1, "--seed", 2, *options).exit_code == 0
    assert sorted(seen) == [("vgg08", 1)] * 2 + [("vgg08", 2)] * 2


def test_the_queue_trains_what_has_no_record_the_most_important_first(train, results, monkeypatch):
    seen = []

    def steps(run, seed, *_):
        seen.append((run.name, seed))
        yield 1
        return {"result": dict(test_acc=0.5, val_acc=0.5, epochs=5, best_epoch=5)}

    monkeypatch.setattr(queue, "steps", steps)
    assert train("--missing").exit_code == 0
    assert seen == [(run.name, seed) for run, seed in QUEUE]

    seen.clear()
    recorded = records.folder_of(results, "vgg38", 0)
    recorded.mkdir(parents=True)
    (recorded / "run.json").write_text("{}")
    assert train("vgg38", "vgg08", "--missing").exit_code == 0
    assert seen == [("vgg08", 0), ("vgg08", 1), ("vgg38", 1), ("vgg08", 2), ("vgg38", 2)]
    seen.clear()
    assert train("vgg38", "vgg08", "--missing", "--seed", 0).exit_code == 0
    assert seen == [("vgg08", 0)]


def test_the_queue_passes_over_what_has_no_dataset_here(train, root, monkeypatch):
    seen = []

    def steps(run, seed, *_):
        seen.append(run.dataset)
        yield 1
        return {"result": dict(test_acc=0.5, val_acc=0.5, epochs=5, best_epoch=5)}

    monkeypatch.setattr(queue, "steps", steps)
    shutil.rmtree(root / data.SPECS["cifar10"].folder)
    done = train("--missing")
    assert done.exit_code == 3 and "passed over: what needs cifar10; `vggres data" in done.stderr
    waiting = [run for run, _ in QUEUE if run.dataset == "cifar10"]
    left = f"left: {len(waiting)} of {len(QUEUE)} runs, {sum(run.epochs for run in waiting)} epochs"
    assert set(seen) == {"cifar100", "cifar100-30"} and left in done.stderr
    seen.clear()
    refused(train(*{run.dataset: run.name for run, _ in QUEUE}.values()), "no cifar10 in", "vggres data")
    assert not seen, "it is said before hours are spent on what is there"
    shutil.rmtree(root / data.SPECS["cifar100"].folder)
    refused(train("--missing"), "no cifar100 in", "vggres data")


def test_when_the_time_is_up_no_run_is_begun_and_what_is_left_is_told(train, monkeypatch):
    seen, clock = [], [0.0]

    def steps(run, *_):
        seen.append(run.model)
        clock[0] += 40
        yield COUNTS["train"] * 19 // 20  # an epoch in 40 s

    monkeypatch.setattr(queue, "steps", steps)
    monkeypatch.setattr(queue, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    done = train("vgg08", "vgg38", "vgg38-bn", "--seed", 0, "--seed", 1, "--minutes", 1, "--epochs", 9)
    assert (done.exit_code, seen) == (3, ["vgg08", "vgg38"])
    assert "left: 6 of 6 runs, 54 epochs" in done.stderr
    # 18 epochs of VGG08 and 36 of the 8.7 times larger VGG38, at 80 s for one of each
    assert "about 0.8 hours at this pace" in done.stderr


def queued(monkeypatch, jobs):
    for module in (cli, queue):
        monkeypatch.setattr(module, "QUEUE", jobs)


def test_a_queue_that_is_cut_off_goes_on_where_it_was(train, results, monkeypatch):
    run = Run("vgg08", epochs=2)
    queued(monkeypatch, [(run, 0), (run, 1)])
    monkeypatch.setattr(cli, "RUNS", {run.name: run})
    evaluate, count = Engine.evaluate, itertools.count()

    def interrupted(self, images):
        if next(count) == 5:  # two epochs and two tests of seed 0, the first epoch of seed 1, then its second
            raise KeyboardInterrupt
        return evaluate(self, images)

    with monkeypatch.context() as m:
        m.setattr(Engine, "evaluate", interrupted)
        assert train("--missing").exit_code == 130
    folder = next(results.glob("runs/*/seed1"))
    shutil.copytree(folder, folder.with_name("seed1-aside"))
    listed = vggres("list", "--results", results).stdout
    assert "1 of 2 measured, seed 1 at epoch 1 of 2" in listed
    done = train("--missing")
    assert done.exit_code == 0
    assert "seed 1: resumes after epoch 1 of 2" in done.stderr and "seed 0" not in done.output
    assert "2 of 2 measured" in vggres("list", "--results", results).stdout
    assert train("--missing").output == "nothing is missing of what is queued\n"


def test_the_queue_passes_over_what_another_process_trains(train, results, monkeypatch):
    queued(monkeypatch, [(ONE_EPOCH, 0), (ONE_EPOCH, 1)])
    folder = records.folder_of(results, ONE_EPOCH.name, 0)
    folder.mkdir(parents=True)
    with FileLock(folder / "train.lock"):
        done = train("--missing")
        assert done.exit_code == 3 and "seed 0: passed over" in done.stderr and "left: 1 of 2 runs" in done.stderr
        assert [f.name for f in records.folders(results)] == ["seed1"]
        assert "passed over" not in train("--missing", "--seed", 1).stderr


def test_the_queue_passes_over_checkpoints_that_are_of_no_use(train, results, monkeypatch):
    queued(monkeypatch, [(ONE_EPOCH, 0), (ONE_EPOCH, 1)])
    torn = records.folder_of(results, ONE_EPOCH.name, 0) / "checkpoint.pt"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half")
    done = train("--missing")
    assert done.exit_code == 3 and f"seed 0: passed over: {torn.parent}" in done.stderr
    assert [f.name for f in records.folders(results)] == ["seed1"] and torn.read_bytes() == b"half"
    refused(train(ONE_EPOCH.name.removesuffix("-1ep"), "--epochs", 1), torn.parent, "no checkpoint is whole")


def test_a_damaged_dataset_is_found_out_before_the_first_run(train, root, results, monkeypatch):
    other = replace(ONE_EPOCH, dataset="cifar10")
    queued(monkeypatch, [(ONE_EPOCH, 0), (other, 0)])
    damaged = next(root.rglob("test_batch.bin"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    refused(train("--missing"), damaged)
    assert nothing_trained(results)


def test_a_tilde_that_the_shell_left_is_the_home_folder(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train("vgg08", "--epochs", 1, results="~/records").exit_code == 0
    assert records.folders(tmp_path / "records")


def test_the_queue_passes_over_what_has_no_weights_to_start_from(train, results, monkeypatch):
    first, second = Run("vgg08", epochs=1), Run("vgg08", epochs=1, start="vgg08-1ep")
    monkeypatch.setattr(weights, "WEIGHTS", {first.name})
    queued(monkeypatch, [(second, 0), (first, 0)])
    done = train("--missing")
    assert done.exit_code == 3 and f"{second.name}, seed 0: passed over: {first.name}, seed 0, is not" in done.stderr
    kept = results / records.read(records.folder_of(results, first.name, 0))["weights"]["file"]
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    assert f"{second.name}, seed 0: passed over: {kept}: not the weights" in train("--missing").stderr
    kept.write_bytes(whole)
    assert train("--missing").exit_code == 0
    assert {f.parent.name for f in records.folders(results)} == {first.name, second.name}


def test_kept_weights_give_the_records_test_accuracy(train, results, root, monkeypatch):
    run = Run("vgg08", slope=0.6, epochs=1)
    monkeypatch.setattr(weights, "WEIGHTS", {run.name})
    monkeypatch.setitem(runs.RUNS, run.name, run)
    assert train(run.name).exit_code == 0
    record = records.read(records.folder_of(results, run.name, 0))
    done = vggres("evaluate", run.name, "--results", results, "--data", root, "--device", "cpu")
    assert done.exit_code == 0
    here, there = re.findall(r"(\d+\.\d\d) %", done.stdout)
    assert here == there == f"{100 * record['result']['test_acc']:.2f}"
    net = weights.load(run.name, results)
    assert not net.training and net.entry.act.negative_slope == 0.6
    assert vggres("verify", "--results", results).exit_code == 0

    path = results / record["weights"]["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "was changed" in vggres("verify", "--results", results).stderr
    refused(vggres("evaluate", run.name, "--results", results, "--data", root), path)
    path.unlink()
    refused(vggres("evaluate", run.name, "--results", results, "--data", root), path)
    train(run.name, "--seed", 1)  # only seed 0 is kept
    assert not list((results / "weights").iterdir())


def test_verify_fails_when_one_digit_is_changed(train, results):
    train("vgg08", "--epochs", 1)
    done = vggres("verify", "--results", results)
    assert (done.exit_code, done.stderr) == (0, "") and "1 record" in done.stdout

    path = records.folder_of(results, "vgg08-1ep", 0) / "run.json"
    path.write_text(re.sub(r'"val_acc": 0\.(\d)', lambda m: f'"val_acc": 0.{(int(m[1]) + 1) % 10}', path.read_text()))
    done = vggres("verify", "--results", results)
    assert done.exit_code == 1
    assert f"{path.parent}: run.json was changed" in done.stderr and done.stdout == ""


def test_verify_without_records_says_so(tmp_path):
    refused(vggres("verify", "--results", tmp_path / "none"), tmp_path / "none", "does not exist", "--results")
    refused(vggres("verify", "--results", tmp_path), tmp_path, "no record", "--results")


@pytest.mark.parametrize("command", ["list", "tables", "figures"])
def test_what_reads_records_wants_a_folder_that_is_there(command, tmp_path):
    refused(vggres(command, "--results", tmp_path / "typo"), tmp_path / "typo", "does not exist")


def test_tables_are_printed_or_renewed_between_the_markers_of_a_readme(tmp_path):
    printed, readme = vggres("tables"), tmp_path / "README.md"
    assert printed.exit_code == 0 and printed.stdout == tables.readme_table() + "\n"
    readme.write_text("\n".join(["before", tables.MARKERS[0], "old", tables.MARKERS[1], "after"]))
    assert vggres("tables", "--readme", readme).exit_code == 0
    expected = ["before", tables.MARKERS[0], printed.stdout.rstrip("\n"), tables.MARKERS[1], "after"]
    assert readme.read_text() == "\n".join(expected)
    readme.write_text("no markers")
    refused(vggres("tables", "--readme", readme), readme, "no line")
    assert readme.read_text() == "no markers"


def test_a_record_tells_how_many_runs_shared_the_device(train, results):
    done = train("vgg08", "--epochs", 1, "--seed", 0, "--seed", 1, "--together", 3)
    assert done.exit_code == 0, done.output
    devices = [records.read(folder)["device"] for folder in records.folders(results)]
    assert [device["together"] for device in devices] == [2, 2]
    runs, alone = records.load_runs(results), [records.read(f)["time"]["wall_s"] / 2 for f in records.folders(results)]
    assert runs.wall_s.tolist() == alone


def test_time_up_is_exit_status_3_and_the_same_command_resumes(train, results):
    done = train("vgg08", "--epochs", 1, "--minutes", 1e-9)
    assert done.exit_code == 3
    assert "left: 1 of 1 runs, 1 epochs" in done.stderr and done.stdout == ""
    assert nothing_trained(results)
    assert train("vgg08", "--epochs", 1).exit_code == 0


def test_an_interrupt_is_exit_status_130_and_says_how_to_go_on(train, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupt)
    done = train("vgg08")
    assert done.exit_code == 130
    assert done.stderr.count("\n") == 1 and "goes on from the last whole epoch" in done.stderr


def test_a_diverged_run_is_said_and_recorded(train, results, monkeypatch):
    monkeypatch.setattr(Run, "lr_at", lambda *_: 1e6)
    done = train("vgg08", "--epochs", 1)
    assert done.exit_code == 0
    assert "diverged in epoch 1" in done.stderr
    assert records.read(records.folder_of(results, "vgg08-1ep", 0))["status"] == "diverged"


def test_list_shows_every_run_and_what_is_measured(train, results):
    train("vgg08", "--epochs", 5)
    lines = vggres("list", "--results", results).stdout.splitlines()[1:]
    state = {line.split("  ")[-2].strip(): line for line in lines}
    assert list(state) == list(RUNS)
    assert "1 of 1 measured" in state["vgg08-5ep"]
    train("vgg08", "--epochs", 5, "--seed", 7)  # which nothing queues
    assert re.search(r"2 of 2 measured +vgg08-5ep ", vggres("list", "--results", results).stdout)
    assert "not measured" in state["vgg38"] and "A/Table 1" in state["vgg38"]


def test_data_checks_what_is_there(root):
    done = vggres("data", "--data", root)
    assert done.exit_code == 0, done.output
    assert "380 train, 20 val, 100 test images" in done.stdout and str(root) in done.stdout


@pytest.mark.parametrize("name", ["vgg38-bnrc", "VGG38-BN-RC", "vgg38-bn-rc-lr1e-3"])
def test_an_unknown_run_gets_the_nearest(train, name):
    refused(train(name), repr(name), "vgg38-bn-rc")


def test_an_abbreviated_name_gets_those_that_begin_so(train):
    refused(train("inception"), "'inception'", "inception-cifar10-")


def test_one_unknown_run_among_known_ones_is_found_out_before_training(train, results):
    refused(train("vgg08", "vgg99"), "'vgg99'")
    assert nothing_trained(results)


@pytest.mark.parametrize("epochs", [0, -1])
def test_epochs_must_be_positive(train, epochs):
    refused(train("vgg08", "--epochs", epochs), "epochs", f"not {epochs}")


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_a_seed_must_be_one_that_the_generators_take(train, seed):
    refused(train("vgg08", "--epochs", 1, "--seed", seed), "'--seed'", "equal to")


@pytest.mark.parametrize("minutes", [0, -1, "nan"])
def test_minutes_must_be_positive(train, minutes):
    refused(train("vgg08", "--minutes", minutes), "--minutes")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ((), ["which run?", "vggres list", "--missing"]),
        (("vgg08", "--together", 0), ["'--together'", "equal to 1"]),
        (("--missing", "--epochs", 1), ["--missing", "--epochs"]),
        (("--missing", "--seed", -1), ["'--seed'", "equal to 0"]),
    ],
)
def test_what_train_cannot_do_is_refused(train, args, parts):
    refused(train(*args), *parts)


@pytest.mark.parametrize("option", ["--seed", "--epochs", "--minutes"])
def test_what_is_no_number_is_refused_and_named(train, option):
    refused(train("vgg08", option, "many"), option)


@pytest.mark.parametrize("device", ["tpu", "mps", "", "cuda:x"])
def test_an_unknown_device_gets_those_there_are(root, results, device):
    done = vggres("train", "vgg08", "--data", root, "--results", results, "--device", device)
    refused(done, repr(device), "auto", "cpu", "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here: what its absence gets is not tested")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_absent_cuda_is_refused(root, results, device):
    done = vggres("train", "vgg08", "--data", root, "--results", results, "--device", device)
    refused(done, repr(device), "0 CUDA devices", "--device cpu")


def test_a_missing_dataset_says_where_it_looked_and_how_to_get_it(train, tmp_path, results):
    for nowhere in (tmp_path / "nowhere", tmp_path):
        refused(train("vgg08", root=nowhere), nowhere, "cifar-100-binary", "`vggres data", "--data", "VGGRES_DATA")
    assert nothing_trained(results)


def test_an_unknown_dataset_gets_those_there_are(root):
    refused(vggres("data", "--dataset", "imagenet", "--data", root), "'imagenet'", "cifar100", "cifar10")


def test_an_unreadable_record_is_refused_where_it_would_be_read(train, results):
    train("vgg08", "--epochs", 1)
    path = records.folder_of(results, "vgg08-1ep", 0) / "run.json"
    path.write_text("{")
    refused(train("vgg08", "--epochs", 1), path)
    refused(vggres("list", "--results", results), path)
    assert vggres("verify", "--results", results).exit_code == 1
    assert path.read_text() == "{"


def test_a_record_without_a_part_or_a_history_is_named_where_it_would_be_read(train, results):
    train("vgg08", "--epochs", 1)
    path = records.folder_of(results, "vgg08-1ep", 0) / "run.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"device": {}}))
    refused(vggres("list", "--results", results), path, "name", "restore it")
    path.write_text(whole)
    path.with_name("history.csv").write_text("")
    with pytest.raises(UserError, match=r"history.csv: cannot be read"):
        records.load_series("vgg08-1ep", "history.csv", results)


def test_a_tree_without_a_commit_is_refused_before_training(train, results, monkeypatch, tmp_path):
    monkeypatch.delenv("VGGRES_COMMIT")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "vggres" / "records.py"))
    refused(train("vgg08"), "VGGRES_COMMIT", tmp_path)
    assert nothing_trained(results)


@pytest.mark.parametrize("command", ["list", "data", "train", "verify"])
def test_help_names_the_folders_and_needs_none(command):
    done = vggres(command, "--help")
    assert done.exit_code == 0
    assert "--data" in done.stdout or "--results" in done.stdout


def test_help_lists_the_commands():
    done = vggres("--help")
    assert done.exit_code == 0 and all(command in done.stdout for command in ("train", "verify", "tables", "figures"))


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "vggres", "train", "vgg3"]
    wrong = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1 and "vgg38" in wrong.stderr
