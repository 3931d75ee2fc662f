"""docs/adding_a_method.md is followed to the letter: its code through linter, matrix row and one task."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matrix
import pytest
import torch
import yaml
from tinylm import constant_task, differs, save_base, teach, weights

from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.methods import METHODS, Context, Layout, Method, register_method
from seekr_cl.training import config_from, learn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
CODE, ROW = (
    re.sub(r"^   ", "", text, flags=re.MULTILINE) if text.startswith("   ") else text
    for text in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
)
YAML = re.search(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL).group(1)
FLAGS = {"memory", "weight_access", "adapters", "frozen_copy", "last_turn_only", "multi_task", "generates"}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page's class in a user's own file, on the path while this module's tests run."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_method.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("my_method")
    sys.path.remove(str(folder))
    sys.modules.pop("my_method")
    METHODS.pop("fading", None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]])
def test_the_linter_accepts_it_in_the_library(words: list[str]) -> None:
    place = ROOT / "src" / "seekr_cl" / "methods" / "fading.py"
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", "--stdin-filename", str(place), "-"]
    done = subprocess.run(command, input=CODE, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_does_what_it_says(user: Any, base: Path) -> None:
    """Samples of the newest old task weigh a half, of the one before it a quarter; the loss is weighted by that."""
    model = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained(base)
    method = user.FadingReplay(user.FadingSettings(), Context(model, Layout(0), None, 0, print))
    samples = [ReplaySample(name, "x", torch.tensor([1, 5 + n, 9, 2]), 2) for n, name in enumerate("ab")]
    tasks = [MemoryTask(name, [sample]) for name, sample in zip("ab", samples)]
    assert method.replay_source(tasks) == tasks
    extras = method.collate_replay([(tasks[1], samples[1]), (tasks[0], samples[0])], 4)
    assert extras["weight_B"].tolist() == [0.5, 0.25]
    ids = torch.stack([samples[1].ids_L, samples[0].ids_L])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.where(ids.new_tensor([0, 0, 1, 1]) > 0, -100),
    }
    value = method.replay_loss(model, batch | extras)["replay"].value
    log_probability = model(input_ids=ids).logits.log_softmax(-1)
    each = [-sum(log_probability[row, at - 1, ids[row, at]] for at in (2, 3)) / 2 for row in (0, 1)]
    torch.testing.assert_close(value, (0.5 * each[0] + 0.25 * each[1]) / 2)


def test_it_learns_from_a_users_own_file(user: Any, base: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(YAML) | {"use_cpu": True, "progress": "none", "replay": {"ratio": 0.25}}
    config = config_from(settings, str(tmp_path / "trainer"))
    assert config.method.settings.half_life == 2
    learn(base, constant_task("yes", "yes", 8), tmp_path / "memory", tmp_path / "m1", config)
    memory = ReplayMemory.open(tmp_path / "memory")
    assert len(memory.samples) == 2
    assert differs(weights(base), weights(tmp_path / "m1"))


def test_its_row_passes_the_matrix(
    user: Any, base: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = _module(ROOT / "tests" / "methods" / "test_matrix.py")
    register_method(user.FadingReplay)
    row = eval(ROW, {"Row": matrix.Row, "Change": matrix.Change})  # noqa: S307
    monkeypatch.setitem(matrix.ROWS, "fading", row["fading"])
    done: dict[str, Any] = {}

    def stream(name: str, common: dict[str, Any], **settings: Any) -> Any:
        key = repr((name, common, settings))
        if key not in done:
            folder = tmp_path_factory.mktemp(name)
            done[key] = folder, teach(base, folder, checks.tasks(), checks.configured(name, folder, common, **settings))
        return done[key]

    def learnt(name: str) -> Any:
        return stream(name, checks.LEARNING)

    checks.test_every_setting_has_a_change_and_a_wrong_value("fading")
    checks.test_it_learns(learnt, "fading")
    checks.test_it_differs_from_plain_fine_tuning_where_it_must(stream, learnt, "fading")
    checks.test_it_goes_on_where_it_stopped(learnt, tmp_path_factory.mktemp("stop"), monkeypatch, "fading", "in a step")
    for key, change in row["fading"].changes.items():
        checks.test_no_setting_is_dead(stream, "fading", key, change)
    for key, value in row["fading"].wrong.items():
        checks.test_a_wrong_value_is_refused_by_name(tmp_path_factory.mktemp("wrong"), "fading", key, value)


def test_the_page_lists_every_hook_and_flag() -> None:
    hooks = {
        name for name, part in vars(Method).items()
        if not name.startswith("_") and (inspect.isfunction(part) or isinstance(part, classmethod | property))
    }  # fmt: skip
    flags = {name for name, part in vars(Method).items() if isinstance(part, bool | str) and not name.startswith("_")}
    assert len(hooks) <= 15
    assert flags - {"keeps", "replays"} == FLAGS
    listed = re.findall(r"`(\w+)\(", "".join(re.findall(r"^\| `.*? \|", PAGE, flags=re.MULTILINE)))
    assert set(listed) == hooks | {"__init__"}
    assert all(f"| `{flag}` |" in PAGE for flag in FLAGS)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("matrix_checks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
