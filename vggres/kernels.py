"""The kernels of `fused_cuda`, in Triton. Images are in channels_last memory, pixel by pixel: a pixel is 32 numbers,
and `pixels` is how many there are in a batch."""

import triton
import triton.language as tl


@triton.jit
def convolution(
    x, w, bias, shortcut, y, sums, pixels, slope,
    SIDE: tl.constexpr, BACK: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program computes the results of BLOCK pixels; BACK: the input's gradient from that of the results."""
    p, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 32)
    row, column, real = p // SIDE % SIDE, p % SIDE, p < pixels
    total = tl.zeros((BLOCK, 32), tl.float32)
    for down in tl.static_range(-1, 2):
        if BACK:
            taps, right = w + c[:, None] * 288 + (4 - 3 * down) * 32 + c[None, :], -32
        else:
            taps, right = w + c[None, :] * 288 + (4 + 3 * down) * 32 + c[:, None], 32
        b0, b1, b2 = tl.load(taps - right), tl.load(taps), tl.load(taps + right)  # all loads before the first product
        here = real & (row + down >= 0) & (row + down < SIDE)
        at = x + (p + down * SIDE)[:, None] * 32 + c[None, :]
        a0 = tl.load(at - 32, mask=(here & (column > 0))[:, None], other=0.0)
        a1 = tl.load(at, mask=here[:, None], other=0.0)
        a2 = tl.load(at + 32, mask=(here & (column < SIDE - 1))[:, None], other=0.0)
        total = tl.dot(a0, b0.to(a0.dtype), total)
        total = tl.dot(a1, b1.to(a0.dtype), total)
        total = tl.dot(a2, b2.to(a0.dtype), total)
    if bias is not None:
        total += tl.load(bias + c)[None, :]
    at, real = p[:, None] * 32 + c[None, :], real[:, None]
    if shortcut is not None:
        total += tl.load(shortcut + at, mask=real, other=0.0).to(tl.float32)
    result = tl.where(total > 0, total, slope * total).to(y.dtype.element_ty)
    tl.store(y + at, result, mask=real)
    if sums is not None:
        seen = tl.where(real, result.to(tl.float32), 0.0)
        sums += tl.program_id(0) % COPIES * 64
        tl.atomic_add(sums + c, tl.sum(seen, 0), sem="relaxed")
        tl.atomic_add(sums + 32 + c, tl.sum(seen * seen, 0), sem="relaxed")


