"""InfLoRA's directions against values by hand, and what they mean for a model over three tasks."""

from pathlib import Path

import pytest
import torch
from tinylm import config_for, constant_task, reverse_task, save_base, teach, weights

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods.inflora import directions, grown
from seekr_cl.training import learn

NONE = torch.empty(0, 4)
FIRST, SECOND = torch.diag(torch.tensor([9.0, 4, 1, 0])), torch.diag(torch.tensor([1.0, 1, 4, 9]))
UNIT = torch.eye(4)


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    # Of a squared norm of 14, 9 and 4 are 13, which is 0.93 of it.
    [(0.5, 1), (0.9, 2), (0.93, 3), (1.0, 3)],
)
def test_the_fewest_directions_that_hold_the_threshold(threshold: float, wanted: int) -> None:
    torch.testing.assert_close(grown(NONE, FIRST, threshold), UNIT[:wanted])


def test_later_tasks_add_only_what_is_missed() -> None:
    kept = grown(NONE, FIRST, 0.9)
    # Of 15, the two kept directions hold 2, the fourth 9 more, the third 4.
    torch.testing.assert_close(grown(kept, SECOND, 0.1), kept)
    torch.testing.assert_close(grown(kept, SECOND, 0.7), UNIT[[0, 1, 3]])
    torch.testing.assert_close(grown(kept, SECOND, 0.9), UNIT[[0, 1, 3, 2]])


def test_a_task_is_learned_in_its_principal_directions_outside_of_the_kept() -> None:
    torch.testing.assert_close(directions(FIRST, NONE, 2), UNIT[:2])
    kept = UNIT[[3]]
    torch.testing.assert_close(directions(SECOND, kept, 2), UNIT[[2, 0]], check_stride=False)
    # One direction is left, and none is made up for the second row.
    torch.testing.assert_close(directions(SECOND, UNIT[[0, 1, 3]], 2), torch.stack([UNIT[2], torch.zeros(4)]))


def test_correlated_inputs_are_projected_before_they_are_decomposed() -> None:
    torch.manual_seed(0)
    inputs_IN, basis_KI = torch.randn(6, 40), torch.linalg.qr(torch.randn(6, 2)).Q.T
    outside_IN = inputs_IN - basis_KI.T @ basis_KI @ inputs_IN
    left_II, _, _ = torch.linalg.svd(outside_IN)
    found_RI = directions(inputs_IN @ inputs_IN.T, basis_KI, 3)
    torch.testing.assert_close((found_RI @ left_II[:, :3]).abs(), torch.eye(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found_RI @ basis_KI.T, torch.zeros(3, 2), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_task_changes_passes_the_earlier_tasks_inputs_by(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    settings = {"name": "inflora", "rank": 2, "threshold": 0.9}
    config = config_for(settings, tmp_path, learning_rate=0.03)
    memory = tmp_path / "memory"
    learn(base, constant_task("yes", "yes", 8), memory, tmp_path / "m1", config)
    kept = dict(ReplayMemory.open(memory).method_state.tensors)  # type: ignore[union-attr]
    learn(tmp_path / "m1", reverse_task("back", count=8), memory, tmp_path / "m2", config)
    before, after = weights(tmp_path / "m1"), weights(tmp_path / "m2")
    moved = 0
    for name, basis_KI in kept.items():
        torch.testing.assert_close(basis_KI @ basis_KI.T, torch.eye(len(basis_KI)), atol=1e-5, rtol=0)
        change_OI = after[f"{name}.weight"] - before[f"{name}.weight"]
        assert torch.linalg.matrix_rank(change_OI, tol=1e-4) <= 2
        assert (change_OI @ basis_KI.T).norm() < 1e-3 * change_OI.norm()
        moved += bool(change_OI.norm() > 1e-2)
    assert moved == len(kept) > 0
    other = config_for(settings | {"targets": "o_proj"}, tmp_path)
    with pytest.raises(MemoryFormatError, match=r"inflora: .* other layers .*; keep method\.targets"):
        learn(tmp_path / "m2", constant_task("x", "x", 4), memory, tmp_path / "n", other)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_where_nothing_is_left_to_learn_in_it_is_said(base: Path, tmp_path: Path) -> None:
    config = config_for({"name": "inflora", "rank": 2, "threshold": 1.0}, tmp_path)
    with pytest.warns(
        UserWarning, match=r"inflora: in \d of \d layers the earlier tasks leave fewer than 2 directions"
    ):
        teach(base, tmp_path, [reverse_task("back", count=8), reverse_task("again", count=8)], config)
