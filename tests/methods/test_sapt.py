"""SAPT against the base model alone, whose weights are changed by hand for each question."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import assert_scores_are_the_runs
from safetensors.torch import load_file
from tinylm import PLAIN_SGD, config_for, constant_task, reverse_task, teach
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM

import seekr_cl
from seekr_cl.cli.main import main
from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.evaluation import generate_answers
from seekr_cl.memory import ReplayMemory
from seekr_cl.runs.stream_run import run as run_stream
from seekr_cl.tasks import Encoder
from seekr_cl.training import learn

TASKS = [constant_task("yes", "yes", 4), reverse_task(count=8), constant_task("no", "no", 2)]
RANK, ALPHA, REFLECTION, TEMPERATURE = 2, 8.0, 0.7, 2.0
SETTINGS = {
    "name": "sapt",
    "rank": RANK,
    "alpha": ALPHA,
    "query_size": 6,
    "temperature": TEMPERATURE,
    "reflection": REFLECTION,
}
REPLAY = {"samples": 2, "every": 1, "step": "joint"}
NAMES = ["", "task-2/", "task-3/"]


def configured(folder: Path, method: dict[str, Any] | None = None, **settings: Any) -> Any:
    more = {"learning_rate": 0.03, "num_train_epochs": 2, "replay": REPLAY} | settings
    return config_for(SETTINGS | (method or {}), folder, **more)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sapt")
    teach(base, folder, TASKS[:2], configured(folder))
    return folder


class Parts:
    """What lies in a folder: each task's low-rank matrices by layer, and the attention."""

    def __init__(self, folder: Path, tasks: int) -> None:
        self.adapters = [load_file(folder / name / "adapter_model.safetensors") for name in NAMES[:tasks]]
        self.attention = load_file(folder / "seekr_method.safetensors")

    def weights(self, question: Tensor) -> Tensor:
        """The tasks' weights [T] for the embeddings [L, D] of a question."""
        part = self.attention
        query = part["up.weight"] @ (part["down.weight"] @ question.max(0).values)
        query = query * torch.sigmoid(query)
        query = (query - query.mean()) / (query.var(correction=0) + 1e-5).sqrt()
        query = query * part["norm.weight"] + part["norm.bias"]
        keys = torch.stack([part[f"keys.{number}"] for number in range(len(self.adapters))])
        scores = keys @ query / (TEMPERATURE * math.sqrt(len(query)))
        return scores.exp() / scores.exp().sum()

    def logits(self, model: Any, ids: Tensor, question: Tensor) -> Tensor:
        """Logits [L, V] of the base model with W + sum_t a_t alpha / r B_t A_t in the place of W."""
        changed = dict(model.named_parameters())
        for weight, adapter in zip(self.weights(question), self.adapters):
            for name, down in adapter.items():
                if "lora_A" in name:
                    plain = name.removeprefix("base_model.model.").replace(".lora_A", "")
                    up = adapter[name.replace("lora_A", "lora_B")]
                    changed[plain] = changed[plain] + weight * ALPHA / RANK * up @ down
        return functional_call(model, changed, kwargs={"input_ids": ids[None]}).logits[0]


def test_a_step_follows_the_gradient_through_the_mixed_adapters_and_the_attention(
    base: Path, run: Path, tmp_path: Path
) -> None:
    """One step of plain gradient descent on the third task and on questions of the first two; the expected step is
    autograd's through the base model with changed weights, the attention and the divergence written out by hand."""
    rate, logs, parts = 0.5, [], []
    for place, learning_rate in (("still", 0.0), ("moved", rate)):
        folder = tmp_path / place
        shutil.copytree(run / "memory", folder / "memory")
        settings = PLAIN_SGD | {"learning_rate": learning_rate, "num_train_epochs": 1, "max_grad_norm": 0}
        learnt = learn(run / "m2", TASKS[2], folder / "memory", folder / "m", configured(folder, **settings))
        assert learnt.steps == 1
        logs.append(learnt.log[0])
        parts.append(Parts(folder / "m", 3))
    start, moved = parts
    kept = ReplayMemory.open(run / "memory").tasks
    model = AutoModelForCausalLM.from_pretrained(base)
    table = model.get_input_embeddings().weight.detach()
    # What each old task's attention was when it was new: a mean over its kept questions.
    questions = [[table[sample.ids_L[: sample.completion_start]] for sample in task.samples] for task in kept]
    then = [
        torch.stack([Parts(run / f"m{number}", number).weights(question) for question in asked]).mean(0)
        for number, asked in enumerate(questions, start=1)
    ]
    assert len(then[1]) == 2
    assert 0.01 < float(then[1][1]) < 0.99

    leaves = start.attention | {f"new/{name}": tensor for name, tensor in start.adapters[2].items()}
    for tensor in [*start.attention.values(), *start.adapters[2].values()]:
        tensor.requires_grad_()
    encoder = Encoder(seekr_cl.load_model(base)[1], 64)
    losses, divergences = [], []
    for encoded in map(encoder.encode, TASKS[2].train):
        ids, begin = torch.tensor(encoded.input_ids), encoded.completion_start
        logits = start.logits(model, ids, table[ids[:begin]])
        losses.append(-logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[begin - 1 :])
    for row, asked in zip(then, questions, strict=True):
        for question in asked:
            now = start.weights(question)
            divergences.append(sum(row[i] * (row[i] / now[i]).log() for i in range(len(row)) if row[i] > 0))
    loss, divergence = torch.cat(losses).mean(), torch.stack(divergences).mean()
    # ``over_tasks: sum`` is SAPT's default: a batch of both old tasks weighs as much as a batch of each.
    (loss + len(kept) * REFLECTION * divergence).backward()
    assert logs[0]["loss_task"] == pytest.approx(loss.item(), rel=1e-5)
    assert logs[0]["loss_reflection"] == pytest.approx(divergence.item(), rel=1e-4)
    after = moved.attention | {f"new/{name}": tensor for name, tensor in moved.adapters[2].items()}
    for name, tensor in leaves.items():
        fixed = name in ("keys.0", "keys.1")
        expected = tensor.detach() if fixed else tensor.detach() - rate * tensor.grad
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")
        assert fixed or "lora_A" in name or tensor.grad.abs().max() > 1e-5, name


