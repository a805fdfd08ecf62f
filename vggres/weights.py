"""The weights of a few runs, kept beside the records: written once, proved by the record's hash, loaded as a net."""

import hashlib
from pathlib import Path

from safetensors.torch import load as read_tensors
from safetensors.torch import save as to_bytes
from torch import Tensor

from vggres import records
from vggres.errors import UserError
from vggres.files import write_atomically
from vggres.models import VGG, build
from vggres.runs import WEIGHTS, Run, find


def keep(results: Path | str, name: str, seed: int, state: dict[str, Tensor]) -> dict:
    """Write `weights/<run>.safetensors` (float32) if the registry asks for them: of seed 0 of a few runs.

    Returns: what the record says of it; empty where nothing was to be written.
    """
    if name not in WEIGHTS or seed:
        return {}
    content = to_bytes({k: v.cpu().contiguous() for k, v in state.items()}, {"run": name})
    file = f"weights/{name}.safetensors"
    (Path(results) / "weights").mkdir(parents=True, exist_ok=True)
    write_atomically(Path(results) / file, content)
    return {"weights": {"file": file, "sha256": hashlib.sha256(content).hexdigest()}}


def load(name: str, results: Path | str | None = None) -> VGG:
    """The net of a run, of seed 0, after the epoch of its best validation accuracy; in evaluation mode.

    Raises:
        UserError: no such run, no record or no weights of it, or other weights than the record was written with.
    """
    results = Path(results or records.default_root())
    folder = records.folder_of(results, find(name).name, 0)
    if not (folder / "run.json").exists():
        raise UserError(f"{name}, seed 0, is not recorded: `vggres train {name}` first")
    record = records.read(folder)
    if "weights" not in record:
        stored = sorted(path.stem for path in (results / "weights").glob("*.safetensors"))
        raise UserError(
            f"{name} was recorded without its weights; there are those of {', '.join(stored) or 'no run yet'}. "
            f"Move {folder} away and train it again"
        )
    path = results / record["weights"]["file"]
    if not path.is_file() or hashlib.sha256(content := path.read_bytes()).hexdigest() != record["weights"]["sha256"]:
        raise UserError(f"{path}: missing, or not the weights that the record of {name} was written with")
    run = Run.from_dict(record["run"])
    net = build(run.model, init=run.init, slope=run.slope)
    net.load_state_dict(read_tensors(content))
    return net.eval()
