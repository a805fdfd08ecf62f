import pytest
import torch

from vggres import records

# Tests run side by side; one thread each also makes every sum the same in every process.
torch.set_num_threads(1)


@pytest.fixture
def commit(monkeypatch):
    """Some commit, for records that nobody keeps."""
    monkeypatch.setenv("VGGRES_COMMIT", "0" * 40)
    records.provenance.cache_clear()
    yield
    records.provenance.cache_clear()
