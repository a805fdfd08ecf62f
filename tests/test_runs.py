"""The registry of the reports' experiments, and the two meanings of "cosine annealing"."""

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from vggres.errors import UserError
from vggres.models import INITS, MODELS, SLOPE
from vggres.probes import slope_for
from vggres.resnets import NETS
from vggres.runs import PRETRAINED, QUEUE, RUNS, TABLE_1, WEIGHTS, Run, find

REPORTED = Path(__file__).resolve().parents[1] / "results" / "reported.csv"


def reported(report, exhibit):
    """Runs of an exhibit, in its order."""
    with REPORTED.open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if (r["report"], r["exhibit"]) == (report, exhibit)]
    return list(dict.fromkeys(r["run"] for r in rows))


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (Run("vgg08"), "vgg08"),
        (Run("vgg38-bn-rc", lr=1e-2), "vgg38-bn-rc-lr1e-2"),
        (Run("vgg38-bn", lr=5e-3), "vgg38-bn-lr5e-3"),
        (Run("vgg38-resnet", lr=1e-1, lr_end=2e-3), "vgg38-resnet-lr1e-1-to2e-3"),
        (Run("vgg38-resnet", weight_decay=1e-4), "vgg38-resnet-wd1e-4"),
        (Run("vgg38-bn", weight_decay=1e-6, batch=264, epochs=250), "vgg38-bn-wd1e-6-batch264-250ep"),
        (Run("vgg08", schedule="cosine-step"), "vgg08-cosine-step"),
        (Run("vgg08", dataset="cifar10", augment=False), "vgg08-cifar10-no-augment"),
        (Run("vgg08").tiny(), "vgg08-synthetic-2000-images-2ep"),
        (Run("vgg38", init="he", lr=1e-4), "vgg38-he-lr1e-4"),
        (
            Run("vgg38", init="delta-orthogonal", slope=0.6, lr=4e-4, epochs=5),
            "vgg38-delta-orthogonal-slope0.6-lr4e-4-5ep",
        ),
        (Run("resnet18", optimizer="sgd", schedule="step30"), "resnet18-sgd-step30"),
        (Run("basenet-0", normalise="none"), "basenet-0-unnormalised"),
        (Run("basenet-6", normalise="own", augment=False), "basenet-6-own-statistics-no-augment"),
        (
            Run("resnet18", dataset="cifar100-30", start="resnet18-cifar10-sgd-90ep", trained="last"),
            "resnet18-cifar100-30-from-cifar10-90ep-last-layer",
        ),
        (Run("resnet18", start="resnet18-cifar10-cosine-step"), "resnet18-from-cifar10"),
        (Run("resnet18-224", dataset="folder", start="imagenet"), "resnet18-224-folder-from-imagenet"),
    ],
)
def test_a_name_spells_out_what_is_not_a_default(run, name):
    assert run.name == name


def test_names_are_unique_and_the_keys_of_the_registry():
    from vggres import runs

    assert len(RUNS) == len({run for _, group in runs._GROUPS for run in group})
    assert len(QUEUE) == len(set(QUEUE)) and {run for run, _ in QUEUE} == set(RUNS.values())
    assert all(name == run.name for name, run in RUNS.items())


def test_every_registered_run_has_a_known_network():
    assert {run.model for run in RUNS.values()} <= {*MODELS, *NETS}
    assert {run.init for run in RUNS.values()} <= {"default", *INITS}
    assert Run("vgg38").slope == SLOPE


@pytest.mark.parametrize("run", [*RUNS.values(), find("vgg38").tiny()], ids=lambda run: run.name)
def test_a_run_survives_its_dictionary(run):
    again = Run.from_dict(run.to_dict())
    assert again == run
    assert again.exhibits == run.exhibits
    assert run.to_dict()["name"] == run.name


def test_a_record_from_before_a_field_was_added_is_of_its_default():
    later = ("init", "slope", "normalise", "start", "trained")
    older = {k: v for k, v in Run("vgg38").to_dict().items() if k not in later}
    assert Run.from_dict(older) == Run("vgg38") != Run("vgg38", slope=0.6)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(epochs=0),
        dict(epochs=-1),
        dict(batch=0),
        dict(lr=0.0),
        dict(lr=-1e-3),
        dict(lr=float("nan")),
        dict(lr=float("inf")),
        dict(lr_end=-1e-5),
        dict(lr_end=float("nan")),
        dict(weight_decay=-1e-3),
        dict(weight_decay=float("nan")),
        dict(slope=-0.1),
        dict(slope=1.5),
        dict(slope=float("nan")),
        dict(limit=0),
        dict(limit=-5),
        dict(schedule="linear"),
        dict(optimizer="rmsprop"),  # would be trained with Adam and recorded as another
        dict(normalise="imagenet"),
        dict(trained="first"),
        dict(trained="last"),  # of what was drawn at random
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused(wrong):
    (field,) = wrong
    with pytest.raises(UserError, match=field):
        Run("vgg08", **wrong)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
