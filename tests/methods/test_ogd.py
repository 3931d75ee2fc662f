"""OGD: one step of plain descent against g without the span of the old tasks' logit gradients, in float64.

The paper's algorithm 1 goes direction by direction; a QR of all gradients at once spans the same space by another way.
There is no official code.
"""

from pathlib import Path

import pytest
import torch
from one_step import Twin, assert_near, moved, plain_steps, words_of
from tinylm import constant_task, reverse_task, teach, weights
from torch import Tensor

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.tasks import Task
from seekr_cl.training import learn

OLD = [reverse_task("first", 4), constant_task("no", "no", 4)]
TASKS = [*OLD, Task("both", OLD[0].train[:2] + OLD[1].train[:2])]


def directions(folder: Path, task: Task, logits: str) -> list[Tensor]:
    """The gradient of each example's mean logit: of the right tokens, or of all."""
    twin = Twin(folder)
    found = []
    for word in words_of(task):

        def logit(model: Twin, word: tuple[list[int], int] = word) -> Tensor:
            ((logits_AV, answer_A),) = model.answers([word])
            picked = torch.stack([logits_AV[place, token] for place, token in enumerate(answer_A.tolist())])
            return picked.mean() if logits == "ground_truth" else logits_AV.mean()

        found.append(twin.gradient(logit))
    return found


@pytest.mark.parametrize(("logits", "norm"), [("ground_truth", 0.0), ("average", 0.0), ("ground_truth", 0.1)])
def test_a_step_leaves_the_old_logits_alone(base: Path, tmp_path: Path, logits: str, norm: float) -> None:
    config = plain_steps({"name": "ogd", "logits": logits}, tmp_path, max_grad_norm=norm)
    teach(base, tmp_path, TASKS, config)
    span = [vector for n in (1, 2) for vector in directions(tmp_path / f"m{n}", TASKS[n - 1], logits)]
    q, _ = torch.linalg.qr(torch.stack(span).T)
    gradient = Twin(tmp_path / "m2").loss_gradient(words_of(TASKS[2]))
    expected = gradient - q @ (q.T @ gradient)
    assert float(expected.norm()) < 0.99 * float(gradient.norm()), "nothing had to be taken out"
    if norm:
        # It is projected first and clipped afterwards.
        expected = expected * norm / expected.norm()
    assert_near(moved(tmp_path / "m2", tmp_path / "m3"), expected)


def test_directions_are_orthonormal_bounded_and_repeated_ones_are_left_out(base: Path, tmp_path: Path) -> None:
    first, again = TASKS[0], Task("again", [TASKS[0].train[0]] * 4)
    config = plain_steps({"name": "ogd", "directions": 3}, tmp_path)
    teach(base, tmp_path, [first, again], config)
    state, twin = ReplayMemory.open(tmp_path / "memory").method_state, Twin(base)
    # Three of the first task's four examples; the same example four times is one direction.
    assert state.content == {"directions": 4}
    rows = torch.stack([twin.flat({n: t[k] for n, t in state.tensors.items()}) for k in range(4)])
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)


def test_directions_of_other_weights_are_refused(base: Path, tmp_path: Path) -> None:
    config = plain_steps("ogd", tmp_path)
    teach(base, tmp_path, TASKS[:1], config)
    memory = ReplayMemory.open(tmp_path / "memory")
    state = memory.method_state
    tensors = {name: tensor[..., :1].clone() for name, tensor in state.tensors.items()}
    memory.commit(
        [], importance=None, model_sha256=memory.model_sha256, tokenizer_sha256=memory.tokenizer_sha256, method={},
        method_state=type(state)("ogd", tensors, state.content),
    )  # fmt: skip
    with pytest.raises(MemoryFormatError, match="other weights"):
        learn(tmp_path / "m1", TASKS[1], tmp_path / "memory", tmp_path / "m2", config)
    assert not (tmp_path / "m2").exists()
    assert weights(tmp_path / "m1")
