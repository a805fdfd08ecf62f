"""CIFAR-100 and CIFAR-10 from disk as uint8 arrays, the content-keyed split, and batches.

Nothing depends on the order of the images on disk: splits are checked by an order-independent digest, and the
images are sorted by their hashes.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from vggres.errors import UserError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Spec:
    """How a dataset is stored (its official binary and python layouts) and what proves it genuine."""

    folder: str  # official binary version
    files: dict[str, tuple[str, ...]]  # split -> files
    counts: dict[str, int]
    label_bytes: int  # the fine label is the last of them
    digests: dict[str, str]
    python_folder: str  # official python version
    torchvision: str  # the torchvision class that reads it
    classes: int
    images_a_class: int | None = None  # train on only so many: those with the smallest SHA-256


SPECS = {
    "cifar100": Spec(
        folder="cifar-100-binary",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        counts={"train": 50_000, "test": 10_000},
        label_bytes=2,
        digests={
            "train": "6d2a03c47c105e4c34d3a2ff16c2803e8df0e5d6fa0c631e46663a327aeac573",
            "test": "381b7d98ce1e9b98232a8df0db0a22992654c39ff2433270656ab8ace5a45e65",
        },
        python_folder="cifar-100-python",
        torchvision="CIFAR100",
        classes=100,
    ),
    "cifar10": Spec(
        folder="cifar-10-batches-bin",
        files={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        counts={"train": 50_000, "test": 10_000},
        label_bytes=1,
        digests={
            "train": "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
            "test": "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
        },
        python_folder="cifar-10-batches-py",
        torchvision="CIFAR10",
        classes=10,
    ),
}
# As many images as in report D's transfer learning, whose training accuracies are multiples of 1/3000.
SPECS["cifar100-30"] = replace(SPECS["cifar100"], images_a_class=30)

# The channel statistics that the course framework of reports A and B normalises by, on CIFAR-100 too. They are
# CIFAR-10's; the first layer and its batch normalisation absorb the difference.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def scaling(normalise: str, images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, as fractions of 255, by which a run normalises.

    Args:
        normalise: "course" (`MEAN`, `STD`), "none" (0 and 1), or "own": those of `images`, the training images.
    """
    if normalise == "own":
        counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])
        level, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
        mean = share @ level
        return tuple(mean.tolist()), tuple(np.sqrt(share @ level**2 - mean**2).tolist())
    return {"course": (MEAN, STD), "none": ((0.0,) * 3, (1.0,) * 3)}[normalise]


