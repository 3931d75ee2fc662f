"""O-LoRA's numbers from the tensors that a run leaves: the merged product, and the overlap of subspaces."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import assert_same, config_for, constant_task, reverse_task, teach, weights

from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.training import learn

TASKS = [constant_task("yes", "yes"), reverse_task(count=8), constant_task("no", "no")]
COMMON: dict[str, Any] = {"learning_rate": 0.03, "num_train_epochs": 2}
RANK = 4


def configured(folder: Path, **settings: Any) -> Any:
    return config_for(
        {"name": "olora", "rank": RANK, "dropout": 0.0, **settings}, folder, group_by_length=False, **COMMON
    )


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("olora")
    return folder, teach(base, folder, TASKS, configured(folder))


def test_a_tasks_change_is_of_low_rank_in_the_carried_subspace(base: Path, run: tuple[Path, list[Any]]) -> None:
    """Each task changes q and v alone, by a product of which the memory has the right factor."""
    folder, _ = run
    state = ReplayMemory.open(folder / "memory").method_state.tensors
    places = [weights(base), *(weights(folder / f"m{number}") for number in (1, 2, 3))]
    for number, (before, after) in enumerate(pairwise(places)):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {f"{name}.weight" for name in state}
        for name, rows in state.items():
            difference = (after[f"{name}.weight"] - before[f"{name}.weight"]).double()
            basis = rows[number * RANK : (number + 1) * RANK].double()
            onto = torch.linalg.pinv(basis) @ basis
            assert torch.linalg.matrix_rank(difference, atol=1e-6) <= RANK
            torch.testing.assert_close(difference @ onto, difference, atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["squared", "absolute"])
def test_the_logged_term_is_the_overlap(base: Path, run: tuple[Path, list[Any]], tmp_path: Path, form: str) -> None:
    """With a learning rate of 0 the adapter stays as it was drawn, so its overlap can be formed from the memory."""
    folder, _ = run
    config = configured(tmp_path, orthogonality=form)
    config.learning_rate = 0.0
    done = learn(folder / "m3", TASKS[0], _copy(folder, tmp_path), tmp_path / "m4", config)
    tensors = ReplayMemory.open(tmp_path / "memory").method_state.tensors
    expected = 0.0
    for rows in tensors.values():
        old, new = rows[: 3 * RANK].double(), rows[3 * RANK :].double()
        expected += sum(float((a @ b) ** 2 if form == "squared" else abs(a @ b)) for a in old for b in new)
    logged = [line["loss_orthogonality"] for line in done.log if "loss_orthogonality" in line]
    assert logged == pytest.approx([expected] * len(logged), rel=1e-5)
    assert len(logged) > 1


def test_a_heavy_weight_makes_subspaces_orthogonal(base: Path, run: tuple[Path, list[Any]], tmp_path: Path) -> None:
    teach(base, tmp_path, TASKS, configured(tmp_path, lambda1=50.0))

    def overlap(folder: Path) -> float:
        tensors = ReplayMemory.open(folder / "memory").method_state.tensors
        return sum(float((rows[:RANK] @ rows[RANK : 2 * RANK].T).square().sum()) for rows in tensors.values())

    assert overlap(tmp_path) < 0.5 * overlap(run[0])
    assert_same(weights(tmp_path / "m1"), weights(run[0] / "m1"))


def test_other_layers_than_before_are_refused(run: tuple[Path, list[Any]], tmp_path: Path) -> None:
    config = configured(tmp_path, targets="all-linear")
    with pytest.raises(MemoryFormatError, match=r"method\.targets"):
        learn(run[0] / "m3", TASKS[0], _copy(run[0], tmp_path), tmp_path / "m4", config)


def test_a_layer_that_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.targets: .*gate_projx"):
        learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m", configured(tmp_path, targets="gate_projx"))


def _copy(folder: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(folder / "memory", target / "memory")
    return target / "memory"
