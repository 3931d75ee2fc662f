"""What the forward and backward kernels do alike with one tile: load rows, turn products into masked scores.

Scores are in units of log 2, so that ``exp2`` and ``log2``, which the hardware has, are exact inverses of each other.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

DENSE: tl.constexpr = tl.constexpr(0)
TOPK: tl.constexpr = tl.constexpr(1)
FACTORS: tl.constexpr = tl.constexpr(2)

CAUSAL: tl.constexpr = tl.constexpr(0)
KEYS: tl.constexpr = tl.constexpr(1)
ALLOWED: tl.constexpr = tl.constexpr(2)
ADDED: tl.constexpr = tl.constexpr(3)

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Finite, so that a row with nothing to see has finite numbers: 0 * nan would reach the sum.
MASKED: tl.constexpr = tl.constexpr(-1.0e30)


@triton.jit
def tanh(x):
    """The hyperbolic tangent, to a relative precision: 1 - 2 / (e^2x + 1) alone loses small arguments."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    near = x * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def load_rows(base, row, stride, inside, D: tl.constexpr, DP: tl.constexpr):
    """Vectors of D numbers at the given rows, padded with zeros to DP."""
    d = tl.arange(0, DP)[None, :]
    return tl.load(base + row.to(tl.int64)[:, None] * stride + d, mask=inside[:, None] & (d < D), other=0.0)


@triton.jit
def visible_range(query, used, length, WINDOW: tl.constexpr, MASK: tl.constexpr, BN: tl.constexpr):
    """First and last key (exclusive) that any used query of a block can see."""
    last = tl.max(tl.where(used, query, -1), 0) + 1
    first = 0
    if MASK <= KEYS:
        if WINDOW > 0:
            first = tl.maximum(tl.min(tl.where(used, query, length), 0) - WINDOW + 1, 0) // BN * BN
    else:
        last = tl.where(last > 0, length, 0)
    return first, tl.minimum(last, length)


@triton.jit
def score(
    product,
    query,
    key,
    length,
    scaling,
    mask,
    mask_q,
    mask_k,
    segment,
    segment_l,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Masked scores of products q.k at positions ``query`` and ``key``, and the soft-cap's slope there.

    The positions broadcast against the product; ``mask`` and ``segment`` point at the sample (and head).
    """
    s = product * (scaling * LOG2E)
    slope = s
    if SOFTCAP > 0:
        capped = tanh(product * (scaling / SOFTCAP))
        slope = 1.0 - capped * capped
        s = capped * (SOFTCAP * LOG2E)
    seen = (key < length) & (query >= 0)
    if MASK <= KEYS:
        if MASK == KEYS:
            real = tl.load(mask + key.to(tl.int64) * mask_k, mask=key < length, other=0) != 0
            seen = seen & real
        seen = seen & (key <= query)
        if WINDOW > 0:
            seen = seen & (key > query - WINDOW)
    else:
        place = mask + query.to(tl.int64) * mask_q + key.to(tl.int64) * mask_k
        if MASK == ALLOWED:
            seen = seen & (tl.load(place, mask=seen, other=0) != 0)
        else:
            # Bounded above MASKED: a key that a number excludes still comes before a place that is no key.
            added = tl.maximum(tl.load(place, mask=seen, other=0).to(tl.float32), 0.25 * MASKED)
            s += added * LOG2E
    if SEGMENT:
        mine = tl.load(segment + query.to(tl.int64) * segment_l)
        theirs = tl.load(segment + key.to(tl.int64) * segment_l, mask=key < length, other=-1)
        seen = seen & (mine == theirs)
    return tl.where(seen, s, MASKED), slope


@triton.jit
def is_kept(kept_key, row, inside, key, K: tl.constexpr):
    """Which of the keys [1, BN] each row [BM] keeps: [BM, BN]."""
    found = (row[:, None] < 0) & (key < 0)
    for place in range(K):
        mine = tl.load(kept_key + row * K + place, mask=inside, other=-1).to(tl.int32)
        found = found | (mine[:, None] == key)
    return found
