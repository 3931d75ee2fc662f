"""When old samples come back among new ones: exact counts, exact patterns."""

from collections import Counter
from typing import Any

import pytest

from seekr_cl.errors import ConfigError
from seekr_cl.replay.replay_config import ReplayConfig
from seekr_cl.replay.schedule import MicroBatch, build_schedule


def schedule(
    new: int, replay: int = 0, epochs: float = 1, batch: int = 1, replay_batch: int = 1, seed: int = 7, **more: Any
) -> list[MicroBatch]:
    cadence = ReplayConfig(**{key: more.pop(key) for key in ("every", "share", "cadence") if key in more})
    return build_schedule(
        epochs_of=[epochs] * new, num_replay=replay, batch_size=batch, replay_batch_size=replay_batch,
        cadence=cadence, seed=seed, **more,
    )  # fmt: skip


def pattern(batches: list[MicroBatch]) -> str:
    """n for a new batch, R for a replay batch, J for a joint one."""
    return "".join("J" if micro.new and micro.replay else "n" if micro.new else "R" for micro in batches)


def numbered(batches: list[MicroBatch]) -> str:
    """n for a new batch, R and its first sample for a replay batch."""
    return "".join("n" if micro.new else f"R{micro.replay[0]}" for micro in batches)


def seen(batches: list[MicroBatch], kind: str = "new") -> Counter[int]:
    return Counter(index for micro in batches for index in getattr(micro, kind))


CADENCES: list[dict[str, Any]] = [
    {},
    {"every": 1},
    {"every": 3},
    {"share": 0.25},
    {"share": 0.9},
    {"cadence": "official"},
]


@pytest.mark.parametrize("cadence", CADENCES)
@pytest.mark.parametrize("joint", [False, True])
def test_every_new_example_once_in_every_epoch(cadence: dict[str, Any], joint: bool) -> None:
    joint = joint and "cadence" not in cadence  # the official cadence has steps of its own for replay
    batches = schedule(11, 5, epochs=3, batch=4, replay_batch=2, joint=joint, **cadence)
    assert seen(batches) == dict.fromkeys(range(11), 3)
    new = [micro.new for micro in batches if micro.new]
    assert [len(indices) for indices in new] == [4, 4, 3] * 3
    for epoch in range(3):
        assert sorted(sum(new[3 * epoch : 3 * epoch + 3], ())) == list(range(11))
    assert new[:3] != new[3:6]


@pytest.mark.parametrize(
    ("new", "epochs", "cadence", "expected"),
    [
        (6, 1, {"every": 1}, "nRnRnRnRnRnR"),
        (6, 1, {"every": 2}, "nnRnnRnnR"),
        (5, 2, {"every": 2}, "nnRnnRn" + "nRnnRnnR"),  # ten new batches: the count goes on over the border
        (2, 3, {"every": 3}, "nnnRnnnR"),
        (6, 1, {"share": 0.25}, "nnnRnnnR"),
        (4, 1, {"share": 0.5}, "nRnRnRnR"),
        (3, 1, {"share": 0.75}, "nRRRnRRRnRRR"),
        (3, 2, {"share": 0.4}, "nnRnRnnRnR"),  # 2/3 of a replay batch for each new one
        (8, 1, {}, "nnRnnRnnRnnR"),  # four replay batches to eight new ones
        (12, 1, {}, "nnnRnnnRnnnRnnnR"),
        (2, 2, {}, "nRRnRRnRRnRR"),  # more old than new: each old one still once an epoch
        (3, 3, {}, "nRnRnRRnRnRnRRnRnRnRR"),
        (9, 1, {"every": 10}, "n" * 9),
    ],
)
def test_the_cadence_by_hand(new: int, epochs: int, cadence: dict[str, Any], expected: str) -> None:
    assert pattern(schedule(new, 4, epochs, **cadence)) == expected


@pytest.mark.parametrize("new", [1, 7, 40])
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_counts_over_all_epochs_together(new: int, epochs: int) -> None:
    total = new * epochs
    assert pattern(schedule(new, 3, epochs, every=3)).count("R") == total // 3
    assert pattern(schedule(new, 3, epochs, share=0.25)).count("R") == total // 3
    assert pattern(schedule(new, 3, epochs, share=0.9)).count("R") == 9 * total
    by_volume = schedule(new, 3, epochs)
    assert seen(by_volume, "replay") == dict.fromkeys(range(3), epochs)
    assert pattern(schedule(new, 0, epochs, every=1)) == "n" * total


def test_replay_goes_round_evenly_and_anew() -> None:
    batches = schedule(40, 6, replay_batch=4, every=1)
    replays = [micro.replay for micro in batches if micro.replay]
    assert [len(indices) for indices in replays] == [4, 2] * 20
    rounds = [sum(replays[i : i + 2], ()) for i in range(0, 40, 2)]
    assert all(sorted(one) == list(range(6)) for one in rounds)
    assert len(set(rounds)) > 10