def test_earlier_adapters_and_keys_stay_bit_for_bit(base: Path, run: Path) -> None:
    one, two = Parts(run / "m1", 1), Parts(run / "m2", 2)
    for name, tensor in one.adapters[0].items():
        assert torch.equal(two.adapters[0][name], tensor)
    assert torch.equal(two.attention["keys.0"], one.attention["keys.0"])
    assert not torch.equal(two.attention["down.weight"], one.attention["down.weight"])
    found = seekr_cl.load_model(run / "m2")[0]
    assert found.active_adapters == ["default", "task-2"]
    state = found.state_dict()
    for name, tensor in load_file(base / "model.safetensors").items():
        layer, kind = name.rsplit(".", 1)
        places = (f"base_model.model.{name}", f"base_model.model.{layer}.base_layer.{kind}")
        assert torch.equal(next(state[place] for place in places if place in state), tensor)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_those_of_the_base_model_with_mixed_weights(base: Path, run: Path, batch_size: int) -> None:
    model, tokenizer = seekr_cl.load_model(run / "m2")
    plain, parts = AutoModelForCausalLM.from_pretrained(base), Parts(run / "m2", 2)
    table = plain.get_input_embeddings().weight.detach()
    texts = ["a", "abcdef=", "uvw?", "the longest of them all", "xyz?"]
    questions = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    expected = []
    for question in questions:
        ids = list(question)
        with torch.no_grad():
            while len(ids) < len(question) + 6 and ids[-1] != tokenizer.eos_token_id:
                ids.append(int(parts.logits(plain, torch.tensor(ids), table[question])[-1].argmax()))
        expected.append(tokenizer.decode(ids[len(question) :], skip_special_tokens=True))
    assert generate_answers(model, tokenizer, questions, 6, batch_size) == expected
    assert len(set(expected)) > 1


def test_a_run_is_separate_calls_and_its_folder_gives_the_runs_scores(base: Path, run: Path, tmp_path: Path) -> None:
    run_stream(base, TASKS[:2], tmp_path / "run", configured(tmp_path))
    one, other = Parts(tmp_path / "run/models/02-reverse", 2), Parts(run / "m2", 2)
    for left, right in [(one.attention, other.attention), *zip(one.adapters, other.adapters, strict=True)]:
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert_scores_are_the_runs(run / "m2", TASKS[0], tmp_path)


def test_the_reflection_keeps_old_questions_with_their_adapters(run: Path, tmp_path: Path) -> None:
    told = {}
    for weight in (0.0, 20.0):
        folder = tmp_path / str(weight)
        shutil.copytree(run / "memory", folder / "memory")
        config = configured(folder, {"reflection": weight}, num_train_epochs=6)
        log = learn(run / "m2", TASKS[2], folder / "memory", folder / "m", config).log
        told[weight] = [line["loss_reflection"] for line in log if "loss_reflection" in line][-1]
    assert told[20.0] < 0.8 * told[0.0]


def test_it_cannot_be_merged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--merge", str(run / "m2"), str(tmp_path / "plain")]) == 2
    assert "method sapt chooses adapters by the query" in " ".join(capsys.readouterr().err.split())


def test_general_samples_are_told_to_have_no_adapter(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": "a"}) + "\n" for n in range(8)))
    with pytest.warns(UserWarning, match="sapt has no adapter for general"):
        learn(base, TASKS[2], tmp_path / "memory", tmp_path / "m", configured(tmp_path, general=str(file)))


def test_what_does_not_belong_together_is_refused(base: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.query_size: 7, but the model comes with a query_size of 6"):
        learn(run / "m2", TASKS[2], run / "memory", tmp_path / "m", configured(tmp_path, {"query_size": 7}))
    with pytest.raises(MemoryFormatError):
        learn(base, TASKS[2], run / "memory", tmp_path / "m", configured(tmp_path))


def test_whoever_says_when_replay_comes_says_all_of_it(tmp_path: Path) -> None:
    def replay(**given: Any) -> Any:
        return config_for(SETTINGS, tmp_path, replay=given).replay

    paper, own, official = replay(), replay(share=0.5), replay(cadence="official", ratio=0.1)
    assert (paper.ratio, paper.every, paper.step) == (0.02, 1, "joint")
    assert (own.ratio, own.every, own.share, own.step) == (0.02, None, 0.5, "separate")
    assert (official.ratio, official.every, official.step) == (0.1, None, "separate")


def test_carried_optimizer_state_of_an_adapter_that_is_frozen_now_is_dropped(base: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, carry_optimizer=True, num_train_epochs=1)
    teach(base, tmp_path, TASKS[:2], config)
    before, after = Parts(tmp_path / "m1", 1), Parts(tmp_path / "m2", 2)
    for name, tensor in before.adapters[0].items():
        assert torch.equal(after.adapters[0][name], tensor)
