"""DER++ as Buzzega et al. have it: logits seen in training, two draws, alpha and beta; written once more in float64."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import watch_positions
from one_step import RATE, Twin, assert_near, plain_steps, token_loss, words_of
from tinylm import char_tokenizer, config_for, reverse_task, teach, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.errors import ConfigError
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.training import learn

ALL = {"ratio": 1.0, "every": 1, "step": "joint"}
TASKS = [reverse_task("first", 4), reverse_task("second", 4)]


def stored(folder: Path, number: int = 0) -> list[Tensor]:
    """The logits kept of a task's samples."""
    found = [sample.logits for sample in ReplayMemory.open(folder / "memory").tasks[number].samples]
    assert all(signal is not None and signal.logits_AV is not None for signal in found)
    return [signal.logits_AV for signal in found]


def outputs(folder: Path, task: MemoryTask) -> list[Tensor]:
    """What a saved model says at the positions that predict the answers of a task's samples."""
    return [logits.detach() for logits, _ in Twin(folder).answers(words_of(task))]


def test_what_is_kept_is_what_the_model_said_while_it_learnt(base: Path, tmp_path: Path) -> None:
    """A task of one step: its logits are those of the model before it, not of the one after."""
    teach(base, tmp_path, TASKS[:1], plain_steps("derpp_mse", tmp_path, replay=ALL))
    task = ReplayMemory.open(tmp_path / "memory").tasks[0]
    for found, before, after in zip(stored(tmp_path), outputs(base, task), outputs(tmp_path / "m1", task), strict=True):
        assert float((found - before).abs().max()) < 1e-4
        assert float((found - after).abs().max()) > 1e-2


def test_every_step_that_saw_a_sample_is_as_likely(base: Path, tmp_path: Path) -> None:
    """Three epochs of one step each: each sample's logits are of one of the three models, and of each at some time."""
    chosen: Counter[int] = Counter()
    for seed in range(6):
        folder = tmp_path / str(seed)
        models = [base]
        for epochs in (1, 2):
            config = plain_steps("derpp_mse", folder, num_train_epochs=epochs, replay=ALL, seed=seed)
            learn(base, TASKS[0], folder / f"memory{epochs}", folder / f"{epochs}", config)
            models.append(folder / f"{epochs}")
        config = plain_steps("derpp_mse", folder, num_train_epochs=3, replay=ALL, seed=seed)
        learn(base, TASKS[0], folder / "memory", folder / "m1", config)
        task = ReplayMemory.open(folder / "memory").tasks[0]
        said = [outputs(model, task) for model in models]
        for place, found in enumerate(stored(folder)):
            apart = [float((found - one[place]).abs().max()) for one in said]
            assert min(apart) < 1e-3
            chosen[apart.index(min(apart))] += 1
    assert sorted(chosen) == [0, 1, 2]
    assert max(chosen.values()) < 18  # of 24


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.2, "beta": 2.0, "distance": "sum"}])
def test_a_joint_step_is_the_papers(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """All four old samples in the step, so that both draws are all of them: eq. 6, by its gradient in float64."""
    method = {"name": "derpp_mse", **settings}
    teach(base, tmp_path, TASKS, plain_steps(method, tmp_path, replay=ALL))
    old = ReplayMemory.open(tmp_path / "memory").tasks[0]
    then, twin = [one.double() for one in stored(tmp_path)], Twin(tmp_path / "m1")
    alpha, beta = settings.get("alpha", 0.5), settings.get("beta", 0.5)

    def loss(model: Twin) -> Tensor:
        answers = model.answers(words_of(old))
        apart = torch.cat([now - past for (now, _), past in zip(answers, then, strict=True)]).square()
        distance = apart.sum(1).mean() if settings.get("distance") == "sum" else apart.mean()
        return token_loss(model.answers(words_of(TASKS[1]))) + alpha * distance + beta * token_loss(answers)

    found = (twin.vector() - twin.flat(weights(tmp_path / "m2"))) / RATE
    assert_near(found, twin.gradient(loss))


def test_what_no_step_saw_is_asked_for_a_few_positions_at_a_time(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of several lengths together: as each alone, without logits of the prompt or of many tokens."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    method = get_method("derpp_mse")(
        get_method("derpp_mse").Settings(), Context(model, Layout(0), None, 3, print, "float32", char_tokenizer())
    )
    ids = [torch.randint(4, 20, (length,), generator=torch.Generator().manual_seed(length)) for length in (14, 9, 13)]
    samples = [ReplaySample("", "", ids_L, len(ids_L) - 4) for ids_L in ids]
    sizes: list[int] = []
    watch_positions(model, sizes)
    monkeypatch.setattr("seekr_cl.methods.answers.CHUNK_BYTES", 8 * model.config.vocab_size)
    found = method.after_task("general", samples).task.samples
    assert max(sizes) == 2
    for one, ids_L in zip(found, ids, strict=True):
        with torch.no_grad():
            alone_AV = model(ids_L[None]).logits[0, -5:-1]
        torch.testing.assert_close(one.logits.logits_AV, alone_AV, atol=1e-5, rtol=1e-5)


def test_the_second_draw_is_another_one_and_leaves_none_out(base: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, [reverse_task("first", 12)], config_for("derpp_mse", tmp_path, replay=ALL))
    tasks = list(ReplayMemory.open(tmp_path / "memory").tasks)
    model = AutoModelForCausalLM.from_pretrained(base)
    context = Context(model, Layout(0), None, 3, print, "float32", char_tokenizer())
    method = get_method("derpp_mse")(get_method("derpp_mse").Settings(), context)
    method.replay_source(tasks)
    pairs = [(tasks[0], sample) for sample in tasks[0].samples]
    seen = []
    for first in range(0, 12, 3):
        second = method.collate_replay(pairs[first : first + 3], 16)["second"]
        seen += [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(second["input_ids"], second["attention_mask"])]
    own = [tuple(sample.ids_L.tolist()) for _, sample in pairs]
    assert sorted(seen) == sorted(own)
    assert sum(one == other for one, other in zip(seen, own)) < 6


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_samples_of_the_other_form_are_refused_and_its_own_are_probabilities_too(base: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, TASKS[:1], config_for("derpp", tmp_path))
    config = config_for("derpp_mse", tmp_path)
    with pytest.raises(ConfigError, match="'first' have no teacher logits of derpp_mse"):
        learn(tmp_path / "m1", TASKS[1], tmp_path / "memory", tmp_path / "m2", config)
    other = tmp_path / "other"
    teach(base, other, TASKS[:1], config_for("derpp_mse", other))
    signal = ReplayMemory.open(other / "memory").tasks[0].samples[0].logits
    torch.testing.assert_close(signal.decode()[0], signal.logits_AV.softmax(-1))
    learn(other / "m1", TASKS[1], other / "memory", other / "m2", config_for("derpp", other))