# Quirk 6 of the official code, with batches of one: replay comes before the last new batch of its cycle.
@pytest.mark.parametrize(
    ("new", "replay", "expected"),
    [
        (3, 4, "nnn"),
        (10, 4, "nRn" * 5),
        (10, 3, "nnRn" * 3 + "n"),
        (11, 4, "nRn" * 5 + "n"),
        (11, 3, "nnRn" * 3 + "nn"),
        (11, 6, "Rn" * 11),
        (8, 2, "nnnRn" * 2),
        (13, 3, "nnnRn" * 3 + "n"),
    ],
)
def test_the_official_patterns(new: int, replay: int, expected: str) -> None:
    once = schedule(new, replay, cadence="official", reshuffle=False)
    assert pattern(once) == expected
    twice = schedule(new, replay, epochs=2, cadence="official", reshuffle=False)
    assert pattern(twice) == expected * 2  # the counter restarts
    assert [m.new for m in twice if m.new][:new] == [m.new for m in twice if m.new][new:]  # and the order is the same


def test_the_official_run_end_to_end() -> None:
    """Tasks B and C of the official run: 24 examples with 4 kept before, two epochs; 37 with 7 kept before."""
    second = schedule(24, 4, epochs=2, batch=3, replay_batch=3, cadence="official", reshuffle=False, seed=0)
    assert pattern(second) == "nnnRnnnnRn" * 2
    third = schedule(37, 7, batch=3, replay_batch=3, cadence="official", reshuffle=False, seed=0)
    assert pattern(third) == "nnnRnnnnRnnnnRnn"
    order = [micro.replay for micro in second if micro.replay]
    assert order[:2] == order[2:]
    assert [len(indices) for indices in order] == [3, 1, 3, 1]


def test_official_replay_wraps_in_one_order() -> None:
    batches = schedule(10, 4, cadence="official", reshuffle=False)
    order = [micro.replay[0] for micro in batches if micro.replay]
    assert len(set(order[:4])) == 4
    assert order[4] == order[0]
    assert numbered(batches).count(f"R{order[0]}") == 2


@pytest.mark.parametrize("cadence", [{}, {"every": 2}, {"share": 0.25}])
def test_joint_steps_hold_what_separate_ones_would(cadence: dict[str, Any]) -> None:
    apart, joint = (schedule(9, 5, epochs=2, batch=2, replay_batch=2, joint=j, **cadence) for j in (False, True))
    assert [micro.new for micro in joint] == [micro.new for micro in apart if micro.new]
    assert sum((m.replay for m in joint), ()) == sum((m.replay for m in apart), ())
    assert "R" not in pattern(joint)
    assert "J" in pattern(joint)
    assert "n" * len(joint) == pattern(schedule(9, 0, epochs=2, batch=2, joint=True))


def test_a_joint_step_may_hold_several_replay_batches() -> None:
    joint = schedule(2, 6, share=0.75, joint=True)
    assert [len(micro.replay) for micro in joint] == [3, 3]


@pytest.mark.parametrize(("epochs", "expected"), [(0.5, 5), (1.5, 15), (2.3, 23), (0.01, 1), (2.0, 20)])
def test_a_fraction_of_an_epoch(epochs: float, expected: int) -> None:
    batches = schedule(10, 0, epochs, batch=3)
    counts = seen(batches)
    assert sum(counts.values()) == expected
    assert max(counts.values()) - min(counts.get(index, 0) for index in range(10)) <= 1


def test_examples_with_epochs_of_their_own() -> None:
    epochs_of = [1.0] * 4 + [3.0] * 3
    batches = build_schedule(
        epochs_of=epochs_of, num_replay=0, batch_size=2, replay_batch_size=1, cadence=ReplayConfig(), seed=0
    )
    assert seen(batches) == {index: int(epochs) for index, epochs in enumerate(epochs_of)}
    mixed = build_schedule(
        epochs_of=[0.5] * 4 + [1.5] * 6, num_replay=0, batch_size=2, replay_batch_size=1, cadence=ReplayConfig(), seed=0
    )
    assert sum(count for index, count in seen(mixed).items() if index < 4) == 2
    assert sum(count for index, count in seen(mixed).items() if index >= 4) == 9


def test_the_order_is_made_from_the_seed_alone() -> None:
    settings: dict[str, Any] = {"new": 20, "replay": 6, "epochs": 2, "batch": 4, "replay_batch": 4}
    assert schedule(**settings) == schedule(**settings)
    assert schedule(**settings) != schedule(**settings, seed=8)
    assert schedule(**settings) != schedule(**settings, reshuffle=False)


def test_no_examples_give_no_batches() -> None:
    assert schedule(0, 3) == []


@pytest.mark.parametrize(
    ("cadence", "message"),
    [
        ({"every": 0}, "replay.every: 0"),
        ({"every": -2}, "replay.every: -2"),
        ({"share": 0.0}, "replay.share: 0"),
        ({"share": 1.0}, "replay.share: 1"),
        ({"every": 2, "share": 0.5}, "'every' and 'share'"),
    ],
)
def test_cadences_that_mean_nothing(cadence: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReplayConfig(**cadence)
