"""Progressive Prompts against the base model alone, given [P_k; ...; P_1; x] as embeddings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import assert_scores_are_the_runs
from safetensors.torch import load_file
from tinylm import PLAIN_SGD, config_for, constant_task, reverse_task, teach, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation import generate_answers
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.methods.progressive_prompts import TrainedPrompt
from seekr_cl.models.loading import load_model
from seekr_cl.runs.stream_run import run as run_stream
from seekr_cl.tasks import Encoder
from seekr_cl.training import learn

TASKS = [constant_task("yes", "yes", 4), reverse_task(count=8), constant_task("no", "no", 4)]
LENGTH = 3


def configured(folder: Path, **settings: Any) -> Any:
    chosen = {"name": "progressive_prompts", "prompt_length": LENGTH, "bottleneck": 0}
    method = chosen | {key: settings.pop(key) for key in list(settings) if key in chosen}
    return config_for(method, folder, **({"learning_rate": 0.05, "num_train_epochs": 2} | settings))


def prompts(folder: Path) -> Tensor:
    (found,) = weights(folder).values()
    return found


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    teach(base, folder, TASKS, configured(folder, bottleneck=8))
    return folder


def test_earlier_prompts_stand_behind_the_new_one_bit_for_bit(run: Path) -> None:
    for number in (2, 3):
        now, before = prompts(run / f"m{number}"), prompts(run / f"m{number - 1}")
        assert now.shape == (number * LENGTH, before.shape[1])
        assert torch.equal(now[LENGTH:], before)


def test_the_base_model_stays_as_it_is(base: Path, run: Path) -> None:
    found = load_model(run / "m3")[0].get_base_model().state_dict()
    for name, tensor in load_file(base / "model.safetensors").items():
        assert torch.equal(found[name], tensor)
    assert not (run / "m3" / "model.safetensors").exists()


def test_a_step_follows_the_gradient_of_the_new_prompt_alone(base: Path, run: Path, tmp_path: Path) -> None:
    """One step of plain gradient descent; the loss and its gradient come from the base model and autograd."""
    task, rate = constant_task("no", "no", 1), 0.5
    outcomes = []
    for place, learning_rate in (("still", 0.0), ("moved", rate)):
        folder = tmp_path / place
        settings = PLAIN_SGD | {"learning_rate": learning_rate, "num_train_epochs": 1, "max_grad_norm": 0}
        learnt = learn(run / "m1", task, _copy(run, folder), folder / "m", configured(folder, **settings))
        outcomes.append((prompts(folder / "m"), learnt.log[0]["loss_task"]))
    (start, logged), (moved, _) = outcomes
    model = AutoModelForCausalLM.from_pretrained(base)
    table = model.get_input_embeddings().weight
    for row in start[:LENGTH]:
        assert any(torch.equal(row, token) for token in table), "a prompt begins as tokens of the vocabulary"

    _, tokenizer = load_model(base)
    encoded = Encoder(tokenizer, 64).encode(task.train[0])
    ids = torch.tensor(encoded.input_ids)
    new = start[:LENGTH].clone().requires_grad_()
    logits = model(inputs_embeds=torch.cat([new, start[LENGTH:], table[ids]])[None]).logits[0, 2 * LENGTH :]
    chosen = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[encoded.completion_start - 1 :]
    loss = -chosen.mean()
    loss.backward()
    assert logged == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(moved[:LENGTH], start[:LENGTH] - rate * new.grad, rtol=1e-4, atol=1e-6)
    assert new.grad.abs().max() > 1e-3


def test_the_network_is_added_to_the_prompt() -> None:
    drawn, earlier = torch.randn(2, 4), torch.randn(3, 4)
    trained = TrainedPrompt(drawn, earlier, 5)
    down, up = trained.network[0], trained.network[2]
    by_hand = drawn + torch.tanh(drawn @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(trained.weight, torch.cat([by_hand, earlier]))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_those_of_the_base_model_behind_the_prompts(base: Path, run: Path, batch_size: int) -> None:
    model, tokenizer = load_model(run / "m2")
    plain = AutoModelForCausalLM.from_pretrained(base)
    table, before = plain.get_input_embeddings().weight, prompts(run / "m2")
    texts = ["a", "abcdef=", "uvw?", "the longest of them all", "xyz?"]
    expected = []
    for text in texts:
        ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        length = len(ids)
        with torch.no_grad():
            while len(ids) < length + 6 and ids[-1] != tokenizer.eos_token_id:
                ids.append(int(plain(inputs_embeds=torch.cat([before, table[ids]])[None]).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids[length:], skip_special_tokens=True))
    ids = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    assert generate_answers(model, tokenizer, ids, 6, batch_size) == expected
    assert len(set(expected)) > 1


def test_a_run_is_separate_calls_and_its_folder_gives_the_runs_scores(base: Path, run: Path, tmp_path: Path) -> None:
    run_stream(base, TASKS[:2], tmp_path / "run", configured(tmp_path, bottleneck=8))
    assert torch.equal(prompts(tmp_path / "run/models/02-reverse"), prompts(run / "m2"))
    assert_scores_are_the_runs(run / "m2", TASKS[0], tmp_path)


def test_another_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    learn(base, TASKS[0], tmp_path / "memory", tmp_path / "lora", config_for("seqft", tmp_path, peft="lora"))
    with pytest.raises(ConfigError, match="trains adapters of its own; merge it first"):
        learn(tmp_path / "lora", TASKS[1], tmp_path / "memory", tmp_path / "m", configured(tmp_path))


def test_prompts_beyond_the_context_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task 'yes': .* 60 virtual tokens .* max_length to at most 4"):
        learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m", configured(tmp_path, prompt_length=60))


def _copy(run: Path, folder: Path) -> Path:
    """The memory as it was after the first task."""
    shutil.copytree(run / "memory", folder / "memory")
    upkeep.rollback(folder / "memory", "yes")
    return folder / "memory"


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_padding_is_no_distance_for_any_prompt_of_pefts(base: Path, tmp_path: Path, kind: str) -> None:
    """Neither where padding is in training nor how long a batch is in generation changes anything."""
    peft = {"peft_type": kind, "num_virtual_tokens": 4}
    for side in ("left", "right"):
        config = config_for("seqft", tmp_path / side, **PLAIN_SGD, padding_side=side, peft=peft)
        learn(base, TASKS[1], tmp_path / side / "memory", tmp_path / side / "m", config)
    torch.testing.assert_close(prompts(tmp_path / "left/m"), prompts(tmp_path / "right/m"))
    model, tokenizer = load_model(tmp_path / "right/m")
    with torch.no_grad():
        next(model.prompt_encoder.parameters()).mul_(3)
    ids = [torch.randint(3, 40, (length,), generator=torch.Generator().manual_seed(length)) for length in range(2, 22)]
    prompt_ids = [one.tolist() for one in ids]
    assert generate_answers(model, tokenizer, prompt_ids, 6, 7) == generate_answers(model, tokenizer, prompt_ids, 6, 1)
