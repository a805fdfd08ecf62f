"""The loop: exact resume, deadlines, divergence, and what it refuses."""

import hashlib
import io
import itertools
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from filelock import FileLock

from vggres import checkpoints, data, fused_cpu, records, training, weights
from vggres.engine import Engine
from vggres.errors import Unready, UserError
from vggres.gradients import flow_on
from vggres.models import build, layers
from vggres.runs import Run, find

pytestmark = pytest.mark.usefixtures("commit")
TINY = find("vgg08").tiny(limit=600, epochs=3)
SMALL = find("vgg08").tiny(limit=200, epochs=3, batch=50)  # four steps an epoch
CPU = torch.device("cpu")

# Trains TINY in a process of its own; prints a line a batch so that the test can choose when to kill it.
WORKER = """
import sys
import torch
torch.set_num_threads(1)  # as in `conftest`
from vggres import data, engine, training
from vggres.runs import find
step = engine.Engine.step
def told(self, *args):
    step(self, *args)
    print("step", flush=True)
engine.Engine.step = told
run = find("vgg08").tiny(limit=600, epochs=3)
training.train(run, 0, data.synthetic(), sys.argv[1], "cpu")
"""


@pytest.fixture(scope="module")
def synthetic():
    return data.synthetic()


def contents(results, run=TINY):
    """History without its times, gradients, and the final result with the hash of the gradients."""
    folder = records.folder_of(results, run.name, 0)
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds").to_csv()
    return history, (folder / "gradients.csv").read_text(), records.read(folder)["result"]


@pytest.fixture
def keep_weights(monkeypatch):
    """Save the final weights and optimiser state beside the record before it is written."""
    measure = training.measure

    def keeping(run, seed, d, engine, state, test):
        keeping.last = {k: v.clone() for k, v in engine.net.state_dict().items()}
        return measure(run, seed, d, engine, state, test)

    monkeypatch.setattr(training, "measure", keeping)
    return keeping


def test_sigkill_in_the_middle_of_an_epoch_changes_nothing(tmp_path, synthetic, keep_weights):
    killed = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    )
    for _ in range(9):  # six steps an epoch: the third step of the second epoch
        assert killed.stdout.readline() == "step\n"
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    folder = records.folder_of(tmp_path / "killed", TINY.name, 0)
    assert (folder / "checkpoint.pt").exists() and not (folder / "run.json").exists()

    said = []
    training.train(TINY, 0, synthetic, tmp_path / "killed", "cpu", say=said.append)
    resumed = keep_weights.last
    training.train(TINY, 0, synthetic, tmp_path / "whole", "cpu")
    assert said == ["resumes after epoch 1 of 3"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all(torch.equal(resumed[k], v) for k, v in keep_weights.last.items())
    assert records.read(folder)["time"]["resumes"] == 1
    assert not list(folder.glob("checkpoint*"))


@pytest.fixture(scope="module")
def whole(synthetic, tmp_path_factory):
    """What SMALL gives when nothing disturbs it."""
    results = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("VGGRES_COMMIT", "0" * 40)
        training.train(SMALL, 0, synthetic, results, "cpu")
    return contents(results, SMALL)


def stop(results, synthetic, steps, run=SMALL, step=Engine.step):
    """Train until that many steps are done, as Ctrl-C would end it there; the folder of what is left."""
    count = itertools.count()

    def counted(*args):
        if next(count) == steps:
            raise KeyboardInterrupt
        step(*args)

    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Engine, "step", counted)
        training.train(run, 0, synthetic, results, "cpu")
    return records.folder_of(results, run.name, 0)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def resave(path, change):
    """Change a checkpoint, with a hash that fits."""
    saved = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)
    change(saved)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def crash_while_saving(results, synthetic, at):
    """Train until the `at`-th renaming of a file, which a crash prevents."""
    replace, count = os.replace, itertools.count()

    def crash(*args):
        if next(count) == at:
            raise KeyboardInterrupt
        replace(*args)

    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(os, "replace", crash)
        training.train(SMALL, 0, synthetic, results, "cpu")


def untrained(monkeypatch):
    monkeypatch.setattr(Engine, "step", lambda *_: pytest.fail("trains"))


