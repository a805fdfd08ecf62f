"""The command line: `vggres list | data | train | tables | figures | verify`.

Exit status: 0 done, 1 `verify` found a problem, 2 bad input, 3 the time was up before the last epoch,
130 interrupted.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from vggres import data as datasets
from vggres import records
from vggres.errors import UserError
from vggres.files import write_atomically
from vggres.runs import RUNS, find


class OneLine(TyperGroup):
    """Prints whatever the user can mend as one line, and exits with its status."""

    def main(self, *args, standalone_mode=True, **kwargs):
        try:
            status = super().main(*args, standalone_mode=False, **kwargs)
        except typer.Abort:
            status = 130
        except (UserError, OSError) as e:
            typer.echo(f"vggres: {e}", err=True)
            status = 2
        except Exception as e:
            if not hasattr(e, "format_message"):  # what Typer says of wrong usage, under any version's class
                raise
            message = e.format_message()  # the whole help where no command was named
            typer.echo(message if "\n" in message else f"vggres: {message.rstrip('.')}; see --help", err=True)
            status = e.exit_code
        if status == 130:
            typer.echo("vggres: interrupted; the same command goes on from the last whole epoch", err=True)
        sys.exit(status or 0)


app = typer.Typer(
    cls=OneLine,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Why very deep plain convolutional networks do not train, and what fixes them.",
)

Results = Annotated[
    Path,
    typer.Option(help="Folder of records.", default_factory=records.default_root, show_default="results/"),
]
DataRoot = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Folder of the dataset, in its binary or python layout.",
        default_factory=datasets.default_root,
        show_default="$VGGRES_DATA or ~/.cache/vggres",
    ),
]


@app.command("list")
def list_(results: Results):
    """Every registered run: where it is reported, and what has been measured."""
    runs = records.load_runs(results)
    for run in RUNS.values():
        mine = runs[runs.run == run.name]
        state = f"{len(mine)} measured" if len(mine) else "not measured"
        typer.echo(f"{run.name:42} {state:14} {', '.join(run.exhibits)}")


@app.command()
def data(
    root: DataRoot,
    dataset: Annotated[str, typer.Option(help="cifar100 or cifar10.")] = "cifar100",
):
    """Download a dataset, check every image, and convert it. What is there already is only checked."""
    if dataset not in datasets.SPECS:
        raise UserError(f"no dataset is called {dataset!r}; there are {', '.join(datasets.SPECS)}")
    folder = datasets.fetch(dataset, root)
    loaded = datasets.load(dataset, folder)
    sizes = ", ".join(f"{len(getattr(loaded, split)[1]):,} {split}" for split in ("train", "val", "test"))
    typer.echo(f"{dataset}: {sizes} images, verified, in {folder}")


@app.command()
def train(
    names: Annotated[list[str], typer.Argument(help="Runs, as `vggres list` names them.", metavar="NAME...")],
    root: DataRoot,
    results: Results,
    seed: Annotated[
        list[int], typer.Option(help="Of the weights, the order of the images and their augmentation; may be repeated.")
    ] = [0],  # noqa: B006
    epochs: Annotated[int | None, typer.Option(help="Train fewer or more epochs: a run of another name.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
    minutes: Annotated[
        float | None, typer.Option(help="Stop cleanly after this time; the same command resumes.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="All at once, to fill a GPU.")] = False,
):
    """Train runs one after the other and record them; what was begun is resumed, what is recorded is kept."""
    import time

    from vggres.engine import pick_device
    from vggres.training import steps, train_together

    for k in seed:
        if not 0 <= k < 2**63:
            raise UserError(f"--seed must be from 0 to 2**63 - 1, not {k}")
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes must be positive, not {minutes}")
    runs = [find(name) if epochs is None else replace(find(name), epochs=epochs) for name in names]
    pick_device(device)
    jobs = list(dict.fromkeys((run, k) for k in seed for run in runs))
    began, loaded = time.monotonic(), {}
    for group in [jobs] if together else [[job] for job in jobs]:
        left = None if minutes is None else minutes - (time.monotonic() - began) / 60
        trainings, say = [], {}
        for run, k in group:
            if run.dataset not in loaded:
                loaded[run.dataset] = datasets.load(run.dataset, root)
            say[run, k] = partial(_say, f"{run.name}, seed {k}")
            trainings.append(steps(run, k, loaded[run.dataset], results, device, left, say[run, k]))
        trained = dict(zip(group, train_together(trainings), strict=True))
        for (run, k), record in trained.items():
            result = record and record["result"]
            if record is None:
                say[run, k]("the time is up; the same command goes on from the last whole epoch")
            elif result["test_acc"] is not None:
                typer.echo(
                    f"{run.name}, seed {k}: validation {100 * result['val_acc']:.2f} % after epoch {result['epochs']}, "
                    f"test {100 * result['test_acc']:.2f} % (epoch {result['best_epoch']})"
                )
        if None in trained.values():
            raise typer.Exit(3)


def _say(job: str, line: str) -> None:
    typer.echo(f"{job}: {line}", err=True)


@app.command()
def tables(
    results: Results,
    readme: Annotated[
        Path | None, typer.Option(help="Renew the generated part of this file instead of printing.")
    ] = None,
):
    """Table 1 as reported and as measured, in Markdown."""
    from vggres.tables import readme_table, update_readme

    if readme is None:
        typer.echo(readme_table(results))
        return
    try:
        write_atomically(readme, update_readme(readme.read_text(), results).encode())
    except (OSError, ValueError) as e:
        raise UserError(f"{readme}: cannot be renewed: {e}") from e


@app.command()
def figures(results: Results, out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("figures")):
    """Render every figure whose runs are recorded, as SVG and PNG."""
    from vggres.figures import render

    for name, missing in render(out, results):
        typer.echo(f"{name}: {missing or f'{out / name}.svg, .png'}")


@app.command()
def verify(results: Results):
    """Re-hash every record and name what does not match."""
    if not results.is_dir():
        raise UserError(f"{results}: no such folder of records; name another with --results")
    problems = records.verify(results)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{len(records.folders(results))} records are whole")


if __name__ == "__main__":
    app()