@pytest.mark.parametrize("schedule", ["cosine-epoch", "cosine-step"])
def test_learning_rate_is_pytorchs_cosine_annealing(schedule, lr):
    steps, run = 7, Run("vgg08", epochs=10, lr=lr, schedule=schedule)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.epochs, eta_min=2e-5)
    expected = []
    for _ in range(run.epochs):
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            if schedule == "cosine-step":
                cosine.step()
        if schedule == "cosine-epoch":
            cosine.step()
    assert [run.lr_at(i, steps) for i in range(len(expected))] == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_step30_is_pytorchs_step_decay():
    run = find("resnet18-cifar10-sgd-lr5e-2-wd5e-4-batch128-step30-90ep")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=run.lr)
    decay, expected = torch.optim.lr_scheduler.StepLR(optimizer, 30), []
    for _ in range(run.epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        decay.step()
    assert [run.lr_at(372 * epoch + 371, 372) for epoch in range(90)] == pytest.approx(expected)
    assert len(set(expected)) == 3


def test_cosine_epoch_falls_once_and_cosine_step_swings_every_200_steps():
    once, swing = Run("vgg08"), Run("vgg08", schedule="cosine-step")
    rates = [once.lr_at(i, 475) for i in range(0, 47_500, 475)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], once.lr_at(474, 475)) == (1e-3, 1e-3)
    assert 2e-5 < rates[-1] < 2.1e-5
    assert [swing.lr_at(i, 475) for i in (0, 100, 200, 47_400)] == pytest.approx([1e-3, 2e-5, 1e-3, 1e-3])


def test_table_1_has_its_seven_rows_in_order():
    assert TABLE_1 == [
        "vgg08",
        "vgg38",
        "vgg38-bn",
        "vgg38-rc",
        "vgg38-bn-rc",
        "vgg38-bn-lr1e-2",
        "vgg38-bn-rc-lr1e-2",
    ]
    assert reported("A", "Table 1") == TABLE_1
    for name in TABLE_1:
        assert "A/Table 1" in RUNS[name].exhibits
        assert RUNS[name] == Run(RUNS[name].model, lr=RUNS[name].lr)
    assert [name for name, run in RUNS.items() if "A/Table 1" in run.exhibits] == TABLE_1


@pytest.mark.parametrize("report", ["A", "B", "D"])
def test_every_number_of_the_reports_has_its_run(report):
    with REPORTED.open(newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["report"] == report]
    assert len(rows) > 45
    assert {row["run"] for row in rows} <= set(RUNS)
    seeded = {(row["run"], int(row["seed"])) for row in rows if row["seed"]}
    assert seeded <= {(run.name, seed) for run, seed in QUEUE}
    for step in range(1, 11):
        told = {row["run"] for row in rows if row["exhibit"] == f"Ablation {step}"}
        assert told <= {name for name, run in RUNS.items() if f"D/Ablation {step}" in run.exhibits}
    for exhibit in (
        "Result",
        "Part 2",
        "Set 1",
        "Set 1a",
        "Set 2",
        "Set 3",
        "Set 4",
        "Set 5",
        "Figure 7",
        "Figure 8",
        "Figure 9",
    ):
        told = {row["run"] for row in rows if row["exhibit"] == exhibit}
        assert told <= {name for name, run in RUNS.items() if f"{report}/{exhibit}" in run.exhibits}


def test_the_queue_begins_with_table_1_by_both_schedules_and_goes_on_with_its_other_seeds():
    both = [f"{name}{schedule}" for schedule in ("", "-cosine-step") for name in TABLE_1]
    others = [(name, seed) for seed in (1, 2) for name in TABLE_1]
    assert [(run.name, seed) for run, seed in QUEUE[:28]] == [(name, 0) for name in both] + others
    assert all((RUNS[name], 0) in QUEUE for name in WEIGHTS)


def test_report_b_scales_the_learning_rate_at_the_start_and_at_the_end():
    scaled = [run for run in RUNS.values() if "B/Set 3" in run.exhibits]
    assert [(run.lr, run.lr_end) for run in scaled] == [(k * 1e-3, k * 2e-5) for k in (5, 30, 100)]
    assert [run.lr_at(0, 475) for run in scaled] == pytest.approx([5e-3, 3e-2, 1e-1])
    assert scaled[2].lr_at(100 * 475, 475) == pytest.approx(2e-3)


