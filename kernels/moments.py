"""Triton kernels of `moments`: mean and biased variance per channel in one pass over x.

Each lane sums d = x - s and d^2 of the few values it sees, s being the first of them: since s is one of the k values,
at most log2(k) bits cancel in sum(d^2) - sum(d)^2 / k, whatever the mean. Lanes and then chunks are merged by Chan's
formula. Means are sums of two numbers, relative to `origin`, the channel's first value: where the mean is large they
are small, and where it is small beside that value nothing is lost.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._common import load, on_device, place, row, tiling


@triton.jit
def _merge(count, mean, low, m2):
    """Merge along axis 0 disjoint sets: count [R, 1], mean + low [R, C], sum of squared deviations; totals [C]."""
    total = tl.maximum(tl.sum(count, 0), 1.0)
    rough = tl.sum(count * mean, 0) / total
    deviation = mean - rough[None, :] + low
    correction = tl.sum(count * deviation, 0) / total  # undoes the rounding of `rough`
    m2 = tl.sum(m2 + count * deviation * deviation, 0) - total * correction * correction
    return rough, correction, tl.where(m2 < 0, 0.0, m2)  # a maximum would lose NaN


@triton.jit
def _chunks(
    x, noise, strength, partials, origin_stride, iterations, parts, hw, channels, stride_p, stride_c,
    NOISE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, part = place(hw, channels, BLOCK_P * iterations, BLOCK_P, BLOCK_C)
    channel_ok = (c < channels)[None, :]
    lanes = p[:, None] * stride_p + c[None, :] * stride_c + n * hw * channels
    count = tl.minimum(tl.maximum((hw - p + BLOCK_P - 1) // BLOCK_P, 0), iterations).to(tl.float32)[:, None]
    first = load(x, lanes, (p < hw)[:, None] & channel_ok)
    if NOISE:
        by_noise = row(strength, 0, c, channels)
        first_noise = load(noise, n * hw + p, p < hw)
    sum_d = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_d2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for i in range(1, iterations):
        p_ok = p + i * BLOCK_P < hw
        ok = p_ok[:, None] & channel_ok
        d = load(x, lanes + i * BLOCK_P * stride_p, ok) - first
        if NOISE:
            d += (load(noise, n * hw + p + i * BLOCK_P, p_ok) - first_noise)[:, None] * by_noise
        d = tl.where(ok, d, 0.0)
        sum_d += d
        sum_d2 += d * d
    origin = load(x, n * origin_stride + c * stride_c, c < channels)[None, :]
    lane_mean = sum_d / tl.maximum(count, 1.0)
    rough = tl.where(count > 0, first - origin, 0.0)
    if NOISE:
        rough += tl.where(count > 0, first_noise[:, None] * by_noise, 0.0)
    mean, low, m2 = _merge(count, rough, lane_mean, sum_d2 - sum_d * lane_mean)
    out = partials + part * channels + c
    tl.store(out, mean, mask=c < channels)
    tl.store(out + parts * channels, low, mask=c < channels)
    tl.store(out + 2 * parts * channels, m2, mask=c < channels)


@triton.jit
def _chan(
    x, partials, mean_out, var_out, samples, origin_stride, group_parts, parts, chunk, hw, channels, stride_c,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    blocks_c = tl.cdiv(channels, BLOCK_C)
    group = (tl.program_id(0) // blocks_c).to(tl.int64)
    c = (tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    chunks = tl.cdiv(hw, chunk)
    count = tl.zeros((BLOCK_B, 1), tl.float32)
    mean = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    low = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    m2 = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for i in range(0, group_parts, BLOCK_B):
        b = i + tl.arange(0, BLOCK_B)
        ok = (b < group_parts)[:, None] & (c < channels)[None, :]
        left = hw - (b % chunks).to(tl.int64) * chunk  # a group begins with the first chunk of a sample
        new = tl.where(b < group_parts, tl.minimum(left, chunk), 0).to(tl.float32)[:, None]
        at = (group * group_parts + b)[:, None] * channels + c[None, :]
        delta = load(partials, at, ok) - mean + (load(partials, at + parts * channels, ok) - low)
        total = count + new
        share = new / tl.maximum(total, 1.0)
        m2 += tl.where(ok, load(partials, at + 2 * parts * channels, ok) + delta * delta * count * share, 0.0)
        moved = mean + delta * share
        low += delta * share - (moved - mean)
        mean = moved
        count = total
    rough, correction, m2_all = _merge(count, mean, low, m2)
    origin = load(x, group * origin_stride + c * stride_c, c < channels)
    sum_mean = origin + rough
    part = sum_mean - origin
    lost = origin - (sum_mean - part) + (rough - part)  # in the rounding of that sum
    tl.store(mean_out + group * channels + c, sum_mean + (lost + correction), mask=c < channels)
    tl.store(var_out + group * channels + c, m2_all / (samples * hw), mask=c < channels)


@on_device
def moments(
    x: Tensor, per_sample: bool, mean: Tensor, var: Tensor, noise: Tensor | None = None,
    strength: Tensor | None = None,
) -> None:  # fmt: skip
    """mean, var [N, C] if per_sample, else [1, C], of x or of x + strength [C] * noise [N, H, W]."""
    t = tiling(x, not x.is_contiguous(), join=not per_sample, chunked=True)
    hw, channels, _, stride_c = t.sizes
    parts = t.samples * t.chunks
    origin_stride = hw * channels if per_sample else 0
    partials = mean.new_empty((3, parts, channels))
    _chunks[t.grid](
        x, noise, strength, partials, origin_stride, t.iterations, parts, *t.sizes, NOISE=noise is not None, **t.blocks
    )
    groups, block_c = mean.size(0), min(triton.next_power_of_2(channels), 16)
    _chan[(groups * triton.cdiv(channels, block_c),)](
        x, partials, mean, var, float(t.samples // groups), origin_stride, parts // groups, parts,
        t.blocks["BLOCK_P"] * t.iterations, hw, channels, stride_c, BLOCK_B=64, BLOCK_C=block_c,
    )  # fmt: skip
