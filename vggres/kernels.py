"""The kernels of `fused`, in Triton. Images lie in channels_last memory, pixel by pixel: a pixel is 32 numbers, and
`pixels` is how many there are in a batch."""

import triton
import triton.language as tl


@triton.jit
def convolution(
    x, w, bias, shortcut, y, sums, pixels, slope,
    SIDE: tl.constexpr, BACK: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program makes the results of BLOCK pixels; BACK: the gradient of the input from that of the results."""
    p, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 32)
    row, column, real = p // SIDE % SIDE, p % SIDE, p < pixels
    total = tl.zeros((BLOCK, 32), tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = real & (row + down >= 0) & (row + down < SIDE) & (column + right >= 0) & (column + right < SIDE)
        a = tl.load(x + (p + down * SIDE + right)[:, None] * 32 + c[None, :], mask=inside[:, None], other=0.0)
        if BACK:
            b = tl.load(w + c[:, None] * 288 + (8 - tap) * 32 + c[None, :])
        else:
            b = tl.load(w + c[None, :] * 288 + tap * 32 + c[:, None])
        total = tl.dot(a, b.to(a.dtype), total)
    if bias is not None:
        total += tl.load(bias + c)[None, :]
    if shortcut is not None:
        total += tl.load(shortcut + p[:, None] * 32 + c[None, :], mask=real[:, None], other=0.0).to(tl.float32)
    result = tl.where(total > 0, total, slope * total).to(a.dtype)
    tl.store(y + p[:, None] * 32 + c[None, :], result, mask=real[:, None])
    if sums is not None:
        seen = tl.where(real[:, None], result.to(tl.float32), 0.0)
        sums += tl.program_id(0) % COPIES * 64
        tl.atomic_add(sums + c, tl.sum(seen, 0), sem="relaxed")
        tl.atomic_add(sums + 32 + c, tl.sum(seen * seen, 0), sem="relaxed")


@triton.jit
def weight_gradient(x, dz, parts, pixels, STEPS: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program sums over STEPS blocks of pixels, for one row of the kernel."""
    c, first, down = tl.arange(0, 32), tl.program_id(0) * STEPS * BLOCK, tl.program_id(1) - 1
    left = tl.zeros((32, 32), tl.float32)
    middle, right = left, left
    for i in range(STEPS):
        p = first + i * BLOCK + tl.arange(0, BLOCK)
        row, column = p // SIDE % SIDE + down, p % SIDE
        real = p < pixels
        inside = real & (row >= 0) & (row < SIDE)
        g = tl.load(dz + p[None, :] * 32 + c[:, None], mask=real[None, :], other=0.0)
        a = x + (p + down * SIDE)[:, None] * 32 + c[None, :]
        left = tl.dot(g, tl.load(a - 32, mask=(inside & (column > 0))[:, None], other=0.0), left)
        middle = tl.dot(g, tl.load(a, mask=inside[:, None], other=0.0), middle)
        right = tl.dot(g, tl.load(a + 32, mask=(inside & (column < SIDE - 1))[:, None], other=0.0), right)
    part = parts + tl.program_id(0) * 9216 + c[:, None] * 288 + tl.program_id(1) * 96 + c[None, :]
    tl.store(part, left)
    tl.store(part + 32, middle)
    tl.store(part + 64, right)


@triton.jit
def normalise(
    z, sums, gamma, beta, shortcut, y, moments, running_mean, running_var, tracked, pixels, eps, momentum, slope,
    COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """By the batch's mean and deviation, which are kept in `moments`; the running ones are brought up to date."""
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
    """The gradient behind the activation, and the normalised values. `y` is None where they give its sign."""
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
