"""The record on disk: that it comes back as it was written, and that nothing in it can be changed unseen."""

import csv
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import vggres
from vggres import data, records, training
from vggres.errors import UserError
from vggres.files import write_atomically
from vggres.models import build, layers
from vggres.runs import Run, find

RUN = find("vgg08").tiny(limit=200, epochs=1)
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def fresh_provenance():
    """The commit is read once in a process; these tests need more."""
    records.provenance.cache_clear()
    yield
    records.provenance.cache_clear()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("VGGRES_COMMIT", COMMIT)
        records.provenance.cache_clear()
        training.train(RUN, 0, data.synthetic(), results, "cpu")
    return results


@pytest.fixture
def results(written, tmp_path):
    return shutil.copytree(written, tmp_path / "results")


@pytest.fixture
def folder(results):
    return records.folder_of(results, RUN.name, 0)


def rows(path):
    with path.open(newline="") as f:
        return [{k: float(v) if k != "epoch" else int(v) for k, v in row.items()} for row in csv.DictReader(f)]


def rewrite(folder, change, to=None):
    """Write the record anew after a change, with hashes that fit: what a careless tool would do."""
    record = records.read(folder)
    for key in ("schema", "files", "sha256"):
        del record[key]
    change(record)
    history, gradients = rows(folder / "history.csv"), rows(folder / "gradients.csv")
    if to is not None:
        shutil.rmtree(folder)
        to.mkdir(parents=True)
    records.write(to or folder, record, history, gradients)


def as_cifar100(results, change=lambda record: None, run=Run("vgg08", epochs=1)):  # noqa: B008
    """Turn the record into one that claims CIFAR-100 with its genuine digests."""

    def claim(record):
        record["run"] = run.to_dict()
        record["data"] |= {f"digest_{k}": v for k, v in data.SPECS["cifar100"].digests.items()}
        change(record)

    rewrite(records.folder_of(results, RUN.name, 0), claim, to=records.folder_of(results, run.name, 0))


def test_a_record_tells_what_was_run_and_where(folder):
    record = records.read(folder)
    assert Run.from_dict(record["run"]) == RUN
    assert (record["schema"], record["seed"], record["status"], record["error"]) == (1, 0, "completed", None)
    assert record["model"] == {"params": 59_716, "layers": 8}
    assert {k: record["data"][k] for k in ("name", "train", "val", "test")} == {
        "name": "synthetic",
        "train": 200,
        "val": 100,
        "test": 100,
    }
    assert record["git"] == {"commit": COMMIT, "dirty": None}
    assert record["device"]["type"] == "cpu" and record["device"]["precision"] in ("bf16", "fp32")
    assert {"python", "torch", "numpy", "platform"} <= set(record["env"])
    assert record["time"]["wall_s"] > 0 and record["time"]["resumes"] == 0
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") == [
        "gradients.csv",
        "history.csv",
        "run.json",
    ]


def test_an_untouched_record_is_whole(results):
    assert records.verify(results) == []


def test_writing_what_was_read_gives_the_same_bytes(folder):
    before = {p.name: p.read_bytes() for p in folder.glob("*.*") if p.suffix != ".lock"}
    rewrite(folder, lambda record: None)
    assert {p.name: p.read_bytes() for p in folder.glob("*.*") if p.suffix != ".lock"} == before


def test_run_json_is_written_last(folder, monkeypatch):
    order, write = [], records.write_atomically
    monkeypatch.setattr(records, "write_atomically", lambda path, c: (order.append(path.name), write(path, c)))
    rewrite(folder, lambda record: None)
    assert order == ["history.csv", "gradients.csv", "run.json"]


@pytest.mark.parametrize("file", ["run.json", "history.csv", "gradients.csv"])
def test_no_digit_can_be_changed_unseen(results, folder, file):
    path = folder / file
    content = path.read_text()
    digits = [i for i, c in enumerate(content) if c.isdigit()]
    assert len(digits) > 30
    for i in digits:
        path.write_text(f"{content[:i]}{(int(content[i]) + 1) % 10}{content[i + 1 :]}")
        assert records.verify(results), f"unseen: character {i}, in {content[i - 20 : i + 20]!r}"
    path.write_text(content)
    assert records.verify(results) == []


@pytest.mark.parametrize("file", ["history.csv", "gradients.csv"])
def test_a_changed_or_missing_file_is_named(results, folder, file):
    (folder / file).write_text((folder / file).read_text() + "\n")
    assert records.verify(results) == [f"{folder}: {file} was changed after it was written"]
    (folder / file).unlink()
    problems = records.verify(results)
    assert problems and all(p.startswith(str(folder)) for p in problems)
    assert any(f"{file} is missing" in p for p in problems)


