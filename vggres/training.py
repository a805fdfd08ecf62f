"""`train` and `train_together`: the loop, selection on the validation set, and what becomes the record."""

import logging
import math
import os
import platform
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from vggres import records
from vggres.checkpoints import State, checkpoints, resume, save
from vggres.data import Data, Images, Plan, plan_epoch, scaling
from vggres.engine import Engine, pick_device
from vggres.errors import Unready, UserError
from vggres.gradients import flow_on
from vggres.models import build, count_parameters, layers
from vggres.runs import Run
from vggres.weights import begin, keep

log = logging.getLogger(__name__)
APART = 40  # steps by which the starts of runs are staggered: the end of an epoch keeps the host busy


def train(*args, **options) -> dict | None:
    """Train one run and write its record, by `train_together`. Arguments, result and errors are those of `steps`."""
    ((_, record),) = train_together([steps(*args, **options)])
    return record


def train_together(trainings: Iterable[Generator], at_once: int | None = None) -> Iterator[tuple[int, dict | None]]:
    """Train several runs in turn, one step each. Each record is the same as if its run had been trained alone; on a GPU
    their work can overlap, since one such net is too small to fill it.

    Args:
        trainings: of different runs or seeds, each from `steps`; the next begins when one has ended.
        at_once: how many at a time; None: all of them.

    Yields: (position among the trainings, record) as each ends; the record is None if the time was up first.

    Raises:
        UserError: the first that a training raises; the others stop and can be resumed.
    """
    waiting, running = enumerate(trainings), {}
    try:
        while begun := dict(islice(waiting, None if at_once is None else at_once - len(running))) | running:
            turns = {i: 1 if i in running else 1 + APART * k for k, i in enumerate(begun)}
            running = begun
            for i, training in list(running.items()):
                try:
                    for _ in range(turns[i]):
                        next(training)
                except StopIteration as end:
                    del running[i]
                    yield i, end.value
    finally:
        for training in running.values():
            training.close()


def steps(
    run: Run,
    seed: int,
    data: Data,
    results: Path | str,
    device: str = "auto",
    minutes: float | None = None,
    say=lambda line: None,
    together: int = 1,
    start: tuple[dict, str] | None = None,
) -> Generator[int, None, dict | None]:
    """The training of a run, to be advanced by `train_together`: it pauses after each step, and yields the number of
    images trained on since the last pause.

    A run that was begun is resumed; one that is recorded is not trained again. A run that is killed at any point and
    started again ends with the same history, gradients and weights, bit for bit on the same machine: checkpoints are
    written after each epoch, and an epoch's randomness depends on (seed, epoch) alone. (On CUDA this needs
    `torch.use_deterministic_algorithms(True)`.)

    Args:
        run: the net and the recipe.
        seed: for the initial weights, the order of the images and their augmentation.
        data: the images of `run.dataset`, whole.
        results: the folder of records.
        device: "auto", "cpu", "cuda", ...
        minutes: stop cleanly after this time; the same call continues later.
        say: called with each line for the user, such as "resumes after epoch 12".
        together: how many runs at most share the device, and so its time; recorded with the device.
        start: the weights and their SHA-256, if `run.start` does not name a run.

    Returns: the record, or None if the time was up first.

    Raises:
        UserError: the results folder cannot be written, another process trains this run, the checkpoint is of
            another configuration, it or the record is of other images or other weights, the device is absent, the code
            has no commit, there are no weights to start from or they are of another network.
        OSError: a checkpoint or the record cannot be written, as on a full disk; the checkpoint before it stays.
    """
    deadline = time.monotonic() + (minutes * 60 if minutes is not None else math.inf)
    with claim(records.folder_of(results, run.name, seed)) as folder:
        if (folder / "run.json").exists():
            record = records.read(folder)
            same = all(record["data"][f"digest_{split}"] == digest for split, digest in data.digests.items())
            if not same or (start and record["start"]["sha256"] != start[1]):
                raise UserError(f"{folder} is a record of other images or other weights; choose another --results")
            for path in checkpoints(folder):  # left where a crash came just after the record
                path.unlink(missing_ok=True)
            say(f"is recorded already in {folder}; delete the folder to measure again")
            return record
        git = records.provenance()
        net = build(run.model, seed, run.init, run.slope, data.classes)
        started = begin(net, run, results, start)
        engine = Engine(net, run.lr, run.weight_decay, pick_device(device), optimizer=run.optimizer)
        digests = data.digests | {key: begun["sha256"] for key, begun in started.items()}
        state = resume(folder, run, seed, engine, digests, say) or State()
        state.digests = digests
        for noted, now in ((state.git, git), (state.devices, description(engine) | {"together": together})):
            if now not in noted:
                noted.append(now)
        if run.limit:
            data = data.subset(run.limit)
        scale, splits = scaling(run.normalise, data.train[0]), (data.train, data.val, data.test)
        train_set, val_set, test_set = (Images(*part, engine.device, *scale) for part in splits)
        if not state.gradients:
            engine.draw_from(seed)
            with engine.turn():
                first = next(choices(run, seed, 0, data, train_set).to(engine.device).batches(run.batch))
                state.gradients.append({"epoch": 0, **flow_on(engine.net, *train_set.batch(first))})

        an_epoch, took = math.ceil(len(train_set) / run.batch), 0.0
        with progress(run, seed, len(train_set), state) as bar:
            while state.epoch < run.epochs and not state.diverged:
                began, epoch = time.monotonic(), state.epoch
                if began + took > deadline:
                    return None
                with engine.turn():
                    plan = choices(run, seed, epoch, data, train_set).to(engine.device)
                for i, batch in enumerate(plan.batches(run.batch)):
                    if time.monotonic() > deadline:
                        say(f"the time was up after {i} of {an_epoch} steps of epoch {epoch + 1}, which begins anew")
                        return None
                    lr = run.lr_at(epoch * an_epoch + i, an_epoch)
                    engine.draw_from(seed, epoch, i)
                    engine.step(train_set, batch, lr)
                    bar.update(len(batch.index))
                    yield len(batch.index)  # the turn of the runs trained beside this one
                while not engine.ready():
                    yield 0
                trained, validated = engine.metrics(), engine.evaluate(val_set)
                took = time.monotonic() - began
                with engine.turn():
                    state.add((epoch + 1, *trained, *validated, lr, took), engine.net)
                    save(folder, run, seed, engine, state)
                line = f"epoch {epoch + 1}, loss {trained[0]:.3f}, val {100 * validated[1]:.1f} %"
                bar.set_postfix_str(line)
                if bar.disable:
                    log.info(f"{run.name}, seed {seed}: {line}, {took:.0f} s")

        record = measure(run, seed, data, engine, state, test_set) | started
        if state.best is not None:
            record |= keep(results, run.name, seed, state.best)
        records.write(folder, record, state.history, state.gradients)
        for path in checkpoints(folder):
            path.unlink(missing_ok=True)
        if state.diverged:
            say(f"diverged in epoch {state.epoch}: the loss is not finite; the record is kept in {folder}")
        return records.read(folder)