@dataclass(frozen=True)
class Data:
    """Images as uint8 (N, 32, 32, 3), height by width by channel, and labels as int64 (N,), by split.

    Photographs have another height and width. `digests` are those of the whole dataset, by split, even for a part.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    digests: dict[str, str]
    classes: int = 100
    redraw: Callable[[int, int], np.ndarray] | None = None  # (seed, epoch) -> that epoch's training images

    def subset(self, n: int) -> "Data":
        """The same with at most `n` training, `n // 2` (or 1) validation and as many test images, balanced by class.

        Raises:
            UserError: the images are photographs, which are used whole.
        """
        if self.redraw:
            raise UserError(f"{self.name}: a folder of photographs is used whole, without a limit")
        sizes = {"train": n, "val": max(1, n // 2), "test": max(1, n // 2)}
        return replace(self, **{split: _balanced(getattr(self, split), size) for split, size in sizes.items()})


def default_root() -> Path:
    """Where datasets are kept: `$VGGRES_DATA`, or `~/.cache/vggres`."""
    return Path(os.environ.get("VGGRES_DATA") or os.path.expanduser("~/.cache/vggres"))


def _root(root: Path | str | None) -> Path:
    """In full, since a shell leaves the ~ of --data=~/cifar as it is, and "." has no name."""
    return Path(os.path.expanduser(root or default_root())).absolute()


def load(name: str = "cifar100", root: Path | str | None = None) -> Data:
    """Read and verify a dataset, and split its training images 19 : 1.

    Args:
        name: "cifar100", "cifar10", "cifar100-30" (the first, with 30 training images per class), or "synthetic"
            (which needs no files).
        root: the folder that holds the official binary or python layout, or that layout's own folder.

    Raises:
        UserError: not found, truncated, or not the genuine images.
    """
    if name == "synthetic":
        return synthetic()
    spec, folder = _spec(name), _find(name, root)
    splits, digests = {}, {}
    for split in spec.counts:
        labels, pixels = (_read_python if folder.name == spec.python_folder else _read)(folder, spec, split)
        order, digests[split] = _content_order(labels, pixels)
        if digests[split] != spec.digests[split]:
            raise UserError(
                f"{folder}: the {split} images ({', '.join(spec.files[split])}) are not {name}'s: "
                f"digest {digests[split]}, expected {spec.digests[split]}; "
                f"delete the folder and run `vggres data --dataset {name}`"
            )
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))[order]
        splits[split] = images, labels[order].astype(np.int64)
    images, labels = splits["train"]
    held = one_in(20, (image.transpose(2, 0, 1).tobytes() for image in images), labels)
    train, val = (images[~held], labels[~held]), (images[held], labels[held])
    if spec.images_a_class:
        train = _balanced(train, spec.images_a_class * spec.classes)
    return Data(name, train, val, splits["test"], digests, spec.classes)


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise UserError(f"no dataset on disk is called {name!r}: there are {', '.join(SPECS)}; synthetic is in memory")
    return SPECS[name]


def training_images(name: str) -> int:
    """Number of training images of a dataset, without the validation set; known without reading it."""
    spec = SPECS[name]
    return spec.images_a_class * spec.classes if spec.images_a_class else spec.counts["train"] * 19 // 20


def available(name: str = "cifar100", root: Path | str | None = None) -> bool:
    """Whether `load` would find the dataset (not whether it is intact)."""
    try:
        _find(name, root)
    except UserError:
        return False
    return True


def one_in(share: int, contents: Iterable[bytes], labels: np.ndarray) -> np.ndarray:
    """Bool (N,): true for one in `share` of each class, those whose content has the smallest SHA-256, so that the
    choice is the same for every copy of a dataset."""
    keys, held = np.array([hashlib.sha256(c).digest() for c in contents], "S32"), np.zeros(len(labels), bool)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        held[members[np.argsort(keys[members], kind="stable")[: len(members) // share]]] = True
    return held


def fetch(name: str = "cifar100", root: Path | str | None = None) -> Path:
    """Download a dataset through torchvision (which shows progress).

    Returns: the folder that holds it. What is already there is not fetched again.

    Raises:
        UserError: no such dataset, the download failed, or the folder cannot be written.
    """
    spec, root = _spec(name), _root(root)
    if not available(name, root):
        from torchvision import datasets

        source = getattr(datasets, spec.torchvision)
        archive = root / source.filename
        theirs = archive.exists()
        try:
            root.mkdir(parents=True, exist_ok=True)
            source(root, download=True)
        except (OSError, RuntimeError) as e:
            raise UserError(f"{name} could not be downloaded to {root}: {e}") from e
        if not theirs:
            archive.unlink(missing_ok=True)
    return _find(name, root)


def _find(name: str, root: Path | str | None) -> Path:
    spec, root = _spec(name), _root(root)
    for folder in (root / spec.folder, root):
        if all((folder / f).is_file() for files in spec.files.values() for f in files):
            return folder
    for folder in (root / spec.python_folder, root):
        if folder.name == spec.python_folder and folder.is_dir():
            return folder
    raise UserError(
        f"no {name} in {root} (looked for {spec.folder}/ and {spec.python_folder}/); "
        f"run `vggres data --dataset {name}`, or name the folder that holds it with --data or VGGRES_DATA"
    )


def _read(folder: Path, spec: Spec, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Fine labels (N,) and pixels (N, 3072), channel first, uint8, from the binary layout."""
    files, count = spec.files[split], spec.counts[split]
    expected = count // len(files) * (spec.label_bytes + PIXELS)
    for f in files:
        size = (folder / f).stat().st_size
        if size != expected:
            raise UserError(f"{folder / f}: {size} bytes, expected {expected}; delete it and fetch it again")
    records = np.concatenate([np.fromfile(folder / f, np.uint8) for f in files]).reshape(count, -1)
    return records[:, spec.label_bytes - 1], records[:, spec.label_bytes :]