@pytest.mark.parametrize("part", ["run", "files", "result", "git"])
def test_a_part_that_is_a_list_is_named_and_the_others_are_still_checked(results, folder, part):
    other = shutil.copytree(folder, folder.with_name("seed9"))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {part: []}))
    problems = records.verify(results)
    assert any(p.startswith(f"{folder}: is no readable record") for p in problems)
    assert any(p.startswith(f"{other}: lies in the wrong place") for p in problems)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", "\x00"])
def test_what_is_no_record_is_named_and_the_others_are_still_checked(results, folder, content):
    other = shutil.copytree(folder, folder.with_name("seed9"))
    (folder / "run.json").write_text(content)
    problems = records.verify(results)
    assert any(p.startswith(f"{folder}: ") for p in problems)
    assert any(p.startswith(f"{other}: ") for p in problems)


@pytest.mark.parametrize("place", ["vgg38/seed0", f"{RUN.name}/seed1", f"{RUN.name}/seed00"])
def test_a_record_in_another_place_is_found_out(results, folder, place):
    moved = results / "runs" / place
    moved.parent.mkdir(exist_ok=True)
    folder.rename(moved)
    assert records.verify(results) == [f"{moved}: lies in the wrong place: it is {RUN.name}, seed 0"]


def test_a_record_that_was_moved_aside_is_no_record(results, folder):
    folder.rename(folder.with_name("seed0.old"))
    assert records.folders(results) == [] and len(records.load_series(RUN.name, "history.csv", results)) == 0


@pytest.mark.parametrize("commit", ["", "main", "0" * 39, "unknown"])
def test_a_record_needs_a_commit(results, folder, commit):
    rewrite(folder, lambda record: record["git"].update(commit=commit))
    assert records.verify(results) == [f"{folder}: has no commit: {commit!r}"]


def test_a_record_needs_the_genuine_images(results):
    as_cifar100(results)
    assert records.verify(results) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_record_of_other_images_is_found_out(results, split):
    digest = data.SPECS["cifar100"].digests[split]
    as_cifar100(results, lambda record: record["data"].update({f"digest_{split}": digest[::-1]}))
    (problem,) = records.verify(results)
    assert "not trained on the genuine cifar100" in problem


def test_a_record_under_a_registered_name_needs_the_registered_settings(results):
    run = Run("vgg38-bn", lr=0.0100000001)  # the name rounds
    assert run.name == "vgg38-bn-lr1e-2"
    as_cifar100(results, run=run)
    assert any("not those of the registered run" in p for p in records.verify(results))


def test_completed_means_all_epochs(results):
    as_cifar100(results, run=Run("vgg08", epochs=2))
    (problem,) = records.verify(results)
    assert "called completed after 1 of 2 epochs" in problem


def test_a_diverged_run_may_end_early(results):
    as_cifar100(results, lambda record: record.update(status="diverged"), run=Run("vgg08", epochs=2))
    assert records.verify(results) == []


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (dict(epochs=2), "not one line an epoch"),
        (dict(val_acc=0.5), "disagree"),
        (dict(best_epoch=None), "disagree"),
        (dict(train_loss=None), "disagree"),
    ],
    ids=str,
)
def test_the_result_is_what_the_history_says(results, folder, result, problem):
    rewrite(folder, lambda record: record["result"].update(result))
    assert any(problem in p for p in records.verify(results))


def test_a_result_that_is_not_finite_is_null():
    nan, history = float("nan"), []
    for epoch, (loss, acc) in enumerate([(4.0, 0.2), (nan, 0.9), (3.0, 0.2)], 1):
        history.append(dict(epoch=epoch, train_loss=nan, train_acc=0.1, val_loss=loss, val_acc=acc))
    summary = records.summarise(history)
    assert summary["train_loss"] is None
    assert (summary["best_epoch"], summary["best_val_acc"]) == (1, 0.2)  # the first of equals, and a finite one


def test_records_load_as_one_tidy_table(results, folder):
    shutil.copytree(folder, folder.with_name("seed3"))
    rewrite(folder.with_name("seed3"), lambda record: record.update(seed=3) or record["device"].update(together=4))
    table = records.load_runs(results)
    assert table.run.tolist() == [RUN.name] * 2
    assert table.seed.tolist() == [0, 3]
    record = records.read(folder)
    assert table.wall_s[1] == record["time"]["wall_s"] / 4, "the time of a device that four runs shared"
    row = table.iloc[0]
    assert {k: row[k] for k in record["result"]} == record["result"]
    assert row[["status", "params", "commit", "digest", "precision", "device", "wall_s"]].tolist() == [
        "completed",
        59_716,
        COMMIT,
        "synthetic",
        record["device"]["precision"],
        record["device"]["name"],
        record["time"]["wall_s"],
    ]


def test_no_records_are_an_empty_table_with_columns(tmp_path):
    for results in (tmp_path, tmp_path / "nowhere"):
        table = records.load_runs(results)
        assert len(table) == 0
        assert {"run", "seed", "status", "train_loss", "val_acc", "test_acc", "commit"} <= set(table.columns)
        assert records.load_series("vgg08", "history.csv", results).columns.tolist() == ["epoch", "seed"]
        assert records.verify(results) == []