def choices(run: Run, seed: int, epoch: int, data: Data, train_set: Images) -> Plan:
    """An epoch's order, crops and flips. Photographs, whose crops differ in size, are redrawn themselves."""
    anew = run.augment and data.redraw is not None
    if anew:
        train_set.exchange(data.redraw(seed, epoch))
    return plan_epoch(len(train_set), seed, epoch, run.augment and not anew)


def measure(run: Run, seed: int, data: Data, engine: Engine, state: State, test_set: Images) -> dict:
    """The record of a finished run. The test set is used here, once: with the last weights and with the best."""
    untested = dict.fromkeys(("test_loss", "test_acc", "test_loss_last", "test_acc_last"))
    result = records.summarise(state.history) | untested
    if not state.diverged:
        result["test_loss_last"], result["test_acc_last"] = map(records.rounded, engine.evaluate(test_set))
    if state.best is not None:
        engine.net.load_state_dict(state.best)
        result["test_loss"], result["test_acc"] = map(records.rounded, engine.evaluate(test_set))
    return {
        "run": run.to_dict(),
        "seed": seed,
        "status": "diverged" if state.diverged else "completed",
        "error": f"the loss of epoch {state.epoch} is not finite" if state.diverged else None,
        "model": {"params": count_parameters(engine.net), "layers": len(layers(engine.net))},
        "data": {
            "name": data.name,
            **{f"digest_{split}": digest for split, digest in data.digests.items()},
            **{split: len(getattr(data, split)[1]) for split in ("train", "val", "test")},
        },
        "result": result,
        "device": with_later(state.devices),
        "env": records.environment(),
        "git": with_later(state.git),
        "time": {"started": state.started, "wall_s": round(state.wall_s, 1), "resumes": state.resumes},
    }


def with_later(noted: list[dict]) -> dict:
    """What trained a run, for its record: the first entry, and those that replaced it after a resume."""
    return noted[0] | ({"later": noted[1:]} if noted[1:] else {})


def description(engine: Engine) -> dict:
    """The device, for the record."""
    return {
        "type": engine.device.type,
        "name": device_name(engine.device),
        "precision": engine.precision,
        "convolution": engine.convolution,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def device_name(device: torch.device) -> str:
    """The model name of the GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


@contextmanager
def claim(folder: Path):
    """The run's folder, created if missing, checked to be writable, and locked against a second process.

    Raises:
        Unready: another process holds it.
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "train.lock").acquire(timeout=0)
    except Timeout:
        raise Unready(f"{folder}: another process trains this; wait, or choose another --seed or --results") from None
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); choose another folder with --results") from e
    with lock:
        for rest in folder.glob("*.tmp"):  # left by a process that was killed while writing
            rest.unlink()
        yield folder


def progress(run: Run, seed: int, images: int, state: State) -> tqdm:
    """A bar over all images of the run, with images/s and time left; none without a terminal."""
    how = dict(unit=" images", unit_scale=True, disable=None, smoothing=0.05)
    return tqdm(total=run.epochs * images, initial=state.epoch * images, desc=f"{run.name} seed {seed}", **how)
