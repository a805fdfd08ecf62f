"""`State`, how far a run has come, and its checkpoints: written after each epoch, hashed, resumed exactly."""

import hashlib
import io
import math
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from vggres import records
from vggres.engine import Engine
from vggres.errors import Unready, UserError
from vggres.files import write_atomically
from vggres.gradients import gradient_flow
from vggres.runs import Run


@dataclass
class State:
    """How far a run has come; a checkpoint holds this, the net and the optimiser."""

    history: list[dict] = field(default_factory=list)
    gradients: list[dict] = field(default_factory=list)
    best: dict | None = None  # weights after the epoch with the best validation accuracy
    diverged: bool = False
    wall_s: float = 0.0
    resumes: int = 0
    digests: dict[str, str] = field(default_factory=dict)  # of images and start weights
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    git: list[dict] = field(default_factory=list)  # one entry per commit that trained part of it
    devices: list[dict] = field(default_factory=list)  # and one per device

    @property
    def epoch(self) -> int:
        return len(self.history)

    def add(self, row: tuple, net: nn.Module) -> None:
        """Note an epoch: its history line, the gradients of its last batch, and the weights if it is the best."""
        self.history.append(dict(zip(records.HISTORY, row, strict=True)))
        self.gradients.append({"epoch": self.epoch, **gradient_flow(net)})
        self.wall_s += self.history[-1]["seconds"]
        self.diverged = not all(math.isfinite(self.history[-1][loss]) for loss in ("train_loss", "val_loss"))
        if records.summarise(self.history)["best_epoch"] == self.epoch:
            self.best = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """The newest checkpoint and the one before it."""
    return folder / "checkpoint.pt", folder / "checkpoint-previous.pt"


def save(folder: Path, run: Run, seed: int, engine: Engine, state: State) -> None:
    """Write the newest checkpoint, keeping the one before. The file is a SHA-256, then what `torch.save` gives."""
    parts = {"run": run.to_dict(), "seed": seed, "state": vars(state)}
    parts |= {"net": engine.net.state_dict(), "optimizer": engine.optimizer.state_dict()}
    buffer = io.BytesIO()
    torch.save(parts, buffer)
    newest, previous = checkpoints(folder)
    if newest.exists():
        os.replace(newest, previous)
    content = buffer.getvalue()
    write_atomically(newest, hashlib.sha256(content).digest() + content)


def newest(folder: Path, device: torch.device | str = "cpu") -> tuple[dict | None, list[Path]]:
    """The newest intact checkpoint in a folder (None if there is none), and any newer ones that are damaged."""
    damaged = []
    for path in checkpoints(folder):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            whole = torch.load(io.BytesIO(content[32:]), map_location=device, weights_only=True)
            return whole | {"path": path}, damaged
        damaged.append(path)
    return None, damaged


def resume(folder: Path, run: Run, seed: int, engine: Engine, digests: dict[str, str], say) -> State | None:
    """Put the engine where the newest intact checkpoint left it; None if there is none to resume.

    Raises:
        Unready: the checkpoint is of other settings, images or starting weights, or all checkpoints are damaged.
    """
    saved, damaged = newest(folder, engine.device)
    if saved is None:
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise Unready(f"{folder}: no checkpoint is whole ({names}); delete them to begin anew")
        return None
    instead = "delete it to begin anew, or choose another --results"
    try:
        if Run.from_dict(saved["run"]) != run or saved["seed"] != seed:
            raise ValueError
        engine.net.load_state_dict(saved["net"])
        engine.optimizer.load_state_dict(saved["optimizer"])
        state = State(**saved["state"])
    except (KeyError, RuntimeError, TypeError, ValueError, UserError) as e:
        told = f"{saved['run']}, seed {saved['seed']}"
        raise Unready(f"{saved['path']} is of other settings, or of another version ({told}); {instead}") from e
    for group in engine.optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = engine.device.type == "cuda"  # whichever device wrote the checkpoint
    if state.digests != digests:
        raise Unready(f"{saved['path']} is of other images, or began from other weights; {instead}")
    state.resumes += 1
    if damaged:  # or the next `save` would replace the intact one with the damaged one
        os.replace(saved["path"], damaged[0])
    passed_over = f" ({damaged[0]} is damaged; the one before it is used)" if damaged else ""
    say(f"resumes after epoch {state.epoch} of {run.epochs}{passed_over}")
    return state


def epochs_done(results: Path | str, run: Run, seed: int) -> int:
    """How many epochs of a run are in its newest checkpoint; 0 if there is none."""
    saved, _ = newest(records.folder_of(results, run.name, seed))
    return len(saved["state"]["history"]) if saved else 0