def test_what_report_a_says_against_its_own_table_are_runs_of_their_own():
    text = [run for run in RUNS.values() if "A/text" in run.exhibits]
    recipe = dict(epochs=250, batch=264, weight_decay=1e-6)
    falling = [Run("vgg38-bn", **recipe), Run("vgg38-bn-rc", lr=1e-2, **recipe)]
    assert text == [replace(run, schedule="cosine-step") for run in falling] + falling


def test_table_1_is_registered_under_both_meanings_of_the_schedule():
    for name in TABLE_1:
        other = replace(RUNS[name], schedule="cosine-step", exhibits=())
        assert RUNS[other.name] == other


def test_the_plain_net_is_queued_with_each_of_three_changes_and_without_after_reports_a_and_b():
    changes = dict(init=("default", "delta-orthogonal"), slope=(0.01, 0.6), lr=(1e-3, 4e-4))
    cube = {Run("vgg38", **dict(zip(changes, values, strict=True))) for values in product(*changes.values())}
    assert len(cube) == 8 and cube <= set(RUNS.values())
    first = min(i for i, (run, _) in enumerate(QUEUE) if run in cube - {RUNS["vgg38"]})
    assert not any(exhibit.startswith(("A/", "B/")) for run, _ in QUEUE[first:] for exhibit in run.exhibits)


def test_the_queue_goes_on_with_report_cs_pair_then_the_transfer_then_the_steps():
    names = list(dict.fromkeys(run.name for run, _ in QUEUE))
    later = names[names.index(PRETRAINED.name) :]
    assert all(run.model.startswith("vgg") for run in map(find, names[: names.index(PRETRAINED.name)]))
    assert [(find(n).model, find(n).dataset) for n in later[:4]] == [
        ("resnet18", "cifar10"),
        ("resnet18-no-bn", "cifar10"),
        ("resnet18", "cifar100"),
        ("resnet18-no-bn", "cifar100"),
    ]
    assert [(bool(find(n).start), find(n).trained) for n in later[4:7]] == [
        (True, "last"),
        (True, "all"),
        (False, "all"),
    ]
    assert [find(n).model for n in later[7:18]] == [*(f"basenet-{k}" for k in range(8)), *["basenet-6"] * 2, "basenet"]


def test_report_c_trains_by_its_recipe():
    for name in (n for n, run in RUNS.items() if any(e.startswith("C/") for e in run.exhibits)):
        run = RUNS[name]
        assert (run.optimizer, run.lr, run.weight_decay, run.batch, run.epochs) == ("sgd", 0.05, 5e-4, 128, 90)


def test_every_start_is_a_run_of_the_same_net_whose_weights_are_kept_and_which_is_queued_before():
    order = [run.name for run, _ in QUEUE]
    for run in (run for run in RUNS.values() if run.start):
        assert run.start in WEIGHTS and find(run.start).model == run.model
        assert order.index(run.start) < order.index(run.name)


def test_the_steps_of_the_ablation_change_one_thing_each_from_step_7_on():
    steps = [run for run in RUNS.values() if any(e.startswith("D/Ablation") for e in run.exhibits)]
    assert [run.model for run in steps] == [*(f"basenet-{k}" for k in range(8)), "basenet-6", "basenet-6", "basenet"]
    assert {(run.normalise, run.augment) for run in steps[:8]} == {("none", False)}
    assert steps[8] == replace(steps[6], normalise="own") and steps[9] == replace(steps[8], augment=True)
    assert steps[10] == replace(steps[9], model="basenet", epochs=100)


def test_tiny_keeps_the_recipe_and_says_so_in_its_name():
    run, tiny = RUNS["vgg38-bn-rc-lr1e-2"], RUNS["vgg38-bn-rc-lr1e-2"].tiny(limit=300, epochs=1)
    assert replace(tiny, dataset=run.dataset, limit=None, epochs=run.epochs) == run
    assert tiny.name not in RUNS and "synthetic" in tiny.name and "300-images" in tiny.name


def test_an_unknown_run_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'vgg38-bnrc'.*vgg38-bn-rc"):
        find("vgg38-bnrc")
    with pytest.raises(UserError, match="vggres list"):
        find("?")


@pytest.mark.parametrize(
    "name, layers, cosine",
    [
        ("vgg38-delta-orthogonal-slope0.6-lr4e-4", 37, 0.65),
        ("vgg68-delta-orthogonal-slope0.69-lr2e-4", 67, 0.65),
        ("vgg38-delta-orthogonal-slope0.36-lr4e-4", 37, 0.9),
        ("vgg68-delta-orthogonal-slope0.49-lr4e-4", 67, 0.9),
    ],
)
def test_slopes_of_the_plain_nets_are_those_of_the_theory(name, layers, cosine):
    assert find(name).slope == round(slope_for(layers, cosine), 2)
