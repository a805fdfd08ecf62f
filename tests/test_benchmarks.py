"""What the benchmark divides by, and what the README says of it."""

import json
from pathlib import Path

from benchmarks.ceiling import needs
from vggres.models import multiply_adds


def test_a_step_makes_three_products_for_each_layer_and_two_for_the_first():
    entry = 32 * 3 * 9 * 32 * 32
    operations, _ = needs("vgg08", "fp32", batch=100)
    assert operations == 2 * (3 * multiply_adds("vgg08") - entry)


def test_bf16_halves_what_the_images_move_and_not_what_adam_does():
    (_, fp32), (_, bf16) = (needs("vgg38-bn-rc", precision, batch=10**9) for precision in ("fp32", "bf16"))
    assert abs(fp32 / bf16 - 2) < 1e-6
    (_, alone), (_, many) = (needs("vgg38-bn-rc", "bf16", batch) for batch in (1, 10**9))
    assert round(alone - many) == 7 * 4 * 338_500


def test_the_readme_s_speeds_are_those_of_the_committed_measurements():
    root, names = Path(__file__).parents[1], {"vgg08": "VGG08", "vgg38-bn-rc": "VGG38 BN + RC"}
    readme = (root / "README.md").read_text("utf-8")
    for file in (root / "benchmarks").glob("*.json"):
        found = json.loads(file.read_text())
        first, rows = f"{found['device']['name']}, {found['precision']}", []
        for row in found["models"]:
            for way, speed in row["ways"].items():
                if way != "naive":
                    network = "seven of them together" if "together" in way else names[row["model"]]
                    ratio, ceiling = f"{speed['ratio']:.1f} times", f"{speed['of_ceiling']:.0%}".replace("%", " %")
                    rows.append(f"| {'' if rows else f'{first} '}| {network} | {ratio} | {ceiling} |")
        assert "\n".join(rows) in readme, file.name
