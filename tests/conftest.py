import os

import pytest
import torch

from vggres import records

# Tests run side by side; one thread each also makes every sum the same in every process.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where Triton is imported: kernels of a GPU run on the CPU, slowly


@pytest.fixture
def commit(monkeypatch):
    """Some commit, for records that nobody keeps."""
    monkeypatch.setenv("VGGRES_COMMIT", "0" * 40)
    records.provenance.cache_clear()
    yield
    records.provenance.cache_clear()
