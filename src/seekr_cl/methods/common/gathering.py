"""The kept samples of a task, put together from what each process has made of its share."""

from collections.abc import Mapping

from seekr_cl import ranks
from seekr_cl.memory import ReplaySample
from seekr_cl.memory.sample_codec import pack, unpack


def collect_samples(kept: Mapping[int, ReplaySample], length: int) -> list[ReplaySample]:
    """All samples with their signals, in order and the same in all processes.

    Args:
        kept: this process's by place, as ``ranks.turns`` gave the places.
        length: how many there are in all processes together.
    """
    if ranks.count() == 1:
        return [kept[place] for place in range(length)]
    places = sorted(kept)
    texts = [{"prompt": kept[place].prompt, "completion": kept[place].completion} for place in places]
    everything: dict[int, ReplaySample] = {}
    for (at, said), tensors in zip(
        ranks.of_all([places, texts]), ranks.tensors_of_all(pack([kept[place] for place in places])), strict=True
    ):
        everything |= dict(zip(at, unpack(tensors, said), strict=True))
    return [everything[place] for place in range(length)]