def test_the_time_may_be_up_in_the_middle_of_an_epoch_and_changes_nothing(
    tmp_path, synthetic, monkeypatch, keep_weights
):
    training.train(SMALL, 0, synthetic, tmp_path / "whole", "cpu")
    expected, now, step, count = keep_weights.last, itertools.count(), Engine.step, itertools.count()

    def slow(*args):
        step(*args)
        if next(count) in (4, 10):  # inside the second epoch, and when it has been done again, the third
            for _ in range(100):  # seconds pass
                next(now)

    monkeypatch.setattr(Engine, "step", slow)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=now.__next__))  # a second a look
    folder, said = records.folder_of(tmp_path / "parts", SMALL.name, 0), []

    def go_on():
        return training.train(SMALL, 0, synthetic, tmp_path / "parts", "cpu", minutes=1, say=said.append)

    for _ in range(2):
        assert go_on() is None
        assert (folder / "checkpoint.pt").exists() and not (folder / "run.json").exists()
    assert go_on()["time"]["resumes"] == 2
    assert said == [
        "the time was up after 1 of 4 steps of epoch 2, which begins anew",
        "resumes after epoch 1 of 3",
        "the time was up after 2 of 4 steps of epoch 3, which begins anew",
        "resumes after epoch 2 of 3",
    ]
    assert contents(tmp_path / "parts", SMALL) == contents(tmp_path / "whole", SMALL)
    assert all(torch.equal(expected[k], v) for k, v in keep_weights.last.items())


def test_an_epoch_that_would_not_fit_is_not_begun(tmp_path, synthetic, monkeypatch):
    # A second a look at the clock: an epoch takes five, so one fits into ten, and another would not.
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    step, count = Engine.step, itertools.count(1)
    monkeypatch.setattr(Engine, "step", lambda *args: (step(*args), next(count)))
    assert training.train(SMALL, 0, synthetic, tmp_path, "cpu", minutes=10 / 60) is None
    assert next(count) == 5


def test_how_long_an_epoch_took_on_another_machine_keeps_none_from_being_begun(tmp_path, synthetic, whole):
    path = stop(tmp_path, synthetic, 5) / "checkpoint.pt"
    resave(path, lambda saved: saved["state"]["history"][-1].update(seconds=1e6))
    assert training.train(SMALL, 0, synthetic, tmp_path, "cpu", minutes=10)["result"]["epochs"] == 3


def test_no_time_at_all_trains_nothing_and_loses_nothing(tmp_path, synthetic, whole, monkeypatch):
    with monkeypatch.context() as m:
        untrained(m)
        assert training.train(SMALL, 0, synthetic, tmp_path, "cpu", minutes=0) is None
    folder = stop(tmp_path, synthetic, 5)
    before = (folder / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as m:
        untrained(m)
        assert training.train(SMALL, 0, synthetic, tmp_path, "cpu", minutes=0) is None
    assert (folder / "checkpoint.pt").read_bytes() == before
    training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    assert contents(tmp_path, SMALL) == whole


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, synthetic, whole):
    folder, said = stop(tmp_path, synthetic, 9), []
    damage(folder / "checkpoint.pt")
    training.train(SMALL, 0, synthetic, tmp_path, "cpu", say=said.append)
    for part in (f"{folder / 'checkpoint.pt'} is damaged", "resumes after epoch 1 of 3"):
        assert part in " ".join(said)
    assert contents(tmp_path, SMALL) == whole


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("harm", [damage, lambda path: None], ids=["damaged", "whole"])
def test_a_crash_while_saving_leaves_a_whole_checkpoint(tmp_path, synthetic, whole, harm, at):
    folder, said = stop(tmp_path, synthetic, 9), []
    harm(folder / "checkpoint.pt")
    crash_while_saving(tmp_path, synthetic, at)
    assert any(folder.glob("checkpoint*.pt"))
    training.train(SMALL, 0, synthetic, tmp_path, "cpu", say=said.append)
    assert "resumes after epoch" in said[-1]
    assert contents(tmp_path, SMALL) == whole
    assert not list(folder.glob("checkpoint*"))


