"""The command line: `vggres list | data | train | transfer | evaluate | tables | figures | verify`.

Exit status: 0 done, 1 `verify` found a problem, 2 bad input, 3 the time was up before the last epoch or a run was
passed over, 130 interrupted.
"""

import logging
import sys
from dataclasses import replace
from functools import partial
from os.path import expanduser
from pathlib import Path
from typing import Annotated

import torch
import typer
from typer.core import TyperGroup

from vggres import data as datasets
from vggres import queue, records, training
from vggres.checkpoints import epochs_done
from vggres.engine import Engine, pick_device
from vggres.errors import UserError
from vggres.files import write_atomically
from vggres.runs import QUEUE, RUNS, Run, find
from vggres.weights import load, read_file


class OneLine(TyperGroup):
    """Prints whatever the user can mend as one line, and exits with its status."""

    def main(self, *args, standalone_mode=True, **kwargs):
        logging.basicConfig(format="%(message)s")
        logging.getLogger("vggres").setLevel(logging.INFO)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # of letters that it does not know
        try:
            status = super().main(*args, standalone_mode=False, **kwargs)
        except (UserError, OSError) as e:
            typer.echo(f"vggres: {e}", err=True)
            status = 2
        except (MemoryError, torch.OutOfMemoryError) as e:  # of the machine, or of a GPU
            typer.echo(f"vggres: the memory is full; fewer --together, or a smaller --size ({e})", err=True)
            status = 2
        except Exception as e:
            if not hasattr(e, "format_message"):  # what Typer says of wrong usage, under any version's class
                raise
            message = e.format_message()  # the whole help where no command was named
            typer.echo(message if "\n" in message else f"vggres: {message.rstrip('.')}; see --help", err=True)
            status = e.exit_code
        if status == 130:
            typer.echo("vggres: interrupted; training, if it was that, goes on from the last whole epoch", err=True)
        sys.exit(status or 0)


app = typer.Typer(
    cls=OneLine,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Why very deep plain convolutional networks do not train, and what fixes them.",
)


SEEDS = dict(min=0, max=2**32 - 1)  # beyond, the epochs of one seed would be those of others: see `data.plan_epoch`
HOME = dict(callback=lambda path: path and Path(expanduser(path)))  # a shell leaves the ~ of --out=~/x as it is


def _results(**checks):
    shown = dict(help="Folder of records.", default_factory=records.default_root, show_default="results/")
    return Annotated[Path, typer.Option("--results", **HOME, **shown, **checks)]


FOLDER = dict(exists=True, file_okay=False)
Results, Recorded = _results(), _results(**FOLDER)  # to write to; to read
DataRoot = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Folder of the dataset, in its binary or python layout.",
        default_factory=datasets.default_root,
        show_default="$VGGRES_DATA or ~/.cache/vggres",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")]


@app.command("list")
def list_(results: Recorded):
    """Every registered run: validation accuracy (%) reported and measured, the state of its seeds, where it is told."""
    from vggres.tables import reported

    measured = records.load_runs(results)
    told = reported(results).query("metric == 'val_acc'")
    told = (told.report + " " + (100 * told.value).map("{:.2f}".format)).groupby(told.run).agg(", ".join)
    typer.echo(f"{'reported':>25} {'measured':>9}  {'seeds':15}  run  (where it is reported)")
    for run in RUNS.values():
        mine = measured[measured.run == run.name]
        have, seeds = set(mine.seed), {seed for queued, seed in QUEUE if queued == run}
        there = {path.parent.name[4:] for path in results.glob(f"runs/{run.name}/seed*/checkpoint*.pt")}
        there = {int(k) for k in there if k.isdigit()}  # not what was moved aside, such as seed0.old
        begun = {k: done for k in sorted(there - have) if (done := epochs_done(results, run, k))}
        state = [f"{len(have)} of {len(seeds | have)} measured" if have else "not measured"]
        state += [f"seed {k} at epoch {done} of {run.epochs}" for k, done in begun.items()]
        mean = f"{100 * mine.val_acc.mean():.2f}" if len(mine) else "–"
        where = ", ".join(run.exhibits) or "–"
        typer.echo(f"{told.get(run.name, '–'):>25} {mean:>9}  {', '.join(state):15}  {run.name}  ({where})")


@app.command()
def data(
    root: DataRoot,
    dataset: Annotated[str, typer.Option(help="cifar100, cifar10, or cifar100-30: 30 images a class.")] = "cifar100",
):
    """Download a dataset and check every image. What is there already is only checked."""
    folder = datasets.fetch(dataset, root)
    loaded = datasets.load(dataset, folder)
    sizes = ", ".join(f"{len(getattr(loaded, split)[1]):,} {split}" for split in ("train", "val", "test"))
    typer.echo(f"{dataset}: {sizes} images, verified, in {folder}")


