"""One set of dependencies, written three times for three tools, and one test command."""

import json
import os
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
DIRECT = {canonicalize_name(r.name): r.specifier for r in map(Requirement, REQUIREMENTS)}
CONDA_NAMES = {"pytorch": "torch"}


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_environment_yml_has_the_dependencies_of_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {}
    for entry in listed:
        if isinstance(entry, str) and entry != "pip":
            name, _, specifier = entry.partition(" ")
            conda[CONDA_NAMES.get(name, name)] = SpecifierSet(specifier)
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert conda == DIRECT


def test_constraints_are_exact_and_name_no_place():
    for pin in pins():
        assert pin.url is None, pin
        assert [s.operator for s in pin.specifier] == ["=="], pin
        assert "*" not in str(pin.specifier), pin


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_direct_dependency_is_bounded_and_pinned_within_its_range(name):
    assert {">=", "<"} <= {s.operator for s in DIRECT[name]}
    (pin,) = [pin for pin in pins() if canonicalize_name(pin.name) == name]
    (version,) = pin.specifier
    assert version.version in DIRECT[name]


def test_ci_runs_the_two_commands_of_the_readme():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step.get("run") for job in jobs.values() for step in job["steps"]]
    assert "make notebooks" in commands
    assert "make test" in commands


def test_ci_run_calls_make_test():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()


@pytest.mark.parametrize("processor", ["bf16", "fp32", "amx"])
def test_the_readmes_speeds_are_the_benchmarks(processor):
    bench = json.loads((ROOT / "benchmarks" / f"cpu-{processor}.json").read_text())
    ours = [row["ways"]["vggres"] for row in bench["models"]]
    vgg08, vgg38 = (f"{way['ratio']:.1f} times | {100 * way['of_ceiling']:.0f} % |" for way in ours)
    rows = f"| {bench['device']['name']}, {bench['precision']} | VGG08 | {vgg08}\n| | VGG38 BN + RC | {vgg38}\n"
    assert rows in (ROOT / "README.md").read_text()


def test_the_readmes_speeds_on_a_gpu_are_the_benchmark_s():
    bench, readme = json.loads((ROOT / "benchmarks/cuda-bf16.json").read_text()), (ROOT / "README.md").read_text()
    ((model, row),) = ((row["model"], row) for row in bench["models"])
    assert model == "vgg38-bn-rc"
    alone, together = row["ways"]["vggres"], row["ways"]["vggres, 7 together"]
    speeds = [f"{way['ratio']:.1f} times | {100 * way['of_ceiling']:.0f} % |" for way in (alone, together)]
    assert (
        f"{bench['device']['name']}, bf16 | VGG38 BN + RC | {speeds[0]}\n| | seven of them together | {speeds[1]}\n"
        in readme
    )
    assert f"{alone['epoch_s']:.2f} s an epoch, seven together {together['epoch_s']:.1f} s" in readme
    assert bench["env"]["torch"] in readme and f"{row['peak_memory'] / 1e9:.1f} GB" in readme