def test_a_crash_when_the_older_checkpoint_is_put_aside_loses_nothing(tmp_path, synthetic, whole):
    folder, said = stop(tmp_path, synthetic, 9), []

    def crash(path, content):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(checkpoints, "write_atomically", crash)
        training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    assert [path.name for path in folder.glob("checkpoint*")] == ["checkpoint-previous.pt"]
    training.train(SMALL, 0, synthetic, tmp_path, "cpu", say=said.append)
    assert said == ["resumes after epoch 2 of 3"] and contents(tmp_path, SMALL) == whole
    assert not list(folder.glob("checkpoint*"))


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(b"")], ids=["changed", "empty"])
def test_without_a_whole_checkpoint_it_refuses_and_deletes_nothing(tmp_path, synthetic, monkeypatch, harm):
    folder = stop(tmp_path, synthetic, 9)
    paths = [folder / "checkpoint.pt", folder / "checkpoint-previous.pt"]
    for path in paths:
        harm(path)
    before = [path.read_bytes() for path in paths]
    untrained(monkeypatch)
    with pytest.raises(UserError) as e:
        training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    for part in (folder, "checkpoint.pt", "checkpoint-previous.pt", "delete"):
        assert str(part) in str(e.value)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize(
    ("run", "seed"), [(Run("vgg08", lr=3e-3).tiny(limit=200, epochs=3, batch=50), 0), (SMALL, 1)], ids=["lr", "seed"]
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, synthetic, monkeypatch, run, seed):
    theirs = stop(tmp_path, synthetic, 5) / "checkpoint.pt"
    ours = records.folder_of(tmp_path, run.name, seed) / "checkpoint.pt"
    ours.parent.mkdir(parents=True)
    content = theirs.read_bytes()
    ours.write_bytes(content)
    untrained(monkeypatch)
    with pytest.raises(UserError, match=r"other settings.*delete") as e:
        training.train(run, seed, synthetic, tmp_path, "cpu")
    assert str(ours) in str(e.value) and "\n" not in str(e.value)
    assert ours.read_bytes() == content


@pytest.mark.parametrize("later", [{"optimizer": "lion"}, {"warm_up": 5}], ids=["value", "setting"])
def test_a_checkpoint_of_a_later_version_is_refused_by_its_name(tmp_path, synthetic, monkeypatch, later):
    with monkeypatch.context() as m:
        m.setattr(Run, "to_dict", lambda run: vars(run) | later)
        path = stop(tmp_path, synthetic, 5) / "checkpoint.pt"
    with pytest.raises(Unready, match=r"other settings.*delete") as e:
        training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    assert str(path) in str(e.value)


@pytest.mark.parametrize("part", ["state", "net", "optimizer"])
def test_a_checkpoint_whose_parts_are_of_another_version_is_refused_by_its_name(tmp_path, synthetic, part):
    path = stop(tmp_path, synthetic, 5) / "checkpoint.pt"
    resave(path, lambda saved: saved[part].update(new=torch.zeros(1), param_groups=[]))
    with pytest.raises(Unready, match=r"another version.*delete") as e:
        training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    assert str(path) in str(e.value)


def test_a_checkpoint_or_a_record_of_other_images_is_refused(tmp_path, synthetic, monkeypatch):
    other = replace(synthetic, digests=dict.fromkeys(synthetic.digests, "other"))
    path = stop(tmp_path, synthetic, 5) / "checkpoint.pt"
    content = path.read_bytes()
    with pytest.raises(UserError, match=r"other images.*delete"):
        training.train(SMALL, 0, other, tmp_path, "cpu")
    assert path.read_bytes() == content
    training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    untrained(monkeypatch)
    with pytest.raises(UserError, match="record of other images"):
        training.train(SMALL, 0, other, tmp_path, "cpu")


def test_what_a_process_left_that_was_killed_while_it_wrote_is_taken_away(tmp_path, synthetic):
    run = find("vgg08").tiny(limit=100, epochs=1)
    folder = records.folder_of(tmp_path, run.name, 0)
    folder.mkdir(parents=True)
    (folder / "checkpoint.ptabc.tmp").write_bytes(b"half")
    training.train(run, 0, synthetic, tmp_path, "cpu")
    assert not list(folder.glob("*.tmp"))


def test_a_second_process_on_the_same_run_is_refused(tmp_path, synthetic, monkeypatch):
    folder = records.folder_of(tmp_path, SMALL.name, 0)
    folder.mkdir(parents=True)
    untrained(monkeypatch)
    with FileLock(folder / "train.lock"), pytest.raises(UserError, match="another process") as e:
        training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    assert str(folder) in str(e.value)


def test_the_lock_is_released_when_training_ends_early(tmp_path, synthetic):
    folder = stop(tmp_path, synthetic, 0)
    with FileLock(folder / "train.lock", timeout=0):
        pass


