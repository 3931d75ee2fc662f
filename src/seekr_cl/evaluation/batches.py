"""Which prompts are answered together: of similar length, as many as a number of tokens allows."""

from collections import Counter
from collections.abc import Iterable, Sequence

BATCH_TOKENS = 8192
"""Tokens of a batch, prompts and new ones with padding; eight rows of a thousand."""
SHARED = 32
"""Fewer common tokens are not worth a pass of their own."""
_PAYS = 0.1
"""Share of all prompts' tokens that must be saved."""
_PASS = 256
"""Tokens that must be saved: a pass of its own costs as much as so many, whatever it is about."""


def token_batches(
    lengths: Sequence[int], room: int, batch_tokens: int, rows: int | None = None, places: Iterable[int] | None = None
) -> list[list[int]]:
    """Places of prompts, batch by batch, the longest first.

    A batch that does not fit into memory so fails at once and not after an hour.

    Args:
        lengths: tokens of each prompt.
        room: new tokens that each may get.
        batch_tokens: the most that rows times the longest row may come to; a row that is longer goes alone.
        rows: the most rows of a batch; ``None`` is any number.
        places: of the prompts that are wanted; by default all.
    """
    order = sorted(range(len(lengths)) if places is None else places, key=lambda place: (-lengths[place], place))
    batches: list[list[int]] = []
    for place in order:
        last = batches[-1] if batches else []
        full = rows is not None and len(last) >= rows
        # The first row of a batch is its longest.
        if not last or full or (len(last) + 1) * (lengths[last[0]] + room) > batch_tokens:
            batches.append([place])
        else:
            last.append(place)
    return batches


def shared_batches(
    prompts: Sequence[Sequence[int]], room: int, batch_tokens: int, rows: int | None = None, sharing: bool = True
) -> tuple[list[int], list[tuple[list[int], bool]]]:
    """The beginning that most prompts share, and batches as ``token_batches`` makes them, each with whether it has it.

    Args:
        prompts: token ids.
        room: new tokens that each may get.
        batch_tokens: the most tokens of a batch.
        rows: the most rows of a batch.
        sharing: whether a beginning may be shared at all.
    """
    prefix, members = common_prefix(prompts) if sharing else ([], set())
    lengths = list(map(len, prompts))
    others = [place for place in range(len(prompts)) if place not in members]
    batches = [
        (batch, bool(shared))
        for shared, places in ((True, members), (False, others))
        for batch in token_batches(lengths, room, batch_tokens, rows, places)
    ]
    return prefix, sorted(batches, key=lambda batch: -lengths[batch[0][0]])


def cut_batches(
    batches: Sequence[tuple[list[int], bool]], lengths: Sequence[int], room: int, batch_tokens: int
) -> list[tuple[list[int], bool]]:
    """Batches of ``shared_batches``, each cut into as many as fewer tokens at a time ask for."""
    return [
        (part, shared) for batch, shared in batches for part in token_batches(lengths, room, batch_tokens, places=batch)
    ]


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[list[int], set[int]]:
    """The beginning that most prompts share, where computing it once pays, and the places of the prompts that have it.

    Each of these has a token of its own behind it. Prompts that lost their beginning to the context may share another
    one, or none.
    """
    starts = Counter(tuple(prompt[:SHARED]) for prompt in prompts if len(prompt) > SHARED)
    if not starts:
        return [], set()
    start, count = starts.most_common(1)[0]
    members = {
        place for place, prompt in enumerate(prompts) if len(prompt) > SHARED and tuple(prompt[:SHARED]) == start
    }
    low, high = (extreme(prompts[place] for place in members) for extreme in (_least, _greatest))
    length = next((at for at, (one, other) in enumerate(zip(low, high)) if one != other), min(len(low), len(high)))
    length = min(length, min(len(prompts[place]) for place in members) - 1)
    if length * (count - 1) < max(_PASS, _PAYS * sum(map(len, prompts))):
        return [], set()
    return list(low[:length]), members


def _least(prompts: Iterable[Sequence[int]]) -> Sequence[int]:
    return min(prompts, key=tuple)


def _greatest(prompts: Iterable[Sequence[int]]) -> Sequence[int]:
    return max(prompts, key=tuple)
