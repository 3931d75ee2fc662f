"""L2P against the base model alone, given the prompts that are picked by hand as embeddings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import assert_scores_are_the_runs
from safetensors.torch import load_file
from tinylm import PLAIN_SGD, config_for, constant_task, reverse_task, teach
from torch import Tensor
from transformers import AutoModelForCausalLM

import seekr_cl
from seekr_cl.cli.main import main
from seekr_cl.errors import ConfigError, DataError, ModelError
from seekr_cl.evaluation import generate_answers
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.methods.common.generation import context_length
from seekr_cl.methods.l2p import PromptPoolModel
from seekr_cl.runs.stream_run import run as run_stream
from seekr_cl.tasks import Encoder
from seekr_cl.training import learn

TASKS = [constant_task("yes", "yes", 4), reverse_task(count=8)]
POOL, LENGTH, TOP, PULL = 5, 2, 3, 0.7
SETTINGS = {"name": "l2p", "pool_size": POOL, "prompt_length": LENGTH, "top": TOP, "pull": PULL}


def configured(folder: Path, method: dict[str, Any] | None = None, **settings: Any) -> Any:
    return config_for(SETTINGS | (method or {}), folder, **({"learning_rate": 0.05, "num_train_epochs": 2} | settings))


def pool_of(folder: Path) -> tuple[Tensor, Tensor]:
    """Prompts [M, P, D] and keys [M, D] of a folder."""
    (prompts,) = load_file(folder / "adapter_model.safetensors").values()
    (keys,) = load_file(folder / "seekr_method.safetensors").values()
    return prompts.view(POOL, LENGTH, -1), keys


def nearest(question: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The TOP keys by cosine with a question's mean embedding, written out; and all cosines."""
    query = question.mean(0)
    cosines = torch.stack([(query @ key) / (query.norm() * key.norm()) for key in keys])
    return cosines.argsort(descending=True)[:TOP], cosines


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("l2p")
    teach(base, folder, TASKS, configured(folder))
    return folder


def before_second(run: Path, folder: Path) -> Path:
    """The memory as it was after the first task."""
    shutil.copytree(run / "memory", folder / "memory")
    upkeep.rollback(folder / "memory", "yes")
    return folder / "memory"


@pytest.mark.parametrize("query", ["embeddings", "hidden"])
def test_a_step_follows_the_gradient_of_the_picked_prompts_and_their_keys(
    base: Path, run: Path, tmp_path: Path, query: str
) -> None:
    """One step of plain gradient descent on two questions of different lengths; the expected step is autograd's through
    the base model alone, which gets [P_s1; ...; P_sN; x] as embeddings, and through cosines written out by hand."""
    task, rate = reverse_task("words", 2, seed=5), 0.5
    assert len({len(example.prompt) for example in task.train}) == 2
    found = []
    for place, learning_rate in (("still", 0.0), ("moved", rate)):
        folder = tmp_path / place
        settings = PLAIN_SGD | {"learning_rate": learning_rate, "num_train_epochs": 1, "max_grad_norm": 0}
        config = configured(folder, {"query": query}, **settings)
        learnt = learn(run / "m1", task, before_second(run, folder), folder / "m", config)
        found.append((*pool_of(folder / "m"), learnt.log[0]))
    (prompts, keys, log), (moved_prompts, moved_keys, _) = found
    prompts.requires_grad_()
    keys.requires_grad_()
    model = AutoModelForCausalLM.from_pretrained(base)
    encoder = Encoder(seekr_cl.load_model(base)[1], 64)
    table = model.get_input_embeddings().weight
    losses, distances = [], []
    for encoded in map(encoder.encode, task.train):
        ids, start = torch.tensor(encoded.input_ids), encoded.completion_start
        with torch.no_grad():
            hidden = model.model(input_ids=ids[None]).last_hidden_state[0]
        question = (table[ids] if query == "embeddings" else hidden)[:start].detach()
        chosen, cosines = nearest(question, keys)
        distances.append((1 - cosines[chosen]).sum())
        text = torch.cat([*prompts[chosen], table[ids]])
        logits = model(inputs_embeds=text[None]).logits[0, TOP * LENGTH :]
        losses.append(-logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[start - 1 :])
    loss, distance = torch.cat(losses).mean(), torch.stack(distances).mean()
    (loss + PULL * distance).backward()
    assert log["loss_task"] == pytest.approx(loss.item(), rel=1e-5)
    assert log["loss_pull"] == pytest.approx(distance.item(), rel=1e-5)
    torch.testing.assert_close(moved_prompts, prompts.detach() - rate * prompts.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved_keys, keys.detach() - rate * keys.grad, rtol=1e-4, atol=1e-6)
    assert prompts.grad.abs().max() > 1e-3
    assert keys.grad.abs().max() > 1e-3
    assert (prompts.grad == 0).flatten(1).all(1).any(), "a prompt that no question picks does not move"


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_those_of_the_base_model_behind_the_picked_prompts(base: Path, run: Path, batch_size: int) -> None:
    model, tokenizer = seekr_cl.load_model(run / "m2")
    plain = AutoModelForCausalLM.from_pretrained(base)
    table, (prompts, keys) = plain.get_input_embeddings().weight.detach(), pool_of(run / "m2")
    with torch.no_grad():
        # So that what is picked decides the answer.
        model.prompt_encoder.default.embedding.weight.mul_(3)
    texts = ["a", "abcdef=", "uvw?", "the longest of them all", "xyz?"]
    questions = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    expected, picked = [], set()
    for question in questions:
        ids = list(question)
        chosen, _ = nearest(table[ids], keys)
        picked.add(tuple(chosen.tolist()))
        with torch.no_grad():
            while len(ids) < len(question) + 6 and ids[-1] != tokenizer.eos_token_id:
                text = torch.cat([*(3 * prompts)[chosen], table[ids]])
                ids.append(int(plain(inputs_embeds=text[None]).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids[len(question) :], skip_special_tokens=True))
    assert generate_answers(model, tokenizer, questions, 6, batch_size) == expected
    asked = torch.tensor([questions[1]])
    tokens = model.generate(asked, max_new_tokens=6, do_sample=False)[0, len(questions[1]) :]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == expected[1]
    assert len(picked) > 1
    assert len(set(expected)) > 1