@pytest.mark.parametrize("file", ["results", "results/runs", f"results/runs/{SMALL.name}/seed0"])
def test_results_that_cannot_be_written_are_found_out_before_training(tmp_path, synthetic, monkeypatch, file):
    obstacle = tmp_path / file  # a file where a folder should be: no user may write below it, not even root
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("kept")
    monkeypatch.setattr(training, "build", lambda *_: pytest.fail("builds a net"))
    with pytest.raises(UserError, match=r"cannot be written.*--results") as e:
        training.train(SMALL, 0, synthetic, tmp_path / "results", "cpu")
    assert str(tmp_path / "results") in str(e.value)
    assert obstacle.read_text() == "kept"


def test_a_commit_is_asked_for_before_training(tmp_path, synthetic, monkeypatch):
    monkeypatch.delenv("VGGRES_COMMIT")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "vggres" / "records.py"))  # in no checkout
    untrained(monkeypatch)
    with pytest.raises(UserError, match="VGGRES_COMMIT"):
        training.train(SMALL, 0, synthetic, tmp_path, "cpu")


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_its_record(tmp_path, synthetic):
    run, said = Run("vgg08", lr=1e6).tiny(limit=200, epochs=3, batch=50), []
    record = training.train(run, 0, synthetic, tmp_path, "cpu", say=said.append)
    assert record["status"] == "diverged"
    assert "not finite" in record["error"]
    assert record["result"]["epochs"] == 1
    assert record["result"]["train_loss"] is None and record["result"]["test_acc_last"] is None
    assert len(said) == 1 and "diverged in epoch 1" in said[0]
    assert records.verify(tmp_path) == []
    assert records.load_runs(tmp_path).status.tolist() == ["diverged"]


def test_a_run_that_diverges_later_is_tested_with_its_best_weights(tmp_path, synthetic, monkeypatch, whole):
    step, count = Engine.step, itertools.count()

    def poisoned(self, *args):
        step(self, *args)
        if next(count) == 8:  # the first step of the third epoch
            self.net.head.bias.data.fill_(math.nan)

    monkeypatch.setattr(Engine, "step", poisoned)
    record = training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    assert (record["status"], record["result"]["epochs"]) == ("diverged", 3)
    assert record["result"]["best_epoch"] in (1, 2)
    assert record["result"]["test_loss"] is not None and record["result"]["test_loss_last"] is None
    assert contents(tmp_path, SMALL)[0].splitlines()[:3] == whole[0].splitlines()[:3]
    assert records.verify(tmp_path) == []


def test_what_is_recorded_is_not_trained_again(tmp_path, synthetic, monkeypatch):
    run = find("vgg08").tiny(limit=100, epochs=1)
    first = training.train(run, 0, synthetic, tmp_path, "cpu")
    folder, said = records.folder_of(tmp_path, run.name, 0), []
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    untrained(monkeypatch)
    assert training.train(run, 0, synthetic, tmp_path, "cpu", say=said.append) == first
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert len(said) == 1 and "recorded already" in said[0] and str(folder) in said[0]
    (folder / "checkpoint.pt").write_bytes(b"left by a crash after the record")
    training.train(run, 0, synthetic, tmp_path, "cpu")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_test_set_is_seen_by_the_first_of_the_best_epochs(tmp_path, synthetic, monkeypatch):
    evaluate, save = Engine.evaluate, training.save
    validation, weights = iter([0.1, 0.3, 0.3, 0.2]), {}

    def scripted(self, images):
        loss, acc = evaluate(self, images)
        return loss, next(validation, acc)  # the test set is evaluated last

    def keeping(folder, run, seed, engine, state):
        weights[state.epoch] = {k: v.clone() for k, v in engine.net.state_dict().items()}
        save(folder, run, seed, engine, state)

    run = Run("vgg08", lr=1e-2).tiny(limit=100, epochs=4, batch=50)
    with monkeypatch.context() as m:
        m.setattr(Engine, "evaluate", scripted)
        m.setattr(training, "save", keeping)
        result = training.train(run, 0, synthetic, tmp_path, "cpu")["result"]

    def tested(epoch):
        engine = Engine(build(run.model), run.lr, 0, CPU)
        engine.net.load_state_dict(weights[epoch])
        return engine.evaluate(data.Images(*synthetic.subset(100).test))

    assert (result["best_epoch"], result["best_val_acc"], result["val_acc"]) == (2, 0.3, 0.2)
    assert (result["test_loss"], result["test_acc"]) == pytest.approx(tested(2), abs=1e-6)
    assert (result["test_loss_last"], result["test_acc_last"]) == pytest.approx(tested(4), abs=1e-6)
    assert tested(2) != tested(3)


