"""The kept samples of a task, put together from what each process has made of its share."""

from collections.abc import Mapping

from seekr_cl.distributed import collectives
from seekr_cl.memory import ReplaySample
from seekr_cl.memory.sample_codec import pack, unpack


def collect_samples(kept: Mapping[int, ReplaySample], length: int) -> list[ReplaySample]:
    """All samples with their signals, in order and the same in all processes.

    Args:
        kept: this process's by place, as ``collectives.shard_indices`` gave the places.
        length: how many there are in all processes together.
    """
    if collectives.world_size() == 1:
        return [kept[place] for place in range(length)]
    places = sorted(kept)
    texts = [{"prompt": kept[place].prompt, "completion": kept[place].completion} for place in places]
    everything: dict[int, ReplaySample] = {}
    for (at, said), tensors in zip(
        collectives.all_gather_object([places, texts]),
        collectives.all_gather_tensors(pack([kept[place] for place in places])),
        strict=True,
    ):
        everything |= dict(zip(at, unpack(tensors, said), strict=True))
    return [everything[place] for place in range(length)]
