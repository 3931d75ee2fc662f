"""Batches of examples of similar length: every example once an epoch, no place in the order due to its length."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import config_for, reverse_task, teach

from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory, TaskSamples
from seekr_cl.replay.replay_config import ReplayConfig
from seekr_cl.replay.schedule import MicroBatch, build_schedule, review_rounds

LENGTHS = torch.randint(5, 500, (203,), generator=torch.Generator().manual_seed(1)).tolist()


def schedule(count: int = 203, seed: int = 7, **more: Any) -> list[MicroBatch]:
    given: dict[str, Any] = {"batch_size": 8, "epochs_of": [2.0] * count, "lengths": LENGTHS[:count], "num_replay": 0}
    return build_schedule(**given | {"replay_batch_size": 8, "cadence": ReplayConfig(every=2), "seed": seed} | more)


def spread(batches: list[tuple[int, ...]]) -> float:
    """Places in a batch, padding among them, for each real token."""
    padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
    return padded / sum(LENGTHS[index] for batch in batches for index in batch)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 203])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_example_once_in_every_epoch(count: int, accumulation: int) -> None:
    batches = [micro.new for micro in schedule(count, accumulation=accumulation)]
    per_epoch = len(batches) // 2
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert [len(batch) for batch in epoch[:-1]] == [8] * (per_epoch - 1)
        assert sorted(sum(epoch, ())) == list(range(count))


def test_batches_hold_little_padding_and_are_others_in_every_epoch() -> None:
    batches = [micro.new for micro in schedule()]
    assert spread(batches) < 1.2 < 1.7 < spread([micro.new for micro in schedule(lengths=None)])
    together = [{pair for batch in half for pair in pairwise(batch)} for half in (batches[:26], batches[26:])]
    assert len(together[0] & together[1]) < 60


def test_order_and_short_last_batch_do_not_depend_on_lengths() -> None:
    """Over seeds, the mean length at each place of the order is the mean of all, that of the short batch too."""
    firsts, lasts, early = [], [], []
    for seed in range(400):
        batches = [micro.new for micro in schedule(60, seed=seed, epochs_of=[1.0] * 60)]
        means = [sum(LENGTHS[index] for index in batch) / len(batch) for batch in batches]
        firsts.append(means[0])
        lasts.append(means[-1])
        early.append(sum(means[:3]) / 3)
    expected, deviation = torch.tensor(LENGTHS[:60]).double().mean(), torch.tensor(LENGTHS[:60]).double().std()
    for found, error in ((firsts, deviation / 20), (lasts, deviation / 2 / 20), (early, deviation / 20)):
        assert abs(torch.tensor(found).double().mean() - expected) < 4 * error


def test_the_order_is_made_from_seed_and_lengths_alone() -> None:
    torch.manual_seed(1)
    one = schedule(num_replay=30, replay_lengths=LENGTHS[:30])
    torch.manual_seed(2)
    assert one == schedule(num_replay=30, replay_lengths=LENGTHS[:30])
    assert one != schedule(num_replay=30, replay_lengths=LENGTHS[:30], seed=8)


def test_small_batches_of_a_step_hold_what_a_large_one_holds() -> None:
    small = [micro.new for micro in schedule(batch_size=4, accumulation=4)]
    large = [micro.new for micro in schedule(batch_size=16)]
    epochs = (small[:51], small[51:])
    steps = [sum(epoch[start : start + 4], ()) for epoch in epochs for start in range(0, 51, 4)]
    assert [sorted(step) for step in steps] == [sorted(batch) for batch in large]
    assert spread(small) < spread(large)


def test_replay_is_grouped_round_by_round() -> None:
    lengths = LENGTHS[:50]
    batches = [m.replay for m in schedule(num_replay=50, replay_lengths=lengths) if m.replay]
    assert spread(batches) < 1.35 < spread([m.replay for m in schedule(num_replay=50) if m.replay])
    assert Counter(index for batch in batches[:21] for index in batch) == dict.fromkeys(range(50), 3)
    rounds = review_rounds(num_replay=50, replay_batch_size=8, seed=7, replay_lengths=lengths)
    assert [micro.replay for micro in next(rounds)] == batches[:7]


def test_samples_that_come_several_times_do_not_meet_themselves() -> None:
    weights = [30.0] + [1.0] * 19
    given: dict[str, Any] = {"num_replay": 20, "replay_weights": weights, "replay_batch_size": 4}
    batches = [micro.replay for micro in schedule(**given, replay_lengths=LENGTHS[:20]) if micro.replay]
    assert batches == [micro.replay for micro in schedule(**given) if micro.replay]


def test_lengths_of_samples_are_known_without_reading_them(base: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, [reverse_task(count=12)], config_for("replay", tmp_path))
    tasks = ReplayMemory.open(tmp_path / "memory").tasks
    in_memory = [type(task)(task.name, list(task.samples)) for task in tasks]
    both = TaskSamples([*tasks, *in_memory])
    assert both.lengths() == [len(sample.ids_L) for _, sample in both]
    assert len(set(both.lengths())) > 1


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_published_presets_mix_lengths(preset: str, tmp_path: Path) -> None:
    assert config_for("seqft", tmp_path).group_by_length
    assert not config_for("seqft", tmp_path, preset=preset).group_by_length
    assert not config_for("seqft", tmp_path, order="official").group_by_length
    with pytest.raises(ConfigError, match="group_by_length: order: official"):
        config_for("seqft", tmp_path, order="official", group_by_length=True)