def test_history_and_gradients_have_one_line_an_epoch(tmp_path, synthetic):
    training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    history = records.load_series(SMALL.name, "history.csv", tmp_path)
    gradients = records.load_series(SMALL.name, "gradients.csv", tmp_path)
    assert history.epoch.tolist() == [1, 2, 3]
    assert history.lr.tolist() == pytest.approx([SMALL.lr_at(4 * k, 4) for k in range(3)], rel=1e-5)
    assert gradients.epoch.tolist() == [0, 1, 2, 3]
    names = [name for name, _ in layers(build(SMALL.model))]
    assert gradients.columns.tolist() == ["epoch", *names, "seed"]
    assert (gradients[names] > 0).all(axis=None)


def test_a_run_is_trained_by_its_recipe(tmp_path, synthetic):
    recipe = dict(weight_decay=0.5, optimizer="sgd", normalise="own", augment=False, lr=1e-2)
    run, more = Run("vgg08", **recipe).tiny(limit=100, epochs=2, batch=50), replace(synthetic, classes=107)
    training.train(run, 0, more, tmp_path, "cpu")
    few, engine = synthetic.subset(100), Engine(build("vgg08", 0, classes=107), 1e-2, 0.5, CPU, optimizer="sgd")
    scale, losses = data.scaling("own", few.train[0]), []
    images, held = (data.Images(*part, CPU, *scale) for part in (few.train, few.val))
    for epoch in range(2):
        for i, batch in enumerate(data.plan_epoch(100, 0, epoch, augment=False).batches(50)):
            engine.step(images, batch, run.lr_at(2 * epoch + i, 2))
        losses.append((engine.metrics()[0], engine.evaluate(held)[0]))
    told = records.load_series(run.name, "history.csv", tmp_path)[["train_loss", "val_loss"]].to_numpy()
    assert told == pytest.approx(torch.tensor(losses).numpy(), abs=2e-6) and run.lr_at(2, 2) < 0.6e-2


def test_the_net_is_built_with_the_runs_initialisation_and_slope(tmp_path, synthetic):
    run = Run("vgg08", init="delta-orthogonal", slope=0.6).tiny(limit=100, epochs=1)
    training.train(run, 0, synthetic, tmp_path, "cpu")
    first = next(data.plan_epoch(100, 0, 0).batches(100))
    batch = data.Images(*synthetic.subset(100).train).batch(first)
    expected = flow_on(build("vgg08", 0, "delta-orthogonal", 0.6), *batch)
    start = records.load_series(run.name, "gradients.csv", tmp_path).iloc[0]
    assert [start[layer] for layer in expected] == pytest.approx(list(expected.values()), rel=1e-3)


def test_a_later_commit_that_went_on_with_the_run_is_recorded(tmp_path, synthetic, monkeypatch):
    stop(tmp_path, synthetic, 5)
    monkeypatch.setenv("VGGRES_COMMIT", "1" * 40)
    records.provenance.cache_clear()
    git = training.train(SMALL, 0, synthetic, tmp_path, "cpu")["git"]
    assert git["commit"] == "0" * 40
    assert git["later"] == [{"commit": "1" * 40, "dirty": None}]
    assert records.load_runs(tmp_path).commit.tolist() == ["0" * 40 + ", then " + "1" * 40]


def test_a_device_that_went_on_with_another_s_run_is_recorded(tmp_path, synthetic, monkeypatch):
    monkeypatch.setattr("vggres.engine.pick_precision", lambda device: "fp32")
    stop(tmp_path, synthetic, 5)
    monkeypatch.setattr("vggres.engine.pick_precision", lambda device: "bf16")
    device = training.train(SMALL, 0, synthetic, tmp_path, "cpu", together=2)["device"]
    assert (device["precision"], device["together"]) == ("fp32", 1)
    then = {"precision": "bf16", "convolution": fused_cpu.available() or "torch", "together": 2}
    assert device["later"] == [{k: v for k, v in device.items() if k != "later"} | then]
    (run,) = records.load_runs(tmp_path).itertuples()
    assert (run.device, run.precision) == (device["name"], "fp32, then bf16")


