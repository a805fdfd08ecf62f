"""Datasets from disk to batches: what is read, what is refused, and that every random choice is fixed."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import functional as vision

from vggres import data
from vggres.data import Images, Plan, plan_epoch
from vggres.errors import UserError

COUNTS = {"train": 400, "test": 100}
CLASSES = 10
LABELS = {"cifar100": ("coarse_labels", "fine_labels"), "cifar10": ("labels",)}
GENUINE = {"cifar100": torchvision.datasets.CIFAR100, "cifar10": torchvision.datasets.CIFAR10}


def draw(name, split):
    """Records as they lie in the binary layout, with a coarse label that is never a fine one."""
    rng = np.random.default_rng(len(name) + len(split))
    fine = rng.permutation(COUNTS[split]) % CLASSES
    labels = [200 + fine // 5, fine] if name == "cifar100" else [fine]
    pixels = rng.integers(0, 256, (COUNTS[split], 3072))
    return np.column_stack([*labels, pixels]).astype(np.uint8)


def digest(records):
    """The order-independent digest, from the published definition and not from `vggres.data`."""
    each = sorted(hashlib.sha256(bytes([r[-3073]]) + bytes(r[-3072:])).digest() for r in records)
    return hashlib.sha256(b"".join(each)).hexdigest()


def write_small(monkeypatch, root, name="cifar100"):
    """Put a small dataset of that name under `root` and let `vggres.data` take it for the genuine one."""
    splits = {split: draw(name, split) for split in COUNTS}
    digests = {split: digest(records) for split, records in splits.items()}
    spec = replace(data.SPECS[name], counts=COUNTS, digests=digests)
    monkeypatch.setitem(data.SPECS, name, spec)
    folder = root / spec.folder
    folder.mkdir(parents=True)
    for split, records in splits.items():
        for file, part in zip(spec.files[split], np.split(records, len(spec.files[split])), strict=True):
            part.tofile(folder / file)
    return folder


def write_small_python(monkeypatch, root, name="cifar100"):
    """The same in the python layout, with torchvision's MD5 sums to match."""
    binary, spec, genuine, n = write_small(monkeypatch, root, name), data.SPECS[name], GENUINE[name], len(LABELS[name])
    folder = root / spec.python_folder
    folder.mkdir()

    def dump(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for split, files in spec.files.items():
        sums = []
        for source, (file, _) in zip(files, getattr(genuine, f"{split}_list"), strict=True):
            records = np.fromfile(binary / source, np.uint8).reshape(-1, n + 3072)
            batch = {key: records[:, i].tolist() for i, key in enumerate(LABELS[name])}
            sums.append([file, dump(file, {"data": records[:, n:], **batch})])
        monkeypatch.setattr(genuine, f"{split}_list", sums)
    meta = genuine.meta
    md5 = dump(meta["filename"], {meta["key"]: [f"class {i}" for i in range(CLASSES)]})
    monkeypatch.setattr(genuine, "meta", meta | {"md5": md5})
    shutil.rmtree(binary)
    return folder


def read_all(loaded):
    """Every image as channel-first bytes with its label, by split, in the order loaded."""
    return {
        split: [(im.transpose(2, 0, 1).tobytes(), int(y)) for im, y in zip(*getattr(loaded, split), strict=True)]
        for split in ("train", "val", "test")
    }


@pytest.fixture(scope="module")
def synthetic():
    return data.synthetic()


@pytest.mark.parametrize("layout", [write_small, write_small_python])
@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_every_image_is_read_with_its_fine_label(tmp_path, monkeypatch, name, layout):
    layout(monkeypatch, tmp_path, name)
    loaded = data.load(name, tmp_path)
    read = read_all(loaded)
    for split, parts in (("train", read["train"] + read["val"]), ("test", read["test"])):
        assert sorted(parts) == sorted((bytes(r[-3072:]), int(r[-3073])) for r in draw(name, split))
    assert loaded.train[0].dtype == np.uint8 and loaded.train[0].shape == (380, 32, 32, 3)
    assert loaded.train[1].dtype == np.int64
    assert loaded.digests == data.SPECS[name].digests


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_order_on_disk_does_not_matter(tmp_path, monkeypatch, name):
    folder = write_small(monkeypatch, tmp_path, name)
    before = data.load(name, tmp_path)
    for split, files in data.SPECS[name].files.items():
        records = draw(name, split)[::-1]
        for file, part in zip(files, np.split(records, len(files)), strict=True):
            part.tofile(folder / file)
    assert read_all(data.load(name, tmp_path)) == read_all(before)


def test_a_layouts_own_folder_will_do(tmp_path, monkeypatch):
    folder = write_small(monkeypatch, tmp_path)
    assert data.available("cifar100", folder)
    assert read_all(data.load("cifar100", folder)) == read_all(data.load("cifar100", tmp_path))


def test_a_python_layouts_own_folder_will_do(tmp_path, monkeypatch):
    folder = write_small_python(monkeypatch, tmp_path)
    assert data.available("cifar100", folder)
    assert read_all(data.load("cifar100", folder)) == read_all(data.load("cifar100", tmp_path))
    monkeypatch.chdir(folder)
    assert read_all(data.load("cifar100", ".")) == read_all(data.load("cifar100", tmp_path))


def test_a_home_is_what_a_tilde_means(tmp_path, monkeypatch):
    write_small(monkeypatch, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.available("cifar100", "~")


def test_the_data_beside_a_folder_that_holds_none_is_not_taken(tmp_path, monkeypatch):
    write_small(monkeypatch, tmp_path)
    (tmp_path / "typo").mkdir()
    assert not data.available("cifar100", tmp_path / "typo")


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    write_small(monkeypatch, tmp_path)
    monkeypatch.setenv("VGGRES_DATA", str(tmp_path))
    assert len(data.load().train[1]) == 380


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_a_tampered_pickle_is_refused_before_it_is_opened(tmp_path, monkeypatch, name):
    folder = write_small_python(monkeypatch, tmp_path, name)

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / GENUINE[name].train_list[0][0]).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=rf"{folder.name}: damaged.*vggres data --dataset {name}`"):
        data.load(name, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_dataset_says_where_it_looked_and_how_to_get_it(tmp_path):
    assert not data.available("cifar100", tmp_path)
    with pytest.raises(UserError) as e:
        data.load("cifar100", tmp_path)
    for part in (tmp_path, "cifar-100-binary", "cifar-100-python", "`vggres data", "--data", "VGGRES_DATA"):
        assert str(part) in str(e.value)


@pytest.mark.parametrize("file", ["train.bin", "test.bin"])
def test_a_truncated_file_is_named_with_its_size(tmp_path, monkeypatch, file):
    path = write_small(monkeypatch, tmp_path) / file
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(UserError) as e:
        data.load("cifar100", tmp_path)
    for part in (path, f"{size - 1} bytes", f"expected {size}", "delete", "fetch"):
        assert str(part) in str(e.value)


@pytest.mark.parametrize("at", [1, 2, 3073], ids=["label", "first pixel", "last pixel"])
@pytest.mark.parametrize(("split", "file"), [("train", "train.bin"), ("test", "test.bin")])
def test_a_changed_byte_is_refused_with_both_digests(tmp_path, monkeypatch, split, file, at):
    path = write_small(monkeypatch, tmp_path) / file
    records = draw("cifar100", split)
    records[17, at] ^= 1
    records.tofile(path)
    with pytest.raises(UserError) as e:
        data.load("cifar100", tmp_path)
    for part in (path.parent, file, digest(records), data.SPECS["cifar100"].digests[split], "`vggres data"):
        assert str(part) in str(e.value)
    assert path.stat().st_size == records.nbytes, "nothing may be deleted"


def test_an_unknown_dataset_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"'cifar1000'.*cifar100, cifar10.*synthetic"):
        data.load("cifar1000")


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    offline.filename = "cifar.tar.gz"
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    with pytest.raises(UserError, match=f"could not be downloaded to {tmp_path}: no route to host"):
        data.fetch("cifar100", tmp_path)


