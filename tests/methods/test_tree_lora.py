"""TreeLoRA against the base model alone with changed weights, and its tree and bounds against cases done by hand."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinylm import PLAIN_SGD, config_for, constant_task, reverse_task, teach
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM

import seekr_cl
from seekr_cl.cli.main import main
from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.tree_lora import TreeLora, TreeLoraSettings, build_tree, search
from seekr_cl.tasks import Encoder
from seekr_cl.training import learn

RANK, ALPHA, STRENGTH = 2, 8.0, 0.7
TASKS = [constant_task("yes", "yes", 4), reverse_task(count=8), constant_task("no", "no", 4)]
SETTINGS = {"name": "tree_lora", "rank": RANK, "alpha": ALPHA, "dropout": 0.0, "strength": STRENGTH}


def configured(folder: Path, **settings: Any) -> Any:
    return config_for(SETTINGS, folder, **({"learning_rate": 0.03, "num_train_epochs": 3} | settings))


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    teach(base, folder, TASKS, configured(folder))
    return folder


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_step_follows_the_gradient_of_loss_and_alignment(base: Path, run: Path, tmp_path: Path) -> None:
    """One step of plain gradient descent on the second task; the loss is the base model's with W + alpha / r B A, the
    alignment that with the only earlier task, both written out by hand."""
    rate, logs, ends = 0.5, [], []
    for place, learning_rate in (("still", 0.0), ("moved", rate)):
        folder = tmp_path / place
        shutil.copytree(run / "memory", folder / "memory")
        upkeep.rollback(folder / "memory", "yes")
        settings = PLAIN_SGD | {"learning_rate": learning_rate, "num_train_epochs": 1, "max_grad_norm": 0}
        learnt = learn(run / "m1", TASKS[2], folder / "memory", folder / "m", configured(folder, **settings))
        assert learnt.steps == 1
        logs.append(learnt.log[0])
        ends.append(adapter(folder / "m"))
    start, moved = ends
    state = ReplayMemory.open(tmp_path / "still" / "memory").method_state
    assert state.content == {"tasks": 2}
    for tensor in start.values():
        tensor.requires_grad_()
    model = AutoModelForCausalLM.from_pretrained(base)
    changed, alignment = dict(model.named_parameters()), torch.zeros(())
    for name, down in start.items():
        if "lora_A" in name:
            plain = name.removeprefix("base_model.model.").replace(".lora_A", "")
            changed[plain] = changed[plain] + ALPHA / RANK * start[name.replace("lora_A", "lora_B")] @ down
            then = state.tensors[f"0/{plain.removesuffix('.weight')}"]
            assert not torch.equal(then, down), "a mean over the steps is not where they ended"
            alignment = alignment + (down * then).sum()
    encoder = Encoder(seekr_cl.load_model(base)[1], 64)
    losses = []
    for encoded in map(encoder.encode, TASKS[2].train):
        ids, begin = torch.tensor(encoded.input_ids), encoded.completion_start
        logits = functional_call(model, changed, kwargs={"input_ids": ids[None]}).logits[0]
        losses.append(-logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[begin - 1 :])
    loss = torch.cat(losses).mean()
    (loss - STRENGTH * float(loss.detach()) / abs(float(alignment.detach())) * alignment).backward()
    assert logs[0]["loss_task"] == pytest.approx(loss.item(), rel=1e-5)
    for name, tensor in start.items():
        torch.testing.assert_close(moved[name], tensor.detach() - rate * tensor.grad, rtol=1e-4, atol=2e-6)
        assert tensor.grad.abs().max() > 1e-4


def test_what_is_carried_is_the_mean_of_the_adapter_over_the_steps(base: Path, tmp_path: Path) -> None:
    """The same learning ended after one step and after two."""
    ends, carried = [], []
    for steps in (1, 2):
        folder = tmp_path / str(steps)
        config = configured(folder, num_train_epochs=steps, lr_scheduler_type="constant")
        learn(base, TASKS[0], folder / "memory", folder / "m", config)
        ends.append(adapter(folder / "m"))
        carried.append(ReplayMemory.open(folder / "memory").method_state.tensors)
    for name, mean in carried[1].items():
        one, two = (end[f"base_model.model.{name[2:]}.lora_A.weight"] for end in ends)
        torch.testing.assert_close(mean, (one + two) / 2)
        assert torch.equal(carried[0][name], one)


def test_tasks_are_split_at_the_median_of_their_likeness_layer_by_layer() -> None:
    """Inner products with the mean: in layer 0 those of tasks 0 to 3 are 1, 1.005, -0.5, -0.495; in layer 1 those of
    the tasks 0, 1 and 3 are 1.33, 4 and 0.33. What is at the median goes with what is above."""
    first = [torch.tensor(v) for v in ([2.0, 0.0], [2.0, 0.1], [-1.0, 0.0], [-1.0, 0.1])]
    second = [torch.tensor(v) for v in ([0.0, 1.0], [0.0, 3.0], [7.0, 7.0], [1.0, 0.0])]
    root = build_tree([first, second])
    assert [child.tasks for child in root.children] == [[0, 1, 3], [2]]
    assert [leaf.tasks for leaf in root.children[0].children] == [[0, 1], [3]]
    assert not root.children[1].children
    # Task 2 has the lowest bound in layer 1, but layer 0 has led away from it.
    bounds = torch.tensor([[0.5, 0.3], [0.1, 0.9], [0.2, 0.0], [0.6, 0.1]])
    assert search(root, bounds) == [1, 3]
    assert search(root, torch.full((4, 2), -math.inf)) == [0, 0]


def test_every_task_is_looked_at_before_one_is_looked_at_often(base: Path, run: Path, tmp_path: Path) -> None:
    state = ReplayMemory.open(run / "memory").method_state
    model = seekr_cl.load_model(run / "m3")[0]
    settings = TreeLoraSettings(**{key: value for key, value in SETTINGS.items() if key != "name"})
    context = Context(model, Layout(0), None, 0, print, previous_state=(state.tensors, state.content))
    method = TreeLora(settings, context)
    seen = [list(method._chosen)]
    for _ in range(8):
        method.after_step(model)
        seen.append(list(method._chosen))
    assert {chosen[0] for chosen in seen[:3]} == {0, 1, 2}
    mean = method._distance_KN / method._count_KN.clamp(min=1)
    radius = torch.sqrt(math.log(2 * 9 * 10) / (2 * method._count_KN[:, 0]))
    assert seen[-1][0] == int((mean[:, 0] - radius).argmin())
    other = TreeLora(settings, context)
    other.load_state_dict(*method.state_dict())
    assert other._chosen == seen[-1]
    for one in (method, other):
        one.after_step(model)
    assert other._chosen == method._chosen
    assert torch.equal(other._distance_KN, method._distance_KN)


def test_its_folder_is_a_lora_that_can_be_merged(
    base: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--merge", str(run / "m3"), str(tmp_path / "plain")]) == 0
    merged, model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), seekr_cl.load_model(run / "m3")[0]
    ids = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(merged(ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"method\.rank: 3, but the model comes with an adapter of rank 2"):
        learn(run / "m3", TASKS[0], run / "memory", tmp_path / "m", config_for(SETTINGS | {"rank": 3}, tmp_path))