@pytest.mark.parametrize("at_once", [None, 2])
def test_runs_trained_together_are_the_same_as_alone(tmp_path, synthetic, whole, at_once, monkeypatch):
    monkeypatch.setattr(training, "APART", 0)
    others = [(SMALL, 1), (Run("vgg38-bn-rc").tiny(limit=100, epochs=1, batch=50), 0)]
    jobs = [(SMALL, 0), *others]
    trainings = (training.steps(run, seed, synthetic, tmp_path / "together", "cpu") for run, seed in jobs)
    together = dict(training.train_together(trainings, at_once))
    assert contents(tmp_path / "together", SMALL) == whole
    assert list(together) == ([2, 0, 1] if at_once is None else [0, 1, 2])  # as they end
    for i, (run, seed) in enumerate(others, start=1):
        alone = training.train(run, seed, synthetic, tmp_path / "alone", "cpu")
        assert together[i]["files"]["gradients.csv"] == alone["files"]["gradients.csv"]
        assert together[i]["result"] == alone["result"]


def both_seeds(results, synthetic, **options):
    return training.train_together(training.steps(SMALL, k, synthetic, results, "cpu", **options) for k in (0, 1))


def test_runs_that_begin_together_do_not_keep_in_step(monkeypatch):
    monkeypatch.setattr(training, "APART", 2)
    seen = []

    def steps(name):
        for _ in range(4):
            seen.append(name)
            yield 1

    assert [i for i, _ in training.train_together([steps("a"), steps("b")])] == [1, 0]
    assert "".join(seen) == "abbbabaa"


def test_one_that_fails_stops_the_others_and_they_resume(tmp_path, synthetic, whole, monkeypatch):
    monkeypatch.setattr(training, "APART", 0)
    folder = records.folder_of(tmp_path, SMALL.name, 1)
    folder.mkdir(parents=True)
    with FileLock(folder / "train.lock"), pytest.raises(UserError, match="another process"):
        list(both_seeds(tmp_path, synthetic))
    assert [record["seed"] for _, record in both_seeds(tmp_path, synthetic)] == [0, 1]
    assert contents(tmp_path, SMALL) == whole


def test_together_the_time_is_up_for_each(tmp_path, synthetic):
    assert list(both_seeds(tmp_path, synthetic, minutes=0)) == [(0, None), (1, None)]


