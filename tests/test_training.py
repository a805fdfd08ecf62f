"""The loop: exact resume, deadlines, divergence, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from vggres import data, records, training
from vggres.errors import UserError
from vggres.runs import find

TINY = find("vgg08").tiny(limit=600, epochs=3)

# Trains TINY in a process of its own; prints a line a batch so that the test can choose when to kill it.
WORKER = """
import sys
from vggres import data, engine, training
from vggres.runs import find
step = engine.Engine.step
def told(self, *args):
    step(self, *args)
    print("step", flush=True)
engine.Engine.step = told
run = find("vgg08").tiny(limit=600, epochs=3)
training.train(run, 0, data.synthetic(), sys.argv[1], "cpu")
"""


@pytest.fixture(autouse=True)
def commit(monkeypatch):
    monkeypatch.setenv("VGGRES_COMMIT", "0" * 40)
    records.provenance.cache_clear()
    yield
    records.provenance.cache_clear()


@pytest.fixture(scope="module")
def synthetic():
    return data.synthetic()


def contents(results, run=TINY):
    """History without its times, gradients, and the final result with the hash of the gradients."""
    folder = records.folder_of(results, run.name, 0)
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds").to_csv()
    return history, (folder / "gradients.csv").read_text(), records.read(folder)["result"]




@pytest.fixture
def keep_weights(monkeypatch):
    """Save the final weights and optimiser state beside the record before it is written."""
    measure = training.measure

    def keeping(run, seed, d, engine, state, test):
        keeping.last = {k: v.clone() for k, v in engine.net.state_dict().items()}
        return measure(run, seed, d, engine, state, test)

    monkeypatch.setattr(training, "measure", keeping)
    return keeping


def test_sigkill_in_the_middle_of_an_epoch_changes_nothing(tmp_path, synthetic, keep_weights):
    killed = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True)
    for _ in range(9):  # six steps an epoch: the third step of the second epoch
        assert killed.stdout.readline() == "step\n"
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    folder = records.folder_of(tmp_path / "killed", TINY.name, 0)
    assert (folder / "checkpoint.pt").exists() and not (folder / "run.json").exists()

    said = []
    training.train(TINY, 0, synthetic, tmp_path / "killed", "cpu", say=said.append)
    resumed = keep_weights.last
    training.train(TINY, 0, synthetic, tmp_path / "whole", "cpu")
    assert said == ["resumes after epoch 1 of 3"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all(torch.equal(resumed[k], v) for k, v in keep_weights.last.items())
    assert records.read(folder)["time"]["resumes"] == 1
    assert not list(folder.glob("checkpoint*"))