def test_what_is_fetched_is_named_and_its_archive_is_deleted(tmp_path, monkeypatch):
    def download(root, download):
        (root / "cifar.tar.gz").write_text("theirs")
        (root / "other.tar.gz").write_text("of another download beside this one")
        write_small(monkeypatch, root)

    download.filename = "cifar.tar.gz"
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", download)
    assert data.fetch("cifar100", tmp_path) == tmp_path / data.SPECS["cifar100"].folder
    assert [path.name for path in tmp_path.glob("*.tar.gz")] == ["other.tar.gz"]


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    folder = write_small(monkeypatch, tmp_path)
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", lambda *_, **__: pytest.fail("downloads"))
    assert data.fetch("cifar100", tmp_path) == folder


def test_hold_out_takes_the_smallest_hashes_of_each_class(tmp_path, monkeypatch):
    write_small(monkeypatch, tmp_path)
    loaded = data.load("cifar100", tmp_path)
    expected = []
    for c in range(CLASSES):
        members = [bytes(r[2:]) for r in draw("cifar100", "train") if r[1] == c]
        expected += [(pixels, c) for pixels in sorted(members, key=lambda p: hashlib.sha256(p).digest())[:2]]
    assert sorted(read_all(loaded)["val"]) == sorted(expected)
    assert Counter(loaded.train[1].tolist()) == dict.fromkeys(range(CLASSES), 38)


