"""`python -m benchmarks`: images a second of the naive loop and of this engine, by turns, and against the ceiling."""

import itertools
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import ceiling, naive
from vggres import data, records
from vggres.engine import Engine, pick_device, pick_precision
from vggres.errors import UserError
from vggres.files import write_atomically
from vggres.models import build
from vggres.training import device_name

BATCH, LR, EPOCH = 100, 1e-3, 47_500
KINDS = {  # of operators, on CUDA of kernels, by what their names hold
    "convolution": ("conv", "Conv", "fprop", "dgrad", "wgrad", "parameter_gradients"),
    "batch norm": ("batch_norm", "normalise", "sum_back"),
    "activation": ("leaky_relu", "sigmoid"),
    "addition, pooling": ("aten::add", "pool"),
    "Adam": ("adam", "Adam"),
    "layers of our own": ("Layer", "_Pool"),  # on a CPU, see `fused_cpu`
}


def by_engine(nets, images, device):
    """A function that gives each of these nets a step, each on batches of its own."""
    engines = [Engine(net, LR, 0.0, device) for net in nets]
    plans = [itertools.cycle(data.plan_epoch(len(images), k, 0).to(device).batches(BATCH)) for k in range(len(nets))]

    def step():
        for engine, plan in zip(engines, plans, strict=True):
            engine.step(images, next(plan), LR)

    return step


def as_by_default(epochs):
    """The next step of the naive loop, under torch's own settings; the engine changes them for the whole process."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
        return next(epochs)


def measure(ways, device, rounds: int, turn: float) -> dict[str, list[float]]:
    """Steps a second of each way: turns of about `turn` seconds, one way after the other, `rounds` times."""
    count, rates = {}, {name: [] for name in ways}
    for name, step in ways.items():
        for _ in range(8):  # what is compiled or captured comes first
            step()
        ceiling.wait(device)
        began = time.perf_counter()
        for _ in range(3):
            step()
        ceiling.wait(device)
        count[name] = max(3, round(turn * 3 / (time.perf_counter() - began)))
    for _ in range(rounds):
        for name, step in ways.items():
            for _ in range(5):  # a data loader has prefetched four batches while others had their turn
                step()
            ceiling.wait(device)
            began = time.perf_counter()
            for _ in range(count[name]):
                step()
            ceiling.wait(device)
            rates[name].append(count[name] / (time.perf_counter() - began))
    return rates


def profile(model: str, images, device) -> dict[str, float]:
    """Share of an eager step's time by kind of operator or kernel."""
    engine = Engine(build(model, seed=0), LR, 0.0, device)
    plans = list(itertools.islice(data.plan_epoch(len(images), 0, 0).to(device).batches(BATCH), 5))
    for plan in plans[:2]:
        engine._train(images, plan)
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA][: 1 + (device.type == "cuda")]) as seen:
        for plan in plans[2:]:
            engine._train(images, plan)
        ceiling.wait(device)
    times = dict.fromkeys([*KINDS, "all else"], 0.0)
    for event in seen.key_averages():
        if (event.device_type == torch.autograd.DeviceType.CPU) == (device.type == "cuda"):
            continue  # on CUDA kernels count, elsewhere operators
        if event.key.startswith("Optimizer."):
            continue  # the span of the whole call
        kind = next((kind for kind, parts in KINDS.items() if any(p in event.key for p in parts)), "all else")
        times[kind] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return {kind: round(t / sum(times.values()), 3) for kind, t in times.items()}


def peak_memory(model: str, device: torch.device) -> int:
    """Bytes, of a training in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", model, str(device)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    models: Annotated[list[str], typer.Option(help="May be repeated.")] = ["vgg08", "vgg38-bn-rc"],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 5,
    turn: Annotated[float, typer.Option(help="Seconds of a turn.")] = 4.0,
    together: Annotated[int, typer.Option(help="Runs at once; 0 for none, as on a CPU.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the measurement is written to.")] = Path("build/benchmarks.json"),
):
    """Train a few steps in the naive way and with this engine, by turns; print both, their ratio, and the ceiling."""
    on, commit = pick_device(device), records.provenance()
    source = data.load("cifar100" if data.available() else "synthetic")
    images, rows = data.Images(*source.train, on), []
    precision = pick_precision(on)
    product, copied = ceiling.matrix_product(on, precision), ceiling.copy(on)
    typer.echo(f"{device_name(on)}, {precision}: product {product / 1e9:,.0f} GFLOP/s, copy {copied / 1e9:,.0f} GB/s")
    typer.echo(f"{'network':14} {'way':18} {'images/s':>10} {'ratio':>7} {'of ceiling':>11}")
    for model in models:
        epochs = naive.train(build(model, seed=0), *source.train, BATCH, LR, on)
        ways = {"naive": partial(as_by_default, epochs), "vggres": by_engine([build(model, seed=0)], images, on)}
        if on.type == "cuda" and together:
            nets = [build(model, seed=k) for k in range(together)]
            ways[f"vggres, {together} together"] = by_engine(nets, images, on)
        rates = measure(ways, on, rounds, turn)
        floor = ceiling.floor(model, precision, BATCH, product, copied)
        operations, moved = ceiling.needs(model, precision, BATCH)
        row = {"model": model, "operations": operations, "bytes": round(moved), "ways": {}}
        for way, steps in rates.items():
            runs = together if way.endswith("together") else 1
            speed = [BATCH * runs * s for s in steps]
            ratio = statistics.median(a / b * runs for a, b in zip(steps, rates["naive"], strict=True))
            median = statistics.median(speed)
            row["ways"][way] = {
                "images_per_s": round(median, 1),
                "slowest": round(min(speed), 1),
                "fastest": round(max(speed), 1),
                "ratio": round(ratio, 2),
                "of_ceiling": round(median * floor, 3),
                **({"epoch_s": round(EPOCH * runs / median, 3)} if on.type == "cuda" else {}),
            }
            typer.echo(f"{model:14} {way:18} {median:10,.0f} {ratio:7.2f} {100 * median * floor:9.0f} %")
        epochs.close()
        row["profile"] = profile(model, images, on)
        row["peak_memory"] = peak_memory(model, on)
        typer.echo(f"{model:14} a step: " + ", ".join(f"{kind} {100 * s:.0f} %" for kind, s in row["profile"].items()))
        typer.echo(f"{model:14} peak memory of a training: {row['peak_memory'] / 1e9:.2f} GB")
        rows.append(row)
    result = {
        "device": {"type": on.type, "name": device_name(on)},
        "precision": precision,
        "convolution": Engine(build("vgg08"), LR, 0.0, on).convolution,
        "threads": torch.get_num_threads(),
        "ceiling": {"product_per_s": round(product), "bytes_per_s": round(copied)},
        "data": source.name,
        "batch": BATCH,
        "rounds": rounds,
        "env": records.environment(),
        "git": commit,
        "models": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    typer.echo(f"written to {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as e:
        sys.exit(f"benchmarks: {e}")
