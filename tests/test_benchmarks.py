"""What the benchmark divides by."""

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
