"""EWC's penalty against one formed directly: a Fisher information and an anchor for every task, added up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import char_tokenizer, config_for, constant_task, differs, reverse_task, teach, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.tasks import Encoder, Example, Task
from seekr_cl.training import learn

STRENGTH = 5.0
COMMON: dict[str, Any] = {"learning_rate": 0.01, "num_train_epochs": 2}
TASKS = [constant_task("yes", "yes"), reverse_task(), constant_task("no", "no")]


def fisher(folder: Path, task: Task) -> dict[str, Tensor]:
    """Squared gradients of each training example's summed loss, over all answer tokens, written down once more."""
    model, encoder = AutoModelForCausalLM.from_pretrained(folder).eval(), Encoder(char_tokenizer(), 64)
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    tokens = 0
    for example in task.train:
        one = encoder.encode(example)
        ids = torch.tensor([one.input_ids])
        logits = model(input_ids=ids).logits[0, one.completion_start - 1 : -1]
        picked = logits.log_softmax(-1)[range(len(logits)), ids[0, one.completion_start :]]
        model.zero_grad()
        (-picked.sum()).backward()
        tokens += len(picked)
        for name, weight in model.named_parameters():
            total[name] += weight.grad.square()
    return {name: squares / tokens for name, squares in total.items()}


def test_the_information_of_a_token_does_not_shrink_with_the_answer(base: Path) -> None:
    """Labels drawn by the model: the trace is that of one token, whatever the answer's length, up to the draws."""
    traces = []
    for letters in (1, 4, 16):
        model = AutoModelForCausalLM.from_pretrained(base).eval()
        encoder = Encoder(char_tokenizer(), 64)
        texts = [Example(f"{'abcdef'[n % 6]}{n}=", ("fedcba" * 3)[n % 3 : n % 3 + letters]) for n in range(24)]
        context = Context(model, Layout(0), None, 1, print, examples=[encoder.encode(one) for one in texts])
        method = get_method("ewc")(get_method("ewc").Settings(), context)
        tensors, _ = method.after_task("long", []).next_state
        traces.append(sum(float(t.sum()) for name, t in tensors.items() if name.startswith("fisher/")))
    # A mean of squares of means would be 17 / 2 times smaller for the longest than for the shortest.
    assert max(traces) < 1.6 * min(traces)


def first_penalty(folder: Path, tasks: list[Task], **settings: Any) -> tuple[float, Path]:
    """The penalty that the state in the memory gives at the weights of the first model."""
    config = config_for({"name": "ewc", "fisher_labels": "data", "strength": STRENGTH, **settings}, folder, **COMMON)
    base = folder.parent / "base"
    teach(base, folder, tasks, config)
    memory, at = ReplayMemory.open(folder / "memory"), weights(folder / "m1")
    tensors, rest = memory.method_state.tensors, memory.method_state.content["rest"]
    pull = sum((tensors[f"fisher/{n}"] * (at[n] - tensors[f"anchor/{n}"]).square()).sum() for n in at)
    return STRENGTH / 2 * (float(pull) + rest), folder


@pytest.mark.parametrize(("settings", "old"), [({}, (1, 1, 1)), ({"form": "online", "decay": 0.5}, None)])
def test_the_carried_quadratic_is_the_sum_over_tasks(
    base: Path, tmp_path: Path, settings: dict[str, Any], old: tuple[int, ...] | None
) -> None:
    (tmp_path / "base").symlink_to(base)
    found, folder = first_penalty(tmp_path / "run", TASKS, **settings)
    at = weights(folder / "m1")
    expected = 0.0
    for number, task in enumerate(TASKS, start=1):
        information, anchor = fisher(folder / f"m{number}", task), weights(folder / f"m{number}")
        if old is None:
            # The online form has one anchor, the newest, and what is old fades.
            information = {name: 0.5 ** (len(TASKS) - number) * value for name, value in information.items()}
            anchor = weights(folder / f"m{len(TASKS)}")
        expected += float(sum((information[n] * (at[n] - anchor[n]).square()).sum() for n in at))
    assert found == pytest.approx(STRENGTH / 2 * expected, rel=2e-4)


def test_the_penalty_is_in_the_loss_from_the_second_task_on(base: Path, tmp_path: Path) -> None:
    config = config_for({"name": "ewc", "strength": 1e4}, tmp_path, **COMMON)
    first, second = teach(base, tmp_path, TASKS[:2], config)
    assert not any("loss_penalty" in line for line in first.log)
    penalties = [line["loss_penalty"] for line in second.log if "loss_penalty" in line]
    assert penalties[0] == 0
    assert max(penalties) > 0
    # A strong one keeps the weights nearer to the first model than none does.
    loose = config_for({"name": "ewc", "strength": 0}, tmp_path, **COMMON)
    learn(tmp_path / "m1", TASKS[1], _copy(tmp_path, first=True), tmp_path / "loose", loose)
    start, held, free = (weights(tmp_path / name) for name in ("m1", "m2", "loose"))
    assert _distance(start, held) < 0.7 * _distance(start, free)


def test_fisher_of_the_models_own_labels_is_another_and_repeats_itself(base: Path, tmp_path: Path) -> None:
    states = []
    for place, labels in (("a", "model"), ("b", "model"), ("c", "data")):
        config = config_for({"name": "ewc", "fisher_labels": labels}, tmp_path / place, **COMMON)
        teach(base, tmp_path / place, TASKS[:1], config)
        states.append(dict(ReplayMemory.open(tmp_path / place / "memory").method_state.tensors))
    assert not differs(states[0], states[1])
    assert differs(states[0], states[2])


def test_a_state_of_other_weights_is_refused(base: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, TASKS[:1], config_for("ewc", tmp_path))
    memory = ReplayMemory.open(tmp_path / "memory")
    name = next(iter(dict(memory.method_state.tensors)))
    tensors = {key: tensor for key, tensor in memory.method_state.tensors.items() if key != name}
    memory.commit(
        [], importance=None, model_sha256=memory.model_sha256, tokenizer_sha256=memory.tokenizer_sha256, method={},
        method_state=type(memory.method_state)("ewc", tensors, {"rest": 0.0}),
    )  # fmt: skip
    with pytest.raises(MemoryFormatError, match="other weights"):
        learn(tmp_path / "m1", TASKS[1], tmp_path / "memory", tmp_path / "m2", config_for("ewc", tmp_path))


def test_another_methods_state_is_named_and_ends(base: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, TASKS[:1], config_for("ewc", tmp_path))
    with pytest.warns(UserWarning, match="carries a state of ewc"):
        learn(tmp_path / "m1", TASKS[1], tmp_path / "memory", tmp_path / "m2", config_for("seqft", tmp_path))
    assert ReplayMemory.open(tmp_path / "memory").method_state is None


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(torch.stack([(one[n] - other[n]).square().sum() for n in one]).sum().sqrt())


def _copy(folder: Path, first: bool) -> Path:
    """The memory as it was after the first task."""
    import shutil

    from seekr_cl.memory import maintenance as upkeep

    shutil.copytree(folder / "memory", folder / "copy")
    if first:
        upkeep.rollback(folder / "copy", "yes")
    return folder / "copy"