def _read_python(folder: Path, spec: Spec, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The same from the python layout, by torchvision. Since a pickle can run code, it checks MD5 sums before it opens
    one."""
    from torchvision import datasets

    try:
        theirs = getattr(datasets, spec.torchvision)(folder.parent, train=split == "train")
    except RuntimeError as e:
        name = spec.torchvision.lower()
        raise UserError(f"{folder}: damaged ({e}); delete it and run `vggres data --dataset {name}`") from e
    return np.array(theirs.targets, np.uint8), theirs.data.transpose(0, 3, 1, 2).reshape(-1, PIXELS)


def _content_order(labels: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, str]:
    """The order of the images by their SHA-256, and the split's order-independent digest: the SHA-256 of the
    sorted SHA-256 digests of (one byte of fine label + 3072 bytes of pixels, channel first)."""
    digests = [
        hashlib.sha256(bytes((label,)) + row.tobytes()).digest() for label, row in zip(labels, pixels, strict=True)
    ]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return np.array(order), hashlib.sha256(b"".join(digests[i] for i in order)).hexdigest()


def _balanced(part: tuple[np.ndarray, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `n` images, taking one of each class in turn."""
    images, labels = part
    rank = pd.Series(labels).groupby(labels).cumcount()
    keep = np.sort(np.lexsort((labels, rank))[:n])
    return images[keep], labels[keep]


def synthetic(seed: int = 0) -> Data:
    """A small procedural set of 100 classes, made in memory: 5,000 training, 500 validation, 500 test images.

    A class is a mosaic of 4 x 4 colours around a base colour; brightness and noise vary from image to image. It
    serves the tests and the live cells, and a shallow net learns it in a few hundred steps. Nothing measured on it
    is a result.
    """
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.permutation(np.arange(n) % 100) for n in (5000, 500, 500)])
    mosaics = np.kron(rng.uniform(-60, 60, (100, 4, 4, 3)), np.ones((1, 8, 8, 1))) + rng.uniform(
        60, 196, (100, 1, 1, 3)
    )
    pixels = mosaics.astype(np.float32)[labels]
    pixels += rng.normal(0, 10, (len(labels), 1, 1, 1)) + rng.normal(0, 20, pixels.shape)
    images = pixels.clip(0, 255).astype(np.uint8)
    train, val, test = ((images[a:b], labels[a:b]) for a, b in ((0, 5000), (5000, 5500), (5500, 6000)))
    return Data("synthetic", train, val, test, {"train": "synthetic", "test": "synthetic"})


class Plan(NamedTuple):
    """Every random choice of an epoch, drawn up front: the order of the images, and how each is shifted and flipped.

    index: int64 (n,), a permutation; shift: int64 (n, 2), down and right, in 0..8 (4 is no shift);
    flip: bool (n,).
    """

    index: Tensor
    shift: Tensor
    flip: Tensor

    def to(self, device: torch.device) -> "Plan":
        return Plan(*(choice.to(device) for choice in self))

    def batches(self, size: int):
        """The plan in pieces of at most `size` images."""
        for i in range(0, len(self.index), size):
            yield Plan(*(choice[i : i + size] for choice in self))


def plan_epoch(n: int, seed: int, epoch: int, augment: bool = True) -> Plan:
    """Draw an epoch's choices for `n` images. They depend on (seed, epoch) alone, not on what ran before or on
    the device, so a resumed run needs no generator state."""
    rng = np.random.default_rng((seed, epoch))
    index, shift, flip = rng.permutation(n), rng.integers(0, 9, (n, 2)), rng.integers(0, 2, n).astype(bool)
    if not augment:
        shift, flip = np.full((n, 2), 4), np.zeros(n, bool)
    return Plan(torch.from_numpy(index), torch.from_numpy(shift), torch.from_numpy(flip))


class Images:
    """Images uint8 (N, size, size, 3) and labels (N,) on a device, where batches are cut from them.

    On a CPU they are the arrays given, not a copy. `mean` and `std` normalise them, see `scaling`.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: torch.device | str = "cpu", mean=MEAN, std=STD):
        self.images, self.labels = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
        scale = 1 / (255 * torch.tensor(std))
        self.scale, self.offset = scale.to(device), (-torch.tensor(mean) * 255 * scale).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def exchange(self, images: np.ndarray) -> None:
        """Replace the images by others of the same shape and labels; on CUDA in place, for a captured step."""
        self.images = self.images.copy_(torch.from_numpy(images)) if self.images.is_cuda else torch.from_numpy(images)

    def batch(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Images padded by 4 zeros, cropped, flipped and normalised: float32 (B, 3, size, size) in channels_last
        memory, where size is that of the images, 32 for CIFAR; and labels (B,)."""
        padded, size = F.pad(self.images[plan.index], (0, 0, 4, 4, 4, 4)), self.images.shape[1]
        image, line = (torch.arange(n, device=padded.device) for n in (len(padded), size))
        rows = plan.shift[:, :1] + line
        cols = plan.shift[:, 1:] + torch.where(plan.flip[:, None], size - 1 - line, line)
        crop = padded[image[:, None, None], rows[:, :, None], cols[:, None, :]]
        return self._normalise(crop), self.labels[plan.index]

    def batches(self, size: int):
        """All images in order, unchanged: for evaluation."""
        for i in range(0, len(self), size):
            yield self._normalise(self.images[i : i + size]), self.labels[i : i + size]

    def _normalise(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, images.float(), self.scale).permute(0, 3, 1, 2)