def test_the_few_that_train_are_those_of_the_smallest_hashes_of_each_class(tmp_path, monkeypatch):
    write_small(monkeypatch, tmp_path)
    monkeypatch.setitem(data.SPECS, "cifar100-30", replace(data.SPECS["cifar100"], classes=CLASSES, images_a_class=3))
    whole, few = data.load("cifar100", tmp_path), data.load("cifar100-30", tmp_path)
    every, expected = read_all(whole), []
    for c in range(CLASSES):
        members = [pixels for pixels, y in every["train"] if y == c]
        smallest = sorted(members, key=lambda p: hashlib.sha256(bytes([c]) + p).digest())[:3]
        expected += [(pixels, c) for pixels in smallest]
    assert sorted(read_all(few)["train"]) == sorted(expected)
    assert all(read_all(few)[split] == every[split] for split in ("val", "test"))
    assert (few.name, few.digests, few.classes) == ("cifar100-30", whole.digests, CLASSES)


def test_the_genuine_few_are_3000():
    spec = data.SPECS["cifar100-30"]
    assert spec.images_a_class * spec.classes == 3000 and spec.digests == data.SPECS["cifar100"].digests
    names = ("cifar100", "cifar100-30", "cifar10")
    assert [data.SPECS[name].classes for name in names] == [100, 100, 10]
    assert [data.training_images(name) for name in names] == [47_500, 3_000, 47_500]


@pytest.mark.parametrize("normalise", ["own", "none", "course"])
def test_images_are_normalised_as_the_run_says(some, normalise):
    images, labels, _ = some
    pixels = images.reshape(-1, 3) / 255
    mean, std = data.scaling(normalise, images)
    if normalise == "own":
        assert mean == pytest.approx(pixels.mean(0)) and std == pytest.approx(pixels.std(0))
    ours, _ = next(Images(images, labels, mean=mean, std=std).batches(60))
    theirs = {"own": (pixels.mean(0), pixels.std(0)), "none": (0, 1), "course": (data.MEAN, data.STD)}[normalise]
    expected = (images / 255 - np.array(theirs[0])) / np.array(theirs[1])
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1), expected, atol=1e-5)


def test_an_epochs_choices_depend_on_seed_and_epoch_alone():
    def choices(*args):
        plan = plan_epoch(*args)
        return torch.cat([plan.index[:, None], plan.shift, plan.flip[:, None]], 1)

    torch.manual_seed(0)
    one = choices(500, 3, 7)
    torch.manual_seed(1)
    np.random.seed(1)
    choices(500, 3, 6)
    assert torch.equal(choices(500, 3, 7), one)
    for other in ((500, 3, 8), (500, 4, 7), (500, 7, 3)):
        assert not torch.equal(choices(*other), one)
    # The images come in the same order with and without augmentation.
    assert torch.equal(plan_epoch(500, 3, 7, augment=False).index, one[:, 0])


def test_an_epoch_sees_each_image_once_and_all_shifts_and_flips():
    plan = plan_epoch(5000, 0, 0)
    assert torch.equal(plan.index.sort().values, torch.arange(5000))
    pairs = Counter(map(tuple, plan.shift.tolist()))
    assert set(pairs) == {(down, right) for down in range(9) for right in range(9)}
    assert 0.45 < plan.flip.float().mean() < 0.55
    assert sum(len(batch.index) for batch in plan.batches(300)) == 5000


