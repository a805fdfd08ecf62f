"""The weights of a few runs, kept beside the records: written once, verified by the record's hash, and loaded as a
net or as a starting point."""

import hashlib
import io
import textwrap
from pathlib import Path

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from vggres import records
from vggres.data import SPECS
from vggres.errors import Unready, UserError
from vggres.files import write_atomically
from vggres.models import build, layers
from vggres.runs import WEIGHTS, Run, find

COMMITTED = 10e6  # bytes; larger files are kept in a folder that git ignores, and made again by training


def keep(results: Path | str, name: str, seed: int, state: dict[str, Tensor]) -> dict:
    """Write `weights/<run>.safetensors` (float32) if the registry asks for them: for seed 0 of a few runs. Above 10 MB
    they go to `weights-local/`, which git ignores.

    Returns: what the record says about them; empty if nothing was to be written.
    """
    if name not in WEIGHTS or seed:
        return {}
    content = to_bytes({k: v.cpu().contiguous() for k, v in state.items()}, {"run": name})
    file = f"{'weights' if len(content) < COMMITTED else records.LOCAL_WEIGHTS}/{name}.safetensors"
    (Path(results) / file).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(results) / file, content)
    return {"weights": {"file": file, "sha256": hashlib.sha256(content).hexdigest()}}


def load(name: str, results: Path | str | None = None) -> nn.Module:
    """The net of a run (seed 0) after the epoch with its best validation accuracy, in evaluation mode.

    Raises:
        UserError: no such run, no record or no weights of it, or weights other than those the record was written with.
    """
    run = find(name)
    net = build(run.model, None, run.init, run.slope, SPECS[run.dataset].classes)
    net.load_state_dict(read(name, results)[0])
    return net.eval()


def read(name: str, results: Path | str | None = None) -> tuple[dict[str, Tensor], str]:
    """The kept weights of a run (seed 0), and the SHA-256 of their file. Raises as `load` does."""
    results = Path(results or records.default_root())
    folder = records.folder_of(results, name, 0)
    record = records.read(folder) if (folder / "run.json").exists() else {}
    if "weights" not in record and name not in WEIGHTS:
        raise Unready(f"{name}: its training keeps no weights; those that do: {', '.join(sorted(WEIGHTS))}")
    if not record:
        raise Unready(f"{name}, seed 0, is not recorded: `vggres train {name}` first")
    path = results / record.get("weights", {}).get("file", f"weights/{name}.safetensors")
    again = "restore it, or train it again elsewhere (--results DIR)"
    if "weights" not in record or not path.is_file():
        raise Unready(f"{path}: not there, though {name} is recorded; {again}")
    if hashlib.sha256(content := path.read_bytes()).hexdigest() != record["weights"]["sha256"]:
        raise Unready(f"{path}: not the weights that {name} was recorded with; {again}")
    return read_tensors(content), record["weights"]["sha256"]


def read_file(file: Path | None = None) -> tuple[dict[str, Tensor], str]:
    """Weights that are not a run's, and the SHA-256 of their file: `.safetensors`, or a state_dict from `torch.save`.

    Args:
        file: None for torchvision's ImageNet ResNet-18, which is fetched once.

    Raises:
        UserError: the file cannot be fetched or read.
    """
    if file is None:
        from torchvision.models import ResNet18_Weights

        url = ResNet18_Weights.IMAGENET1K_V1.url
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        if not file.exists():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(file), Path(url).stem.split("-")[1], progress=False)
            except (OSError, RuntimeError) as e:
                raise UserError(f"{url} could not be fetched ({e}); fetch it elsewhere and name it by --weights") from e
    try:
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            state = read_tensors(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {str(k): v for k, v in state.items() if isinstance(v, Tensor)}, hashlib.sha256(content).hexdigest()
    except Exception as e:  # its class depends on the damage
        raise UserError(f"{file}: no weights can be read from it ({type(e).__name__})") from e


def begin(net: nn.Module, run: Run, results: Path | str, given: tuple[dict[str, Tensor], str] | None = None) -> dict:
    """Put the weights of `run.start` into a net, except in the last layer, which stays as it was drawn; and let only
    the last layer be trained if the run says so.

    Batch normalisation goes on using, and tracking, the statistics of its batches: they are not trained.

    Args:
        given: weights that are not a run's, and the SHA-256 of their file.

    Returns: what the record says about it; empty for a run from scratch.

    Raises:
        UserError: there are no such weights, or they belong to another network.
    """
    if not run.start:
        return {}
    state, digest = given or read(run.start, results)
    (last, _), own = layers(net)[-1], net.state_dict()
    # Older files lack the number of batches that batch normalisation has seen, and nothing uses it.
    stay = {k: v for k, v in own.items() if k.startswith(f"{last}.") or k.endswith("num_batches_tracked")}
    try:
        net.load_state_dict({k: v for k, v in state.items() if not k.startswith(f"{last}.")} | stay)
    except RuntimeError as e:
        why = textwrap.shorten(str(e), 200)
        raise UserError(f"{run.start}: needed is the plain state_dict of a {run.model}, not this one: {why}") from e
    if run.trained == "last":
        for name, p in net.named_parameters():
            p.requires_grad_(name.startswith(f"{last}."))
    return {"start": {"run": run.start, "sha256": digest}}
