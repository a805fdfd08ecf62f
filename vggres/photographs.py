"""Any folder of images by class, for transfer learning: report D's part 2."""

import hashlib
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder

from vggres.data import Data, one_in
from vggres.errors import UserError

LAYOUT = "lay them out as <class>/<image>, or train/<class>/<image> and test/<class>/<image>"


def load(root: Path | str, size: int = 224) -> Data:
    """Any folder of images by class, as report D's part 2 reads its own: torchvision's `ImageFolder` and transforms.

    In each epoch, every training image gets a random resized crop and flip, with torchvision's standard settings; they
    depend on (seed, epoch) alone. The other images are resized to 8/7 of `size` and cropped at the centre. All are held
    in memory, 150 kB each at 224; training images are held three times while an epoch begins.

    Args:
        root: `root/train/<class>/` and `root/test/<class>/`; or `root/<class>/` alone, where one image in five of
            each class is for testing. One training image in twenty is for validation. Both are those with the smallest
            SHA-256.
        size: height and width in pixels.

    Raises:
        UserError: there are no images by class, train and test have different classes, there are too few images,
            or a file is not an image.
    """
    centre = transforms.Compose([transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)])
    random = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()])
    root = Path(root)
    apart = all((root / split).is_dir() for split in ("train", "test"))  # "train" alone may be a class
    try:
        first, *others = [ImageFolder(root / split) for split in (("train", "test") if apart else ("",))]
    except (OSError, ValueError) as e:
        raise UserError(f"{root}: no images by class there ({e}); {LAYOUT}") from e
    for path, _ in (sample for folder in (first, *others) for sample in folder.samples):
        if len(Path(path).relative_to(root).parts) != 2 + apart:  # or of train/ and val/ each would be a class
            raise UserError(f"{path}: an image must lie in its class's own folder; {LAYOUT}")
    if len(first.classes) < 2:
        raise UserError(f"{root}: only one class there, and nothing to tell it from; {LAYOUT}")
    if others and others[0].classes != first.classes:
        raise UserError(f"{root}: train and test have other classes: {first.classes}, {others[0].classes}")

    def pixels(files, transform) -> np.ndarray:
        images = np.empty((len(files), size, size, 3), np.uint8)
        for i, (path, _) in enumerate(files):
            try:
                images[i] = np.asarray(transform(first.loader(path)))
            except Exception as e:  # its class depends on the damage
                raise UserError(f"{path}: no image can be read from it ({e}); take it away") from e
        return images

    def labels(files) -> np.ndarray:
        return np.array([label for _, label in files], np.int64)

    def hold(share, files):
        held = one_in(share, (Path(path).read_bytes() for path, _ in files), labels(files))
        return list(compress(files, ~held)), list(compress(files, held))

    def redraw(seed: int, epoch: int) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
            return pixels(train, random)

    train, test = (first.samples, others[0].samples) if apart else hold(5, first.samples)
    train, val = hold(20, train)
    if not (train and val and test):
        counts = f"{len(train)} train, {len(val)} validate, {len(test)} test"
        raise UserError(f"{root}: too few images: {counts}; a class needs 24, or 20 in train/ and some in test/")
    digests = {}
    for split, files in (("train", train + val), ("test", test)):
        each = sorted(hashlib.sha256(y.to_bytes(2) + Path(path).read_bytes()).digest() for path, y in files)
        digests[split] = hashlib.sha256(b"".join(each)).hexdigest()
    parts = ((pixels(files, centre), labels(files)) for files in (train, val, test))
    return Data(root.resolve().name, *parts, digests, len(first.classes), redraw)