@pytest.fixture(scope="module")
def some():
    """Images, labels and a plan of 40 of them that has both kinds of flip and the extreme shifts."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), rng.integers(0, 100, 60)
    plan = next(plan_epoch(60, 0, 0).batches(40))
    plan.shift[:4] = torch.tensor([[0, 0], [8, 8], [0, 8], [4, 4]])
    assert plan.flip.any() and not plan.flip.all()
    return images, labels, plan


def test_a_batch_is_cropped_flipped_and_normalised_as_by_torchvision(some):
    images, labels, plan = some
    x, y = Images(images, labels).batch(plan)
    assert x.shape == (40, 3, 32, 32) and x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, torch.from_numpy(labels)[plan.index])
    for k, (i, (down, right), flip) in enumerate(zip(plan.index, plan.shift.tolist(), plan.flip, strict=True)):
        image = vision.crop(vision.pad(torch.from_numpy(images[i]).permute(2, 0, 1), 4), down, right, 32, 32)
        image = vision.convert_image_dtype(vision.hflip(image) if flip else image)
        mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
        torch.testing.assert_close(x[k], vision.normalize(image, mean, std), atol=1e-5, rtol=0)


def test_without_augmentation_a_batch_is_an_evaluation_batch(some):
    images, labels, _ = some
    held = Images(images, labels)
    plan = plan_epoch(60, 0, 0, augment=False)
    x, y = held.batch(plan)
    batches = list(held.batches(25))
    assert [len(labels) for _, labels in batches] == [25, 25, 10]
    assert torch.equal(torch.cat([x for x, _ in batches])[plan.index], x)
    assert torch.equal(torch.cat([y for _, y in batches])[plan.index], y)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)


def test_a_plan_moves_to_a_device_whole(some):
    moved = some[2].to(torch.device("meta"))
    assert isinstance(moved, Plan) and {choice.device.type for choice in moved} == {"meta"}


def test_synthetic_set_is_the_same_every_time_and_of_another_seed_another(synthetic):
    assert read_all(data.synthetic()) == read_all(synthetic)
    assert not np.array_equal(data.synthetic(1).train[0], synthetic.train[0])


def test_synthetic_set_looks_like_a_dataset(synthetic):
    sizes = {"train": 5000, "val": 500, "test": 500}
    for split, n in sizes.items():
        images, labels = getattr(synthetic, split)
        assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8
        assert labels.shape == (n,) and labels.dtype == np.int64
    assert data.load("synthetic").name == "synthetic"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_synthetic_set_is_balanced_by_class(synthetic, split):
    labels = getattr(synthetic, split)[1]
    assert Counter(labels.tolist()) == dict.fromkeys(range(100), len(labels) // 100)


def test_synthetic_set_takes_less_than_two_seconds():
    began = time.process_time()
    data.synthetic()
    assert time.process_time() - began < 2


def test_a_subset_is_balanced_and_part_of_the_whole(synthetic):
    few = synthetic.subset(1000)
    assert Counter(few.train[1].tolist()) == dict.fromkeys(range(100), 10)
    assert (len(few.train[1]), len(few.val[1]), len(few.test[1])) == (1000, 500, 500)
    assert set(read_all(few)["train"]) <= set(read_all(synthetic)["train"])
    assert len(synthetic.subset(10**6).train[1]) == 5000


MEASURE = """
import json, time
import torch
from vggres import data

def peak():
    # Not ru_maxrss: it begins with the peak of the process that forked this one.
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))

before, began = peak(), time.perf_counter()
d = data.load("cifar100")
seconds, size = time.perf_counter() - began, peak() - before
val = torch.bincount(torch.from_numpy(d.val[1])).tolist()
print(json.dumps([seconds, size, [len(d.train[1]), len(d.val[1]), len(d.test[1])], val]))
"""


@pytest.mark.skipif(not data.available(), reason="no CIFAR-100 here: its loading time, memory and split are not tested")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_cifar100_loads_in_seconds_and_500_mb():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    seconds, size, sizes, per_class = json.loads(done.stdout)
    assert sizes == [47_500, 2_500, 10_000]
    assert per_class == [25] * 100
    assert size < 500e6
    assert seconds < 6  # 2 s on a machine that does nothing else