@triton.jit
def parameter_gradients(
    x, dz, parts, pixels, STEPS: tl.constexpr, BIASED: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Each program sums over STEPS blocks of pixels, for one row of the kernel and for the biases.

    The three pixels that a row of the kernel needs lie side by side: one product serves them all, and a fourth that
    counts for nothing, since sizes must be powers of two.
    """
    c, k, down = tl.arange(0, 32), tl.arange(0, 128), tl.program_id(1) - 1
    right = k // 32 - 1
    total, of_bias = tl.zeros((128, 32), tl.float32), tl.zeros((32,), tl.float32)
    for i in range(STEPS):
        p = (tl.program_id(0) * STEPS + i) * BLOCK + tl.arange(0, BLOCK)
        row, column, real = p // SIDE % SIDE + down, p % SIDE, p < pixels
        there = (column[:, None] + right[None, :] >= 0) & (column[:, None] + right[None, :] < SIDE)
        there = there & (real & (row >= 0) & (row < SIDE))[:, None] & (right < 2)[None, :]
        a = tl.load(x + (p + down * SIDE - 1)[:, None] * 32 + k[None, :], mask=there, other=0.0)
        g = tl.load(dz + p[:, None] * 32 + c[None, :], mask=real[:, None], other=0.0)
        total = tl.dot(tl.trans(a), g, total)
        if BIASED:
            of_bias += tl.sum(g.to(tl.float32), 0)
    parts += tl.program_id(0) * (9216 + 32 * BIASED)
    tl.store(parts + c[None, :] * 288 + tl.program_id(1) * 96 + k[:, None], total, mask=(right < 2)[:, None])
    if BIASED and down == 0:
        tl.store(parts + 9216 + c, of_bias)


@triton.jit
def normalise(
    z, sums, gamma, beta, shortcut, y, moments, running_mean, running_var, tracked, pixels, eps, momentum, slope,
    COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise by the batch's mean and variance; `moments` keeps the mean and 1 / deviation, the running ones move."""
    c, copy = tl.arange(0, 32), tl.arange(0, COPIES)
    mean = tl.sum(tl.load(sums + copy[:, None] * 64 + c[None, :]), 0) / pixels
    square = tl.sum(tl.load(sums + copy[:, None] * 64 + 32 + c[None, :]), 0) / pixels
    variance = tl.maximum(square - mean * mean, 0.0)
    inverse = 1 / tl.sqrt(variance + eps)
    scale = tl.load(gamma + c) * inverse
    shift = tl.load(beta + c) - mean * scale
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at, real = p[:, None] * 32 + c[None, :], (p < pixels)[:, None]
    result = tl.load(z + at, mask=real, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if shortcut is not None:
        result += tl.load(shortcut + at, mask=real, other=0.0).to(tl.float32)
    tl.store(y + at, tl.where(result > 0, result, slope * result).to(z.dtype.element_ty), mask=real)
    if tl.program_id(0) == 0:
        tl.store(moments + c, mean)
        tl.store(moments + 32 + c, inverse)
        unbiased = variance * (pixels / (pixels - 1))
        tl.store(running_mean + c, tl.load(running_mean + c) * (1 - momentum) + mean * momentum)
        tl.store(running_var + c, tl.load(running_var + c) * (1 - momentum) + unbiased * momentum)
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def _behind_activation(dy, z, y, gamma, beta, moments, at, real, c, slope):
    """The gradient of the activation's input, and the normalised values. `y` is None where they give its sign."""
    mean, inverse = tl.load(moments + c), tl.load(moments + 32 + c)
    normalised = (tl.load(z + at, mask=real, other=0.0).to(tl.float32) - mean[None, :]) * inverse[None, :]
    if y is not None:
        result = tl.load(y + at, mask=real, other=0.0).to(tl.float32)
    else:
        result = normalised * tl.load(gamma + c)[None, :] + tl.load(beta + c)[None, :]
    g = tl.load(dy + at, mask=real, other=0.0).to(tl.float32)
    return tl.where(result > 0, g, slope * g), normalised


@triton.jit
def sum_back(
    dy, z, y, gamma, beta, moments, sums, pixels, slope, COPIES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Add up what `normalise_back` needs: the gradient behind the activation, and its product with the normalised
    values, over all pixels of a channel, in COPIES copies, so that few programs meet at one."""
    p, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 32)
    at, real = p[:, None] * 32 + c[None, :], (p < pixels)[:, None]
    g, normalised = _behind_activation(dy, z, y, gamma, beta, moments, at, real, c, slope)
    sums += tl.program_id(0) % COPIES * 64
    tl.atomic_add(sums + c, tl.sum(g, 0), sem="relaxed")
    tl.atomic_add(sums + 32 + c, tl.sum(g * normalised, 0), sem="relaxed")


@triton.jit
def normalise_back(
    dy, z, y, gamma, beta, moments, sums, dz, dshortcut, dgamma, dbeta, pixels, slope,
    COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of the convolution's output, of the shortcut (unless None), and of the normalisation's weights."""
    p, c, copy = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 32), tl.arange(0, COPIES)
    at, real = p[:, None] * 32 + c[None, :], (p < pixels)[:, None]
    g, normalised = _behind_activation(dy, z, y, gamma, beta, moments, at, real, c, slope)
    first = tl.sum(tl.load(sums + copy[:, None] * 64 + c[None, :]), 0)
    second = tl.sum(tl.load(sums + copy[:, None] * 64 + 32 + c[None, :]), 0)
    scale = tl.load(gamma + c) * tl.load(moments + 32 + c)
    result = scale[None, :] * (g - (first / pixels)[None, :] - normalised * (second / pixels)[None, :])
    tl.store(dz + at, result.to(z.dtype.element_ty), mask=real)
    if dshortcut is not None:
        tl.store(dshortcut + at, g.to(z.dtype.element_ty), mask=real)
    if tl.program_id(0) == 0:
        tl.store(dbeta + c, first)
        tl.store(dgamma + c, second)