def test_the_base_model_stays_as_it_is(base: Path, run: Path) -> None:
    found = seekr_cl.load_model(run / "m2")[0].get_base_model().state_dict()
    for name, tensor in load_file(base / "model.safetensors").items():
        assert torch.equal(found[name], tensor)
    assert not (run / "m2" / "model.safetensors").exists()


def test_a_run_is_separate_calls_and_its_folder_gives_the_runs_scores(base: Path, run: Path, tmp_path: Path) -> None:
    run_stream(base, TASKS, tmp_path / "run", configured(tmp_path))
    for one, other in zip(pool_of(tmp_path / "run/models/02-reverse"), pool_of(run / "m2"), strict=True):
        assert torch.equal(one, other)
    assert_scores_are_the_runs(run / "m2", TASKS[0], tmp_path)


def test_only_the_picked_prompts_take_room_in_the_context(base: Path, run: Path, tmp_path: Path) -> None:
    model, _ = seekr_cl.load_model(run / "m2")
    assert isinstance(model, PromptPoolModel)
    assert context_length(model) == 64 - TOP * LENGTH
    with pytest.raises(DataError, match=r"60 virtual tokens .* max_length to at most 4, .* fewer \(method\.top\)"):
        learn(base, TASKS[0], tmp_path / "m", tmp_path / "o", configured(tmp_path, {"prompt_length": 20}))


def test_it_cannot_be_merged_nor_taken_by_another_method(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--merge", str(run / "m2"), str(tmp_path / "plain")]) == 2
    assert "chooses adapters by the query" in " ".join(capsys.readouterr().err.split())
    for method in ("seqft", "progressive_prompts"):
        memory, config = before_second(run, tmp_path / method), config_for(method, tmp_path)
        with pytest.raises(ConfigError, match=r"--model: .*(method l2p|merge it first)"):
            learn(run / "m1", TASKS[1], memory, tmp_path / "o", config)


def test_another_pool_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, {"pool_size": POOL + 1})
    with pytest.raises(ConfigError, match=r"method\.pool_size: 6, but the model comes with a pool of pool_size 5"):
        learn(run / "m1", TASKS[1], before_second(run, tmp_path), tmp_path / "o", config)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"method": "../x"}',
        '{"method": "l2p"}',
        '{"method": "l2p", "pool_size": true}',
        '{"method": "l2p", "pool_size": 5, "prompt_length": 2, "top": 9, "query": "hidden"}',
    ],
)
def test_a_damaged_description_is_named(run: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(run / "m2", tmp_path / "m")
    (tmp_path / "m" / "seekr_method.json").write_text(content)
    with pytest.raises(ModelError, match=str(tmp_path / "m")):
        seekr_cl.load_model(tmp_path / "m")
