"""Budgets in bytes: what a sample takes, and which samples go when a memory is full."""

import re
from collections.abc import Sequence

from seekr_cl.errors import ConfigError
from seekr_cl.memory import sample_codec as records
from seekr_cl.memory import shard
from seekr_cl.memory.samples import ReplaySample

_UNITS = {"": 1, "b": 1, **{f"{prefix}b": 1000**n for n, prefix in enumerate("kmgt", 1)}}
_UNITS |= {f"{prefix}ib": 1024**n for n, prefix in enumerate("kmgt", 1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(name: str, value: int | str) -> int:
    """A size in bytes from a number or from text such as ``500MB`` (millions) or ``1.5GiB`` (powers of 1024).

    Args:
        name: the config key, for messages.
        value: what was given.

    Raises:
        ConfigError: if it is no size or not above zero.
    """
    found = _SIZE.fullmatch(str(value))
    factor = _UNITS.get(found[2].lower()) if found else None
    if found is None or factor is None or isinstance(value, bool):
        raise ConfigError(f"{name}: {value!r} is not a size; write bytes as a number, or 500MB, 2GB, 1.5GiB")
    size = int(float(found[1]) * factor) if "." in found[1] else int(found[1]) * factor
    if size < 1:
        raise ConfigError(f"{name}: {value!r} leaves no room at all; replay.samples=0 keeps nothing")
    return size


def task_bytes(samples: Sequence[ReplaySample]) -> tuple[int, list[int]]:
    """What a task's samples take in its files.

    Returns:
        bytes of the header, and of each sample: its tensors, its rows in the tables, its line of text.
    """
    if not samples:
        return 0, []
    kinds, sizes = set(), []
    for sample in samples:
        record = records.encode(sample)
        kinds.add(record.kind)
        sizes.append(len(record.content) + len(shard.text_line(sample)))
    # Rows of the tables are as long as the widest kind needs.
    table = max(map(shard.table_bytes, kinds))
    return shard.header_bytes(kinds), [size + table for size in sizes]


def shrink(
    sizes: Sequence[Sequence[int]], max_bytes: int, order: Sequence[Sequence[int] | None] | None = None
) -> dict[int, list[int]]:
    """Which samples stay, so that all together take at most ``max_bytes`` and tasks are left with equally many.

    The number of samples a task may keep is lowered for all tasks at once, to the highest number that fits; tasks
    with fewer keep all they have. Then the tasks in turn, oldest first, keep one more where that still fits. Of a
    task, those go first that stand last in its order.

    Args:
        sizes: for each task, oldest first, the bytes of its samples.
        max_bytes: the budget.
        order: for each task its samples' positions from the one to keep longest; ``None`` is as they stand, the
            earliest chosen first.

    Returns:
        ``{task position: sorted positions of the samples that stay}`` for every task.

    Raises:
        ConfigError: if not even one sample of each task fits, naming what that would take.
    """
    ranks = [
        list(range(len(task))) if order is None or order[number] is None else list(order[number] or ())
        for number, task in enumerate(sizes)
    ]
    least = sum(task[rank[0]] for task, rank in zip(sizes, ranks) if rank)
    if least > max_bytes:
        raise ConfigError(
            f"memory.max_bytes: one sample of each of {sum(map(bool, ranks))} tasks takes {least} bytes, more than "
            f"{max_bytes}; allow at least {least}, or store less of each (method.head_budget, signal_dtype)"
        )

    def taken(level: int) -> int:
        return sum(task[position] for task, rank in zip(sizes, ranks) for position in rank[:level])

    level, above = 1, max((len(rank) for rank in ranks), default=0) + 1
    while above - level > 1:
        middle = (level + above) // 2
        level, above = (middle, above) if taken(middle) <= max_bytes else (level, middle)
    kept, left = [rank[:level] for rank in ranks], max_bytes - taken(level)
    for number, (task, rank) in enumerate(zip(sizes, ranks)):
        if len(rank) > level and task[rank[level]] <= left:
            kept[number].append(rank[level])
            left -= task[rank[level]]
    return {number: sorted(positions) for number, positions in enumerate(kept)}