def test_series_of_all_seeds_come_together(results, folder):
    shutil.copytree(folder, folder.with_name("seed3"))
    history = records.load_series(RUN.name, "history.csv", results)
    assert history[["epoch", "seed"]].to_numpy().tolist() == [[1, 0], [1, 3]]
    assert history.columns.tolist() == [*records.HISTORY, "seed"]
    gradients = records.load_series(RUN.name, "gradients.csv", results)
    assert gradients.columns.tolist() == ["epoch", *(name for name, _ in layers(build("vgg08"))), "seed"]
    assert gradients[["epoch", "seed"]].to_numpy().tolist() == [[0, 0], [1, 0], [0, 3], [1, 3]]
    assert records.load_series("vgg08", "history.csv", results).empty


def test_gradients_keep_four_significant_digits_of_a_vanishing_one(tmp_path):
    history = [dict.fromkeys(records.HISTORY, 1)]
    records.write(tmp_path, {}, history, [{"epoch": 0, "entry.conv": 1.23456e-18, "head": 0.000123456}])
    assert (tmp_path / "gradients.csv").read_text() == "epoch,entry.conv,head\n0,1.235e-18,0.0001235\n"


def test_the_hash_of_a_record_is_over_its_sorted_content(folder):
    record = json.loads((folder / "run.json").read_text())
    claimed = record.pop("sha256")
    content = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    assert claimed == hashlib.sha256(content).hexdigest()
    for name, digest in record["files"].items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package, which `provenance` takes for its own."""
    for name in ("VGGRES_COMMIT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    package = Path(vggres.__file__).parent
    copy = shutil.copytree(package, tmp_path / "vggres", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(records, "__file__", str(copy / "records.py"))
    return copy


@pytest.fixture
def git(copy):
    if shutil.which("git") is None:
        pytest.skip("no git here: that the commit is read from it is not tested")

    def git(*args):
        command = ["git", "-C", str(copy.parent), "-c", "user.name=test", "-c", "user.email=test@localhost", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    return git


def test_the_commit_is_that_of_the_checkout(copy, git):
    beside = copy.parent / "checkpoint.pt"  # as in unfinished/: it changes with every epoch
    beside.write_text("1")
    git("add", "vggres", beside.name)
    git("commit", "--quiet", "-m", "all")
    head = git("rev-parse", "HEAD")
    beside.write_text("2")
    assert records.provenance() == {"commit": head, "dirty": False}

    (copy / "models.py").write_text("")
    assert records.provenance() == {"commit": head, "dirty": False}, "it is read once in a process"
    records.provenance.cache_clear()
    assert records.provenance() == {"commit": head, "dirty": True}


def test_a_checkout_that_does_not_track_the_code_says_nothing_of_it(copy, git):
    git("commit", "--quiet", "--allow-empty", "-m", "another project")
    with pytest.raises(UserError, match=r"git does not tell that of .*did not match any file"):
        records.provenance()


def test_outside_a_checkout_the_environment_names_the_commit(copy, monkeypatch):
    with pytest.raises(UserError, match="train from a clone, or set VGGRES_COMMIT"):
        records.provenance()
    monkeypatch.setenv("VGGRES_COMMIT", COMMIT)
    assert records.provenance() == {"commit": COMMIT, "dirty": None}, "nothing compared them"


@pytest.mark.parametrize("commit", ["main", "unknown", COMMIT[:7]])
def test_what_is_no_commit_is_refused_before_training_and_not_after(copy, monkeypatch, commit):
    monkeypatch.setenv("VGGRES_COMMIT", commit)
    with pytest.raises(UserError, match="VGGRES_COMMIT"):
        records.provenance()


def test_a_copy_outside_a_checkout_is_told_what_to_do(copy):
    script = "from vggres import records; print(records.provenance()['commit'])"

    def run(**env):
        env = {**os.environ, "PYTHONPATH": str(copy.parent), **env}
        return subprocess.run([sys.executable, "-c", script], cwd=copy.parent, env=env, capture_output=True, text=True)

    refused, named = run(), run(VGGRES_COMMIT=COMMIT)
    last = refused.stderr.splitlines()[-1]
    assert refused.returncode and str(copy) in last and "VGGRES_COMMIT" in last
    assert named.stdout.strip() == COMMIT


def test_written_files_are_readable_by_others_and_leave_nothing_behind(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_just_after_the_new_file_is_in_place_stays_an_interrupt(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(*names):
        replace(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_full_disk_says_which_file_did_not_fit(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'file'}'"):
        write_atomically(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_pandas_reads_the_history_as_numbers(folder):
    assert pd.read_csv(folder / "history.csv").dtypes.map(lambda t: t.kind).isin(list("if")).all()