def test_progress_is_silent_where_there_is_no_terminal(tmp_path, synthetic, capfd):
    training.train(find("vgg08").tiny(limit=100, epochs=1), 0, synthetic, tmp_path, "cpu")
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_loss_accuracy_speed_and_time_left(tmp_path, synthetic, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    last = terminal.getvalue().split("\r")[-1]
    for part in (SMALL.name, "600/600", "images/s", "loss", "val", "%", "<"):
        assert part in last


@pytest.mark.parametrize(
    "run",
    [
        Run("resnet18-dropout").tiny(limit=8, epochs=2, batch=4),
        Run("basenet-1", optimizer="sgd", lr=1e-2).tiny(limit=200, epochs=2, batch=50),
        Run("vgg16-bn-rc", optimizer="muon", lr=1e-2).tiny(limit=200, epochs=2, batch=50),
        Run("vgg08", optimizer="adam-scaled").tiny(limit=200, epochs=2, batch=50),
        Run("vgg08", optimizer="adam-two-rates", lr=1e-2).tiny(limit=200, epochs=2, batch=50),
    ],
    ids=["dropout", "sgd", "muon", "adam-scaled", "adam-two-rates"],
)
def test_dropout_and_momentum_resume_exactly_and_do_not_mind_company(tmp_path, synthetic, run):
    training.train(run, 0, synthetic, tmp_path / "whole", "cpu")
    stop(tmp_path / "cut", synthetic, math.ceil(run.limit / run.batch) + 1, run)
    torch.manual_seed(7)
    training.train(run, 0, synthetic, tmp_path / "cut", "cpu")
    assert contents(tmp_path / "cut", run) == contents(tmp_path / "whole", run)
    list(training.train_together(training.steps(run, k, synthetic, tmp_path / "both", "cpu") for k in (0, 1)))
    assert contents(tmp_path / "both", run) == contents(tmp_path / "whole", run)


@pytest.fixture
def pretrained(tmp_path, synthetic, monkeypatch):
    """SMALL, trained, its weights kept."""
    monkeypatch.setattr(weights, "WEIGHTS", {SMALL.name})
    training.train(SMALL, 0, synthetic, tmp_path, "cpu")
    return weights.read(SMALL.name, tmp_path)[0]


def further(trained, **changes):
    settings = dict(start=SMALL.name, trained=trained, lr=1e-2) | changes
    return Run("vgg08", **settings).tiny(limit=100, epochs=1, batch=50)


@pytest.mark.parametrize("trained", ["all", "last"])
def test_a_run_starts_from_the_kept_weights_of_another(tmp_path, synthetic, pretrained, keep_weights, trained):
    run = further(trained)
    record = training.train(run, 0, synthetic, tmp_path, "cpu")
    digest = records.read(records.folder_of(tmp_path, SMALL.name, 0))["weights"]["sha256"]
    assert record["start"] == {"run": SMALL.name, "sha256": digest} and records.verify(tmp_path) == []

    moved = {
        name for name, p in build("vgg08").named_parameters() if (keep_weights.last[name] - pretrained[name]).any()
    }
    assert moved == (
        {"head.weight", "head.bias"} if trained == "last" else set(dict(build("vgg08").named_parameters()))
    )
    assert (keep_weights.last["entry.norm.running_mean"] != pretrained["entry.norm.running_mean"]).any()
    assert record["model"]["params"] == (3_300 if trained == "last" else 59_716)
    columns = records.load_series(run.name, "gradients.csv", tmp_path).columns
    every = [name for name, _ in layers(build("vgg08"))]
    assert list(columns[1:-1]) == (["head"] if trained == "last" else every)


def test_the_last_layer_starts_as_it_was_drawn_also_for_another_number_of_classes(tmp_path, pretrained):
    net, fresh = build("vgg08", 5, classes=7), build("vgg08", 5, classes=7)
    weights.begin(net, further("last"), tmp_path)
    assert torch.equal(net.head.weight, fresh.head.weight)
    assert torch.equal(net.stage2.reduce.conv1.weight, pretrained["stage2.reduce.conv1.weight"])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_a_start_without_weights_says_what_to_train_first(tmp_path, synthetic, monkeypatch):
    untrained(monkeypatch)
    with pytest.raises(Unready, match="keeps no weights"):
        training.train(further("all"), 0, synthetic, tmp_path, "cpu")
    monkeypatch.setattr(weights, "WEIGHTS", {SMALL.name})
    with pytest.raises(Unready, match=f"vggres train {SMALL.name}"):
        training.train(further("all"), 0, synthetic, tmp_path, "cpu")


def test_a_checkpoint_that_began_from_other_weights_is_not_resumed(tmp_path, synthetic, pretrained):
    run = replace(further("all"), start="mine", epochs=2)
    other = {name: 2 * weight for name, weight in pretrained.items()}
    first = training.steps(run, 0, synthetic, tmp_path, "cpu", start=(pretrained, "a" * 64))
    for _ in range(3):  # two steps are an epoch
        next(first)
    first.close()
    with pytest.raises(UserError, match="began from other weights"):
        training.train(run, 0, synthetic, tmp_path, "cpu", start=(other, "b" * 64))
    record = training.train(run, 0, synthetic, tmp_path, "cpu", start=(pretrained, "a" * 64))
    assert record["start"]["sha256"] == "a" * 64 and record["time"]["resumes"] == 1


def test_a_start_of_another_network_is_refused(tmp_path, pretrained):
    with pytest.raises(UserError, match="of a vgg38, not"):
        weights.begin(build("vgg38"), Run("vgg38", start=SMALL.name), tmp_path)


def test_large_weights_are_kept_where_git_does_not_look_and_may_be_absent_but_not_changed(
    tmp_path, synthetic, monkeypatch
):
    monkeypatch.setattr(weights, "WEIGHTS", {SMALL.name})
    monkeypatch.setattr(weights, "COMMITTED", 1000)
    file = tmp_path / training.train(SMALL, 0, synthetic, tmp_path, "cpu")["weights"]["file"]
    assert file.parent.name == records.LOCAL_WEIGHTS and records.verify(tmp_path) == []
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "was changed" in records.verify(tmp_path)[0]
    with pytest.raises(UserError, match="not the weights"):
        weights.read(SMALL.name, tmp_path)
    file.unlink()
    assert records.verify(tmp_path) == []
    with pytest.raises(Unready, match="train it again"):
        weights.read(SMALL.name, tmp_path)
