"""Train runs one after another, or several at once, until all are done or time is up."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vggres import data, records
from vggres.checkpoints import epochs_done
from vggres.errors import Unready
from vggres.models import multiply_adds
from vggres.runs import QUEUE, Run
from vggres.training import steps, train_together

Job = tuple[Run, int]  # a run and a seed


def missing(results: Path | str, runs: Iterable[Run] = (), seeds: Iterable[int] = ()) -> list[Job]:
    """The registry's queued jobs that have no record, most important first; of the given runs or seeds, if any."""
    runs, seeds = set(runs), set(seeds)
    jobs = [job for job in QUEUE if (not runs or job[0] in runs) and (not seeds or job[1] in seeds)]
    return _unrecorded(results, jobs)


def _unrecorded(results: Path | str, jobs: list[Job]) -> list[Job]:
    recorded = {folder.parts[-2:] for folder in records.folders(results)}
    return [(run, seed) for run, seed in jobs if (run.name, f"seed{seed}") not in recorded]


def work_off(
    jobs: list[Job],
    root: Path | str,
    results: Path | str,
    device: str = "auto",
    minutes: float | None = None,
    together: int = 1,
    pass_over: bool = False,
    say: Callable[[str], None] = lambda line: None,
    tell: Callable[[Job, dict], None] = lambda job, record: None,
) -> str | None:
    """Train jobs; records and checkpoints are written on the way, so it can be killed at any point and called again.

    Args:
        root: the folder of the datasets.
        minutes: stop cleanly after this time.
        together: how many at once; more than one pays only on a GPU.
        pass_over: skip runs that another process is training, and those whose dataset or starting weights are missing
            or whose checkpoints are of no use, instead of raising.
        say: called with a line for the user; `tell`, with each job that ends and its record.

    Returns: what is left because time is up or it was passed over, and how long it would take at this pace; None if
    nothing is.

    Raises: what `data.load` and `training.steps` raise, except for what is passed over.
    """
    began, worked, left, total = time.monotonic(), 0, dict.fromkeys(jobs), len(jobs)
    wanted = list(dict.fromkeys(run.dataset for run, _ in jobs))
    here = [name for name in wanted if data.available(name, root)]
    # All at once, or a damaged one would be found out when hours have been spent on the others.
    sets = {name: data.load(name, root) for name in (pass_over and here) or wanted}
    if absent := [name for name in wanted if name not in sets]:
        say(f"passed over: what needs {', '.join(absent)}; `vggres data --dataset` fetches it")
    jobs = [job for job in jobs if job[0].dataset in sets]
    sharing = min(together, len(_unrecorded(results, jobs)) or 1)

    def seconds_left() -> float:
        return math.inf if minutes is None else 60 * minutes - (time.monotonic() - began)

    def training(run: Run, seed: int):
        nonlocal worked

        def say_of_it(line: str) -> None:
            say(f"{run.name}, seed {seed}: {line}")

        inner = steps(run, seed, sets[run.dataset], results, device, seconds_left() / 60, say_of_it, sharing)
        try:
            while True:
                images = next(inner)
                worked += images * multiply_adds(run.model)
                yield images
        except StopIteration as end:
            return end.value
        except Unready as e:
            if not pass_over:
                raise
            say_of_it(f"passed over: {e}")
        finally:
            inner.close()

    for i, record in train_together((training(*job) for job in jobs if seconds_left() > 0), together):
        if record is not None:
            del left[jobs[i]]
            tell(jobs[i], record)
    if not left:
        return None
    epochs = {(run, seed): run.epochs - epochs_done(results, run, seed) for run, seed in left}
    text = f"left: {len(left)} of {total} runs, {sum(epochs.values())} epochs"
    if worked:
        work = sum(n * data.training_images(run.dataset) * multiply_adds(run.model) for (run, _), n in epochs.items())
        text += f", about {work / worked * (time.monotonic() - began) / 3600:.1f} hours at this pace"
    return text