@app.command()
def train(
    root: DataRoot,
    results: Results,
    names: Annotated[list[str] | None, typer.Argument(help="Runs, see `vggres list`.", metavar="NAME")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            help="Of weights, order of the images and augmentation; may be repeated.",
            show_default="0; with --missing all that are queued",
            **SEEDS,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Train fewer or more epochs: a run of another name.")] = None,
    device: Device = "auto",
    minutes: Annotated[float | None, typer.Option(help="Stop cleanly after so long; the same command resumes.")] = None,
    together: Annotated[int, typer.Option(min=1, help="How many runs at once; more than one only pays on a GPU.")] = 1,
    missing: Annotated[
        bool, typer.Option("--missing", help="What has no record, the most important first; NAME... restricts it.")
    ] = False,
):
    """Train runs and record them; what was begun is resumed, what is recorded is kept."""
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes must be positive, not {minutes}")
    if missing and epochs is not None:
        raise UserError("--missing trains runs as they are registered: it does not go with --epochs")
    if not (names or missing):
        raise UserError("which run? `vggres list` names them all; --missing trains what has no record")
    runs = [find(name) for name in names or []]
    if epochs is not None:
        other = [replace(run, epochs=epochs, exhibits=()) for run in runs]
        runs = [RUNS.get(run.name, run) for run in other]
    pick_device(device)
    named = dict.fromkeys((run, k) for k in seed or [0] for run in runs)
    jobs = queue.missing(results, runs, seed or []) if missing else list(named)
    if not jobs:
        typer.echo("nothing is missing of what is queued", err=True)
    say = partial(typer.echo, err=True)
    left = queue.work_off(jobs, root, results, device, minutes, together, missing, say, _tell)
    if left:
        typer.echo(f"{left}; the same command goes on from the last whole epoch of each", err=True)
        raise typer.Exit(3)


def _tell(job: tuple[Run, int], record: dict) -> None:
    (run, seed), result = job, record["result"]
    if result["test_acc"] is not None:
        typer.echo(
            f"{run.name}, seed {seed}: validation {100 * result['val_acc']:.2f} % after epoch {result['epochs']}, "
            f"test {100 * result['test_acc']:.2f} % (epoch {result['best_epoch']})"
        )


@app.command()
def transfer(
    images: Annotated[Path, typer.Option(help="CLASS/IMAGE, or train/CLASS/IMAGE and test/...", **FOLDER)],
    results: Results,
    weights: Annotated[str, typer.Option(help="imagenet (fetched once), none, or a file.")] = "imagenet",
    last_layer: Annotated[bool, typer.Option("--last-layer", help="Train the last layer only.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    size: Annotated[int, typer.Option(min=33, help="Height and width of the images in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Of the last layer, the order of the images and their crops.", **SEEDS)] = 0,
    device: Device = "auto",
):
    """Fine-tune a ResNet-18 on your own images: by Adam, with report D's step size of 5e-4 and batches of 32."""
    from vggres import photographs

    if last_layer and weights == "none":
        raise UserError("--last-layer keeps the other layers as --weights has them: it does not go with --weights none")
    name = {"imagenet": "imagenet", "none": None}.get(weights, Path(weights).stem.replace("-", "_"))
    run = Run(
        "resnet18-224",
        dataset="-".join(["folder", images.resolve().name, *([f"{size}px"] if size != 224 else [])]),
        **dict(lr=5e-4, batch=32, epochs=epochs, normalise="own"),
        **dict(start=name, trained="last" if last_layer else "all"),
    )
    pick_device(device)  # it and the commit are asked for again in training: here before every photograph is read
    records.provenance()
    start = read_file(None if weights == "imagenet" else Path(expanduser(weights))) if weights != "none" else None
    loaded, say = photographs.load(images, size), partial(typer.echo, err=True)
    _tell((run, seed), training.train(run, seed, loaded, results, device, say=say, start=start))


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="A run whose weights are kept.", metavar="NAME")],
    root: DataRoot,
    results: Recorded,
    device: Device = "auto",
):
    """Test a run's kept weights (of seed 0, the best on the validation set) beside what its record says."""
    net, record = load(name, results), records.read(records.folder_of(results, name, 0))
    run = find(name)
    engine = Engine(net, run.lr, run.weight_decay, pick_device(device))
    whole = datasets.load(run.dataset, root)
    scale = datasets.scaling(run.normalise, whole.train[0])
    _, accuracy = engine.evaluate(datasets.Images(*whole.test, engine.device, *scale))
    typer.echo(
        f"{name}: test {100 * accuracy:.2f} % here ({engine.precision}), "
        f"{100 * record['result']['test_acc']:.2f} % in the record ({record['device']['precision']})"
    )


@app.command()
def tables(
    results: Recorded,
    readme: Annotated[Path | None, typer.Option(help="Renew the generated part of this file instead.")] = None,
):
    """Table 1 as reported and as measured, in Markdown."""
    from vggres.tables import readme_table, update_readme

    if readme is None:
        typer.echo(readme_table(results))
        return
    try:
        write_atomically(readme, update_readme(readme.read_text("utf-8"), results).encode())
    except (OSError, ValueError) as e:
        raise UserError(f"{readme}: cannot be renewed: {e}") from e


@app.command()
def figures(
    results: Recorded, out: Annotated[Path, typer.Option(help="Folder to write to.", **HOME)] = Path("figures")
):
    """Render every figure whose runs are recorded, as SVG and PNG."""
    from vggres.figures import render

    for name, missing in render(out, results):
        typer.echo(f"{name}: {missing or f'{out / name}.svg, .png'}")


@app.command()
def verify(results: Recorded):
    """Re-hash every record and name what does not match."""
    if not records.folders(results):
        raise UserError(f"{results}: holds no record; name another folder with --results")
    problems = records.verify(results)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    n = len(records.folders(results))
    typer.echo(f"{n} record{'s are' if n > 1 else ' is'} whole")
