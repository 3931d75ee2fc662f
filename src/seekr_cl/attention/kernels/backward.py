"""The backward kernels: gradients of the rows' queries, of the keys, and the sum of rows that share a query."""
# mypy: ignore-errors

import triton
import triton.language as tl

from seekr_cl.attention.kernels.tiles import DENSE, FACTORS, TOPK, is_kept, load_rows, score, visible_range


@triton.jit
def backward_queries(
    q,
    q_b,
    q_h,
    q_l,
    k,
    k_b,
    k_h,
    k_l,
    sample,
    head,
    query,
    weight,
    unit,
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
    lse,
    pull,
    aux,
    delta,
    dq,
    first_pair,
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
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Writes the gradient of each row's query to ``dq`` [pairs of this launch, R, D], in float32.

    With scores s the gradient is p times the row's sum of pulls minus the pulls. A top-k teacher pulls every key it
    did not keep by p times one number of the row, so that all keys get p times a number, and the kept ones a
    correction. The corrections, ``delta`` [P, R, K], are left for ``backward_keys``.
    """
    local = tl.program_id(1).to(tl.int64)
    pair = first_pair + local
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
    normaliser = tl.load(lse + at, mask=inside, other=0.0)
    pulls = tl.load(pull + at, mask=inside, other=0.0)
    if TEACHER != DENSE:
        extra = tl.load(aux + at, mask=inside, other=0.0)
    factor = pulls
    if TEACHER == TOPK:
        summed = extra < 0
        some_summed = tl.sum(summed.to(tl.int32), 0) > 0
        factor = pulls - tl.abs(extra)
    first, last = visible_range(position, used, length, WINDOW, MASK, BN)

    gradient = tl.zeros([BM, DP], tl.float32)
    for start in range(first, last, BN):
        key = start + tl.arange(0, BN)
        k_tile = load_rows(k, key, k_l, key < length, D, DP)
        s, slope = score(
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
        ds = tl.exp2(s - normaliser[:, None]) * factor[:, None]
        if TEACHER == DENSE:
            place = teacher + pair * teacher_p + row.to(tl.int64)[:, None] * teacher_r + key[None, :]
            ds -= tl.load(place, mask=inside[:, None] & (key < length)[None, :], other=0.0).to(tl.float32)
        if TEACHER == TOPK:  # noqa: SIM102 (this one is decided by the compiler)
            if some_summed:
                out = is_kept(second, at, inside, key[None, :], K)
                ds = tl.where(out & summed[:, None], 0.0, ds)
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
            ds -= tl.exp2(t - extra[:, None])
        if SOFTCAP > 0:
            ds *= slope
        gradient = tl.dot(ds.to(k_tile.dtype), k_tile, gradient, input_precision="ieee")

    if TEACHER == TOPK:
        prob_row = teacher + at * K
        key_row = second + at * K
        place = tl.arange(0, KP)[None, :]
        keys = tl.load(key_row[:, None] + place, mask=inside[:, None] & (place < K), other=-1).to(tl.int32)
        kept_factor = tl.where(summed, pulls, tl.abs(extra))
        for i in range(K):
            key = tl.load(key_row + i, mask=inside, other=0).to(tl.int32)
            T = tl.load(prob_row + i, mask=inside, other=0.0).to(tl.float32)
            repeated = tl.sum(((keys == key[:, None]) & (place < i)).to(tl.int32), 1) > 0
            k_kept = load_rows(k, key, k_l, inside, D, DP).to(tl.float32)
            s, slope = score(
                tl.sum(q_row.to(tl.float32) * k_kept, 1),
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
            ds = tl.where(repeated, 0.0, tl.exp2(s - normaliser) * kept_factor) - T
            if SOFTCAP > 0:
                ds *= slope
            ds = tl.where(used, ds, 0.0)
            tl.store(delta + at * K + i, ds, mask=inside)
            gradient += ds[:, None] * k_kept

    gradient *= (tl.where(used, weights, 0.0) * tl.load(unit) * scaling)[:, None]
    gradient = tl.where(used[:, None], gradient, 0.0)
    d = tl.arange(0, DP)[None, :]
    place = dq + (local * rows + row)[:, None] * D + d
    tl.store(place, gradient, mask=inside[:, None] & (d < D))


@triton.jit
def sum_queries(dq, target, source, part, count, targets, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr):
    """Adds the rows ``part[source]`` to ``dq[target]``; targets are sorted, those at or beyond ``targets`` are left.

    One program has all rows of one target and adds them in their order, so that the sum repeats itself.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    to = tl.load(target + i, mask=i < count, other=-1)
    before = tl.load(target + i - 1, mask=(i > 0) & (i < count), other=-1)
    active = ((to != before) & (to >= 0) & (to < targets)).to(tl.int32)
    d = tl.arange(0, DP)[None, :]
    place = dq + to[:, None] * D + d
    writes = (active[:, None] > 0) & (d < D)
    total = tl.load(place, mask=writes, other=0.0).to(tl.float32)
    step = 0
    while tl.sum(active, 0) > 0:
        row = tl.load(source + i + step, mask=active > 0, other=0)
        total += load_rows(part, row, D, active > 0, D, DP)
        step += 1
        following = tl.load(target + i + step, mask=(active > 0) & (i + step < count), other=-1)
        active = active * (following == to).to(tl.int32)
    tl.store(place, total.to(dq.dtype.element_ty), mask=writes)


@triton.jit
def backward_keys(
    q,
    q_b,
    q_h,
    q_l,
    k,
    k_b,
    k_h,
    k_l,
    sample,
    head,
    query,
    weight,
    unit,
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
    lse,
    pull,
    aux,
    delta,
    dk,
    pair_order,
    pair_start,
    block_span,
    kept_order,
    kept_start,
    rows,
    length,
    kv_heads,
    scaling,
    TEACHER: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    MASK: tl.constexpr,
    SEGMENT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Writes the gradient of a block of keys of one (sample, key/value head): one program sees all rows, in order.

    Args (those that the other kernels lack):
        pair_order, pair_start: pairs sorted by (sample, key/value head), and where each one's begin.
        block_span: [P, key blocks, 2], the blocks of rows that may see a block of keys.
        kept_order, kept_start: entries [P, R K] sorted by key, and where each block's begin, [P, key blocks + 1].
    """
    blocks = tl.num_programs(0)
    block = tl.program_id(0)
    g = tl.program_id(1).to(tl.int64)
    key = block * BN + tl.arange(0, BN)
    k_tile = load_rows(k + (g // kv_heads) * k_b + (g % kv_heads) * k_h, key, k_l, key < length, D, DP)
    gradient = tl.zeros([BN, DP], tl.float32)
    for i in range(tl.load(pair_start + g), tl.load(pair_start + g + 1)):
        pair = tl.load(pair_order + i).to(tl.int64)
        b = tl.load(sample + pair).to(tl.int64)
        h = tl.load(head + pair).to(tl.int64)
        q_base = q + b * q_b + h * q_h
        mask_base = mask
        segment_base = segment
        if MASK > 0:
            mask_base = mask + b * mask_b + h * mask_h
        if SEGMENT:
            segment_base = segment + b * segment_b
        if TEACHER == FACTORS:
            u_base = second + tl.load(third + pair).to(tl.int64) * second_g
            u_tile = load_rows(u_base, key, second_l, key < length, D, DP)
        span = block_span + (pair * blocks + block) * 2
        for start in range(tl.load(span) * BM, tl.load(span + 1) * BM, BM):
            row = start + tl.arange(0, BM)
            inside = row < rows
            at = pair * rows + row
            weights = tl.load(weight + at, mask=inside, other=0.0)
            position = tl.load(query + at, mask=inside, other=0).to(tl.int32)
            q_row = load_rows(q_base, position, q_l, inside, D, DP)
            normaliser = tl.load(lse + at, mask=inside, other=0.0)
            factor = tl.load(pull + at, mask=inside, other=0.0)
            s, slope = score(
                tl.dot(k_tile, tl.trans(q_row), input_precision="ieee"),
                position[None, :],
                key[:, None],
                length,
                scaling,
                mask_base,
                mask_q,
                mask_k,
                segment_base,
                segment_l,
                SOFTCAP,
                WINDOW,
                MASK,
                SEGMENT,
            )
            p = tl.exp2(s - normaliser[None, :])
            if TEACHER == DENSE:
                place = teacher + pair * teacher_p + row.to(tl.int64)[None, :] * teacher_r + key[:, None]
                T = tl.load(place, mask=inside[None, :] & (key < length)[:, None], other=0.0).to(tl.float32)
                ds = p * factor[None, :] - T
            if TEACHER == TOPK:
                extra = tl.load(aux + at, mask=inside, other=0.0)
                summed = extra < 0
                ds = p * (factor - tl.abs(extra))[None, :]
                if tl.sum(summed.to(tl.int32), 0) > 0:
                    out = is_kept(second, at, inside, key[None, :], K)
                    ds = tl.where(tl.trans(out & summed[:, None]), 0.0, ds)
            if TEACHER == FACTORS:
                extra = tl.load(aux + at, mask=inside, other=0.0)
                u_row = load_rows(teacher + pair * teacher_p, row, teacher_r, inside, D, DP)
                t, _ = score(
                    tl.dot(u_tile, tl.trans(u_row), input_precision="ieee"),
                    position[None, :],
                    key[:, None],
                    length,
                    scaling,
                    mask_base,
                    mask_q,
                    mask_k,
                    segment_base,
                    segment_l,
                    SOFTCAP,
                    WINDOW,
                    MASK,
                    SEGMENT,
                )
                ds = p * factor[None, :] - tl.exp2(t - extra[None, :])
            if SOFTCAP > 0:
                ds *= slope
            ds = tl.where((weights != 0)[None, :], ds * weights[None, :], 0.0)
            gradient = tl.dot(ds.to(q_row.dtype), q_row, gradient, input_precision="ieee")
        if TEACHER == TOPK:
            kept_span = kept_start + pair * (blocks + 1) + block
            until = tl.load(kept_span + 1)
            for start in range(tl.load(kept_span), until, BM):
                here = start + tl.arange(0, BM)
                inside = here < until
                entry = tl.load(kept_order + pair * rows * K + here, mask=inside, other=0)
                at = pair * rows + entry // K
                kept_key = tl.load(second + pair * rows * K + entry, mask=inside, other=-1).to(tl.int32)
                weights = tl.load(weight + at, mask=inside, other=0.0)
                ds = tl.load(delta + pair * rows * K + entry, mask=inside, other=0.0) * weights
                position = tl.load(query + at, mask=inside, other=0)
                q_row = load_rows(q_base, position, q_l, inside, D, DP)
                spread = tl.where(kept_key[None, :] == key[:, None], ds[None, :], 0.0)
                gradient = tl.dot(spread.to(q_row.dtype), q_row, gradient, input_precision="ieee")
    gradient *= tl.load(unit) * scaling
    d = tl.arange(0, DP)[None, :]
    place = dk + (g * length + key.to(tl.int64))[:, None] * D + d
    tl.store(place, gradient.to(dk.dtype.element_ty), mask=(key < length)[:, None] & (d < D))
