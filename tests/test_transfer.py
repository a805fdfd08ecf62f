"""Report D's own route: a folder of images by class, and weights that are no run's."""

import hashlib
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli import refused, vggres

from vggres import data, photographs, records, weights
from vggres.errors import UserError
from vggres.models import build
from vggres.runs import Run

pytestmark = pytest.mark.usefixtures("commit")
SIZE = 16
COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 60), "red": (210, 50, 30)}


def draw(folder, n, seed):
    """`n` noisy pictures of each colour, larger than wanted and not square."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.normal(0, 20, (24, 40, 3)) + colour
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pictures(tmp_path):
    return draw(tmp_path / "pictures", 30, 0)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """What stands in for ImageNet's weights: a state_dict of torchvision's ResNet-18 with its 1,000 classes, which is
    from before batch normalisation counted its batches."""
    path = tmp_path_factory.mktemp("weights") / "resnet18-local.pth"
    state = build("resnet18-224", 1, classes=1000).state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    return path


def test_a_folder_is_split_by_the_content_of_its_files(pictures, tmp_path):
    found = photographs.load(pictures, SIZE)
    assert (found.name, found.classes) == ("pictures", 3)
    assert [np.bincount(getattr(found, split)[1]).tolist() for split in ("train", "val", "test")] == [
        [23] * 3,
        [1] * 3,
        [6] * 3,
    ]
    assert found.train[0].shape == (69, SIZE, SIZE, 3) and found.train[0].dtype == np.uint8
    for path in pictures.glob("*/*.png"):
        path.rename(path.with_name(hashlib.md5(path.name.encode()).hexdigest() + ".png"))
    again = photographs.load(pictures, SIZE)
    assert again.digests == found.digests
    assert sorted(im.tobytes() for im in again.test[0]) == sorted(im.tobytes() for im in found.test[0])


def test_a_test_set_of_its_own_is_used(tmp_path):
    draw(tmp_path / "both" / "train", 20, 0)
    draw(tmp_path / "both" / "test", 4, 1)
    found = photographs.load(tmp_path / "both", SIZE)
    assert [len(getattr(found, split)[1]) for split in ("train", "val", "test")] == [57, 3, 12]


def test_evaluation_images_are_torchvisions_centre_crop(pictures):
    from torchvision.transforms import functional as vision

    found = photographs.load(pictures, SIZE)
    every = {
        np.asarray(vision.center_crop(vision.resize(Image.open(path), SIZE * 8 // 7), SIZE)).tobytes()
        for path in pictures.glob("*/*.png")
    }
    assert {im.tobytes() for im in found.test[0]} <= every


def test_an_epochs_crops_depend_on_seed_and_epoch_alone(pictures):
    found = photographs.load(pictures, SIZE)
    torch.manual_seed(3)
    before, one = torch.get_rng_state(), found.redraw(0, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.shape == found.train[0].shape and np.array_equal(found.redraw(0, 5), one)
    for other in ((0, 6), (1, 5)):
        assert not np.array_equal(found.redraw(*other), one)
    colours = one.mean((1, 2))
    assert all(colours[found.train[1] == i].argmax(1).tolist() == [2 - i] * 23 for i in range(3)), "label and picture"


def test_images_of_any_size_are_flipped_whole():
    rng = np.random.default_rng(0)
    images = data.Images(rng.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8), np.arange(3))
    plan = data.plan_epoch(3, 0, 0, augment=False)
    plain, _ = images.batch(plan)
    flipped, _ = images.batch(plan._replace(flip=torch.ones(3, dtype=torch.bool)))
    assert torch.equal(flipped, plain.flip(3)) and plain.shape == (3, 3, SIZE, SIZE)


@pytest.mark.parametrize("make", ["nothing", "no classes", "one class", "other classes", "no image", "too few", "val"])
def test_what_is_no_folder_of_images_is_refused(tmp_path, make):
    root = named = tmp_path / "pictures"
    if make == "no classes":
        root.mkdir()
    elif make == "one class":
        shutil.copytree(draw(tmp_path / "all", 30, 0) / "red", root / "red")
    elif make == "other classes":
        draw(root / "train", 24, 0)
        (draw(root / "test", 1, 0) / "red").rename(root / "test" / "yellow")
    elif make == "no image":
        named = draw(root, 30, 0) / "red" / "3.png"
        named.write_text("red")
    elif make == "too few":
        draw(root, 3, 0)
    elif make == "val":  # a layout of others, in which train and val would be taken for two classes
        draw(root / "train", 30, 0)
        draw(root / "val", 30, 1)
    with pytest.raises(UserError, match=re.escape(str(named))):
        photographs.load(root, SIZE)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_read_from_a_local_file(tmp_path, file, suffix):
    state = torch.load(file, weights_only=True)
    path = tmp_path / f"mine{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state, path)
    found, digest = weights.read_file(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    net = build("resnet18-224", 0, classes=3)
    run = Run("resnet18-224", dataset="folder", start="mine", trained="last")
    assert weights.begin(net, run, tmp_path, (found, digest)) == {"start": {"run": "mine", "sha256": digest}}
    assert torch.equal(net.layer4[1].conv2.weight, state["layer4.1.conv2.weight"]) and net.fc.out_features == 3


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_what_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "mine.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.pth: no weights"):
        weights.read_file(path)


def test_imagenets_weights_are_fetched_once_with_their_hash(tmp_path, file, monkeypatch):
    asked = []

    def fetch(url, path, hash_prefix, progress):
        asked.append((url, hash_prefix))
        with open(path, "wb") as f:
            f.write(file.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    one, again = weights.read_file(), weights.read_file()
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    assert one[1] == again[1] and "fc.weight" in one[0]

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "other"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"could not be fetched.*no route to host.*--weights"):
        weights.read_file()


def transfer(pictures, results, *args):
    return vggres(
        "transfer", "--images", pictures, "--results", results, "--size", 33, "--epochs", 2, "--device", "cpu", *args
    )


def test_the_command_fine_tunes_and_records(pictures, file, tmp_path):
    results = tmp_path / "results"
    done = transfer(pictures, results, "--weights", file)
    assert done.exit_code == 0, done.output
    name = "resnet18-224-folder-pictures-33px-from-resnet18_local-lr5e-4-batch32-own-statistics-2ep"
    record = records.read(records.folder_of(results, name, 0))
    assert re.match(rf"{name}, seed 0: validation .* test ", done.stdout)
    assert record["data"]["name"] == "pictures" and record["data"]["train"] == 69
    assert record["start"] == {"run": "resnet18_local", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert record["result"]["test_acc"] > 0.5, "three colours are learned in two epochs"
    assert records.verify(results) == []

    last = transfer(pictures, results, "--weights", file, "--last-layer")
    assert last.exit_code == 0 and "-last-layer-" in last.stdout
    scratch = transfer(pictures, results, "--weights", "none")
    assert scratch.exit_code == 0 and "from" not in scratch.stdout
    assert len(records.folders(results)) == 3


def test_the_command_refuses_in_one_line(pictures, file, tmp_path):
    results = tmp_path / "results"
    refused(transfer(tmp_path / "nowhere", results, "--weights", file), "nowhere")
    refused(transfer(pictures, results, "--weights", tmp_path / "nowhere.pth"), "nowhere.pth")
    other = tmp_path / "other.pth"
    torch.save(build("vgg08").state_dict(), other)
    refused(transfer(pictures, results, "--weights", other), "other", "resnet18-224", "conv1.weight", "Missing")
    refused(transfer(pictures, results, "--weights", ""), "no weights")
    refused(transfer(pictures, results, "--weights", "none", "--seed", -1), "'--seed'", "equal to 0")
    refused(transfer(pictures, results, "--weights", "none", "--size", 32), "--size", "33")
    refused(transfer(pictures, results, "--weights", "none", "--last-layer"), "--last-layer", "none")
    other.write_text("no weights")
    refused(transfer(pictures, results, "--weights", other), other)


def test_another_file_of_the_same_name_is_not_taken_for_the_one_that_was_trained_from(pictures, file, tmp_path):
    results = tmp_path / "results"
    assert transfer(pictures, results, "--weights", file).exit_code == 0
    other = tmp_path / file.name
    torch.save(build("resnet18-224", seed=5).state_dict(), other)
    refused(transfer(pictures, results, "--weights", other), "record of other images or other weights")


def test_photographs_have_no_limit(pictures):
    with pytest.raises(UserError, match="whole"):
        photographs.load(pictures, 32).subset(4)
