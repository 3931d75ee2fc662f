"""The forward kernel: a block of rows of one pair, one pass over the keys it can see."""
# mypy: ignore-errors

import triton
import triton.language as tl

from seekr_cl.attention.kernels.tiles import (
    DENSE,
    FACTORS,
    LN2,
    LOG2E,
    MASKED,
    TOPK,
    is_kept,
    load_rows,
    score,
    visible_range,
)

# A row's kept mass comes from products summed in another order than the row's total: what is left of one after the
# other is only known to this.
ROUNDING: tl.constexpr = tl.constexpr(4.0e-6)
# The share of a teacher's tail over the student's rest beyond which that rounding matters; see ``forward_rows``.
TRUSTED: tl.constexpr = tl.constexpr(4.0)


@triton.jit
def forward_rows(
    q,
    q_b,
    q_h,
    q_l,
    k,
    k_b,
    k_h,
    k_l,
    sink,
    sample,
    head,
    query,
    weight,
    mask,
    mask_b,
    mask_h,
    mask_q,
    mask_k,
    segment,
    segment_b,
    segment_l,
    teacher,
    teacher_p,
    teacher_r,
    second,
    second_g,
    second_l,
    third,
    teacher_sink,
    lse,
    pull,
    aux,
    sink_pull,
    kl,
    rows,
    length,
    group,
    scaling,
    TEACHER: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    SEGMENT: tl.constexpr,
    SINK: tl.constexpr,
    TEACHER_SINK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Writes each row's log-normalizer, divergence, sum of pulls and, by teacher, what the backward needs of it.

    The divergence is summed relative to the running maxima, never as a difference of two log-normalizers: its rounding
    is that of its own terms.

    A top-k row's rest, the student's mass on keys that the teacher did not keep, is 1 - kept. Its error reaches value
    and gradient times tail / rest, so where that ratio is large (the student is sure of keys the teacher was less sure
    of) a second pass sums the rest itself. Such rows are marked by a negative ``aux``.

    Rows without weight get normalizers so high that they have no probabilities, and no gradient, later on.
    """
    pair = tl.program_id(1).to(tl.int64)
    # The last rows see the most keys; started first, they do not finish last.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    row = block * BM + tl.arange(0, BM)
    inside = row < rows
    at = pair * rows + row
    weights = tl.load(weight + at, mask=inside, other=0.0)
    used = weights != 0
    position = tl.load(query + at, mask=inside, other=0).to(tl.int32)
    b = tl.load(sample + pair).to(tl.int64)
    h = tl.load(head + pair).to(tl.int64)
    k += b * k_b + (h // group) * k_h
    if MASK > 0:
        mask += b * mask_b + h * mask_h
    if SEGMENT:
        segment += b * segment_b
    q_row = load_rows(q + b * q_b + h * q_h, position, q_l, inside, D, DP)
    if TEACHER == FACTORS:
        u_row = load_rows(teacher + pair * teacher_p, row, teacher_r, inside, D, DP)
        second += tl.load(third + pair).to(tl.int64) * second_g
    first, last = visible_range(position, used, length, WINDOW, MASK, BN)

    top = tl.full([BM], MASKED, tl.float32)
    total = tl.zeros([BM], tl.float32)
    teacher_top = tl.full([BM], MASKED, tl.float32)
    mass = tl.zeros([BM], tl.float32)
    cross = tl.zeros([BM], tl.float32)
    for start in range(first, last, BN):
        key = start + tl.arange(0, BN)
        k_tile = load_rows(k, key, k_l, key < length, D, DP)
        product = tl.dot(q_row, tl.trans(k_tile), input_precision="ieee")
        s, _ = score(
            product,
            position[:, None],
            key[None, :],
            length,
            scaling,
            mask,
            mask_q,
            mask_k,
            segment,
            segment_l,
            SOFTCAP,
            WINDOW,
            MASK,
            SEGMENT,
        )
        new_top = tl.maximum(top, tl.max(s, 1))
        step = new_top - top
        relative = s - new_top[:, None]
        total = total * tl.exp2(-step) + tl.sum(tl.exp2(relative), 1)
        top = new_top
        if TEACHER == DENSE:
            place = teacher + pair * teacher_p + row.to(tl.int64)[:, None] * teacher_r + key[None, :]
            T = tl.load(place, mask=inside[:, None] & (key < length)[None, :], other=0.0).to(tl.float32)
            terms = tl.where(T > 0, T * (tl.log2(tl.where(T > 0, T, 1.0)) - relative), 0.0)
            cross += mass * step + tl.sum(terms, 1)
            mass += tl.sum(T, 1)
        if TEACHER == FACTORS:
            u_tile = load_rows(second, key, second_l, key < length, D, DP)
            t, _ = score(
                tl.dot(u_row, tl.trans(u_tile), input_precision="ieee"),
                position[:, None],
                key[None, :],
                length,
                scaling,
                mask,
                mask_q,
                mask_k,
                segment,
                segment_l,
                SOFTCAP,
                WINDOW,
                MASK,
                SEGMENT,
            )
            new_teacher_top = tl.maximum(teacher_top, tl.max(t, 1))
            teacher_step = new_teacher_top - teacher_top
            shrink = tl.exp2(-teacher_step)
            teacher_relative = t - new_teacher_top[:, None]
            e = tl.exp2(teacher_relative)
            cross = shrink * (cross + mass * (step - teacher_step)) + tl.sum(e * (teacher_relative - relative), 1)
            mass = mass * shrink + tl.sum(e, 1)
            teacher_top = new_teacher_top

    total = tl.where(total > 0, total, 1.0)
    # The log-normalizer relative to the keys' maximum, which the sum of cross terms refers to.
    over = tl.log2(total)
    p_sink = tl.zeros([BM], tl.float32)
    if SINK:
        sink_score = tl.load(sink + h).to(tl.float32) * LOG2E
        peak = tl.maximum(top, sink_score)
        over = (peak - top) + tl.log2(total * tl.exp2(top - peak) + tl.exp2(sink_score - peak))
        p_sink = tl.exp2(sink_score - (top + over))
    normaliser = tl.where(used, top + over, -MASKED)
    spare = tl.zeros([BM], tl.float32)
    if TEACHER == DENSE:
        divergence = cross + mass * over
        spare = tl.maximum(1.0 - mass, 0.0)
    if TEACHER == FACTORS:
        mass = tl.where(mass > 0, mass, 1.0)
        teacher_over = tl.log2(mass)
        if TEACHER_SINK:
            score_there = tl.load(teacher_sink + pair).to(tl.float32) * LOG2E
            peak_there = tl.maximum(teacher_top, score_there)
            there = mass * tl.exp2(teacher_top - peak_there) + tl.exp2(score_there - peak_there)
            teacher_over = (peak_there - teacher_top) + tl.log2(there)
            spare = tl.exp2(score_there - (teacher_top + teacher_over))
        share = tl.exp2(tl.log2(mass) - teacher_over)
        divergence = share * (cross / mass + (over - teacher_over))
        mass = share
        tl.store(aux + at, tl.where(used, teacher_top + teacher_over, -MASKED), mask=inside)
    if TEACHER == TOPK:
        divergence = tl.zeros([BM], tl.float32)
        kept = tl.zeros([BM], tl.float32)
        prob_row = teacher + at * K
        key_row = second + at * K
        place = tl.arange(0, KP)[None, :]
        keys = tl.load(key_row[:, None] + place, mask=inside[:, None] & (place < K), other=-1).to(tl.int32)
        for i in range(K):
            key = tl.load(key_row + i, mask=inside, other=0).to(tl.int32)
            T = tl.load(prob_row + i, mask=inside, other=0.0).to(tl.float32)
            repeated = tl.sum(((keys == key[:, None]) & (place < i)).to(tl.int32), 1) > 0
            k_kept = load_rows(k, key, k_l, inside, D, DP)
            s, _ = score(
                tl.sum(q_row.to(tl.float32) * k_kept.to(tl.float32), 1),
                position,
                key,
                length,
                scaling,
                mask,
                mask_q,
                mask_k,
                segment,
                segment_l,
                SOFTCAP,
                WINDOW,
                MASK,
                SEGMENT,
            )
            kept += tl.where(repeated, 0.0, tl.exp2(s - normaliser))
            divergence += tl.where(T > 0, T * (tl.log2(tl.where(T > 0, T, 1.0)) - (s - normaliser)), 0.0)
            mass += T
        tail = tl.load(third + at, mask=inside, other=0.0).to(tl.float32)
        rest = (1.0 - p_sink) - kept
        uncertain = used & (tail > 1.0e-7) & (tail > (rest - ROUNDING) * TRUSTED)
        rest = tl.maximum(rest, ROUNDING)
        if tl.sum(uncertain.to(tl.int32), 0) > 0:
            exact = tl.zeros([BM], tl.float32)
            for start in range(first, last, BN):
                key = start + tl.arange(0, BN)
                k_tile = load_rows(k, key, k_l, key < length, D, DP)
                s, _ = score(
                    tl.dot(q_row, tl.trans(k_tile), input_precision="ieee"),
                    position[:, None],
                    key[None, :],
                    length,
                    scaling,
                    mask,
                    mask_q,
                    mask_k,
                    segment,
                    segment_l,
                    SOFTCAP,
                    WINDOW,
                    MASK,
                    SEGMENT,
                )
                out = is_kept(second, at, inside, key[None, :], K)
                exact += tl.sum(tl.where(out, 0.0, tl.exp2(s - normaliser[:, None])), 1)
            rest = tl.where(uncertain, exact, rest)
        # A teacher's tail that this row has no keys for is rounding, not mass.
        tail = tl.where(rest > 0, tail, 0.0)
        positive = tl.where(tail > 0, tail, 1.0)
        log_rest = tl.log2(tl.where(rest > 0, rest, 1.0))
        divergence += tl.where(tail > 0, tail * (tl.log2(positive) - log_rest), 0.0)
        mass += tail
        spare = tl.maximum(1.0 - mass, 0.0)
        spread = tl.where(rest > 0, tail / tl.where(rest > 0, rest, 1.0), 0.0)
        tl.store(aux + at, tl.where(uncertain, -spread, spread), mask=inside)
    if SINK:
        log_spare = tl.log2(tl.where(spare > 0, spare, 1.0))
        divergence += tl.where(spare > 0, spare * (log_spare - (sink_score - normaliser)), 0.0)
        mass += spare
        tl.store(sink_pull + at, tl.where(used, p_sink * mass - spare, 0.0), mask=inside)
    tl.store(lse + at, normaliser, mask=inside)
    tl.store(pull + at, mass, mask=inside)
    tl.store(kl + at, tl.where(used, divergence * LN2, 0.0), mask=inside)
