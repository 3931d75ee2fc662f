"""FOREVER's clock: the size of real updates, written down once more from the weights after every step."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import KillAt, Killed
from tinylm import assert_same, config_for, constant_task, differs, reverse_task, teach, weights
from transformers import TrainerCallback

from seekr_cl.config.rates import NoEffectWarning
from seekr_cl.errors import ConfigError
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.training import learn

BY_UPDATES: dict[str, Any] = {"samples": 5, "batch_size": 2, "cadence": "forgetting_curve", "clock": "updates"}
DAYS = (1, 2, 4, 7, 15, 30, 60, 90, 120)
LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}


class Watch(TrainerCallback):
    """What the model's trained weights are before and after each step, as a vector, and which batches came."""

    def __init__(self) -> None:
        self.sizes: list[float] = []
        self.before: torch.Tensor | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before = self.vector(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.before is not None:  # a review's steps have no beginning of their own
            self.sizes.append(float((self.vector(model) - self.before).norm()))
            self.before = None

    @staticmethod
    def vector(model: Any) -> torch.Tensor:
        return torch.cat([p.detach().double().flatten() for p in model.parameters() if p.requires_grad])


def expected_reviews(sizes: list[float], day_steps: int) -> list[int]:
    """After which steps, counted from 1, the memory is replayed."""
    day, time, seen, found = sum(sizes[:day_steps]), 0.0, 0, []
    for step, size in enumerate(sizes, start=1):
        time += size
        now = sum(time >= number * day for number in DAYS) if step >= day_steps else 0
        if now > seen:
            found.append(step)
        seen = now
    return found


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task learned, whole or with LoRA."""
    folder = tmp_path_factory.mktemp("first")
    for name, more in (("whole", {}), ("lora", {"peft": LORA})):
        (folder / name).mkdir()
        teach(base, folder / name, [reverse_task()], config_for("replay", folder / name, replay=BY_UPDATES, **more))
    return folder


@pytest.mark.parametrize("kind", ["whole", "lora"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reviews_come_when_the_weights_have_moved_so_far(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, accumulation: int
) -> None:
    shutil.copytree(first / kind / "memory", tmp_path / "memory")
    came: list[tuple[int, int]] = []
    made = ScheduledBatches.made
    watch = Watch()

    def watched(self: Any, micro: Any) -> Any:
        if micro.replay:
            came.append((len(watch.sizes), len(micro.replay)))
        return made(self, micro)

    monkeypatch.setattr(ScheduledBatches, "made", watched)
    config = config_for(
        "replay", tmp_path, replay=BY_UPDATES | {"day_steps": 3}, num_train_epochs=8, learning_rate=0.01,
        gradient_accumulation_steps=accumulation, lr_scheduler_type="constant_with_warmup",
        warmup_steps=6,
    )  # fmt: skip
    task = constant_task("no", "no", 11)
    done = learn(first / kind / "m1", task, tmp_path / "memory", tmp_path / "m2", config, [watch])
    assert done.steps == len(watch.sizes) == math.ceil(8 * 3 / accumulation)
    wanted = expected_reviews(watch.sizes, 3)
    assert 2 <= len(wanted) < len(DAYS)
    assert wanted != [3 * day for day in DAYS[: len(wanted)]], "the steps' clock would say the same"
    # Five samples in batches of two, all of them each time.
    assert came == [(step, size) for step in wanted for size in (2, 2, 1)]
    last = [line for line in done.log if "reviews" in line][-1]
    assert last["reviews"] == len(wanted)
    assert last["model_days"] == pytest.approx(sum(watch.sizes) / sum(watch.sizes[:3]), rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_killed_and_resumed_is_never_killed(first: Path, base: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "none"):
        shutil.copytree(first / "whole" / "memory", tmp_path / name)
    task, source = constant_task("no", "no"), first / "whole" / "m1"
    config = config_for(
        "replay", tmp_path, replay=BY_UPDATES | {"day_steps": 2}, num_train_epochs=5, checkpoint_every=3
    )
    whole = learn(source, task, tmp_path / "one", tmp_path / "m1", config)
    with pytest.raises(Killed):
        learn(source, task, tmp_path / "two", tmp_path / "m2", config, [KillAt(8)])
    resumed = learn(source, task, tmp_path / "two", tmp_path / "m2", config, resume=True)
    assert_same(weights(tmp_path / "m1"), weights(tmp_path / "m2"))
    reviews = [[line["reviews"] for line in done.log if "reviews" in line] for done in (whole, resumed)]
    assert reviews[0] == reviews[1]
    assert reviews[0][5] < reviews[0][-1], "no review came after the checkpoint that was gone on from"
    never = config_for("replay", tmp_path, replay=BY_UPDATES | {"day_steps": 100}, num_train_epochs=5)
    with pytest.warns(NoEffectWarning, match="replay never comes"):
        learn(source, task, tmp_path / "none", tmp_path / "m3", never)
    assert differs(weights(tmp_path / "m1"), weights(tmp_path / "m3"))


def test_the_plan_counts_reviews_and_the_copy(base: Path, tmp_path: Path) -> None:
    work = Workload([40, 40], [2.0, 2.0], 16, 4)
    config = config_for("replay", tmp_path, replay=BY_UPDATES | {"day_steps": 3})
    plan = make_plan(read_shape(base), config, work)
    # Twenty steps are days 1, 2 and 4 of three steps each; five samples in batches of two.
    assert (plan.steps.replayed, plan.steps.extra) == (3 * 5, 3 * 3)
    assert plan.overhead.device == 4 * read_shape(base).parameters


def test_what_would_be_ignored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replay\.clock: would be ignored"):
        config_for("replay", tmp_path, replay={"clock": "updates"})
    with pytest.raises(ConfigError, match=r"replay\.day_steps: would be ignored"):
        config_for("replay", tmp_path, replay={"cadence": "forgetting_curve", "day_steps": 5})
