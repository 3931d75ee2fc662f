"""How each method is trained where the user says nothing: which rate, schedule and optimizer, and where it is told."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tinylm import constant_task, teach, weights

from seekr_cl.cli.main import main
from seekr_cl.config.rates import NoEffectWarning, rate_of_size
from seekr_cl.config.seekr_config import SeekrConfig, config_from
from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods import METHODS
from seekr_cl.report.comparison import compare
from seekr_cl.runs.stream_run import run
from seekr_cl.training import learn
from seekr_cl.training.run_identity import check_same_learning, decisive

TASKS = [constant_task("yes", "yes", 8), constant_task("no", "no", 8)]

# The numbers of the official scripts, as an audit of them wrote them down.
OFFICIAL: dict[str, tuple[float, str]] = {
    "olora": (1e-3, "constant"),
    "sdft": (2e-5, "cosine"),
    "slao": (1e-4, "cosine"),
    "inflora": (3e-4, "constant"),
    "sapt": (5e-5, "constant"),
    "tree_lora": (1e-4, "cosine"),
    "l2p": (0.03, "constant"),
    "progressive_prompts": (0.3, "constant"),
}


def make(folder: Path, **settings: Any) -> SeekrConfig:
    quiet = {"use_cpu": True, "progress": "none", "per_device_train_batch_size": 4, "num_train_epochs": 1}
    return config_from(quiet | {"logging_steps": 1} | settings, str(folder))


def said(folder: Path, **settings: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(folder, **settings)
    return [str(one.message) for one in caught if issubclass(one.category, NoEffectWarning)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_own_rate_or_that_of_all_weights(tmp_path: Path, name: str) -> None:
    config = make(tmp_path, method=name)
    rate, shape = OFFICIAL.get(name, (1e-5, "cosine"))
    assert (config.learning_rate, str(config.lr_scheduler_type.value)) == (rate, shape)
    source = "method" if name in OFFICIAL else "library"
    assert config.training_sources["learning_rate"] == source
    # Of slao's schedule its paper says nothing.
    assert config.training_sources["lr_scheduler_type"] == ("library" if name == "slao" else source)
    assert "adamw" in config.optim.value


def test_the_users_setting_wins_over_all(tmp_path: Path) -> None:
    config = make(tmp_path, method="olora", learning_rate="5e-4", lr_scheduler_type="linear", optim="sgd")
    assert (config.learning_rate, config.lr_scheduler_type.value, config.optim.value) == (5e-4, "linear", "sgd")
    assert set(config.training_sources.values()) == {"user"}
    # A preset's schedule gives way to the method's, the library's to the preset's.
    assert make(tmp_path, method="tree_lora", preset="official").lr_scheduler_type.value == "cosine"
    assert make(tmp_path, method="seekr", preset="official").training_sources["lr_scheduler_type"] == "preset"


def test_a_copy_with_another_method_has_that_ones_rate(tmp_path: Path) -> None:
    config = make(tmp_path, method="seqft")
    assert dataclasses.replace(config, method="olora").learning_rate == 1e-3
    assert dataclasses.replace(config, peft="lora").learning_rate == 2e-4
    own = dataclasses.replace(make(tmp_path, method="seqft", learning_rate=2e-3), method="olora")
    assert (own.learning_rate, own.training_sources["learning_rate"]) == (2e-3, "user")
    assert json.loads(json.dumps(config.to_dict()))["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("peft", "rate"), [("lora", 2e-4), ({"peft_type": "prompt_tuning", "num_virtual_tokens": 3}, 3e-2), ("ia3", 3e-3)]
)
@pytest.mark.parametrize("name", ["seqft", "seekr"])
def test_an_adapter_has_a_rate_at_which_it_learns(tmp_path: Path, name: str, peft: Any, rate: float) -> None:
    config = make(tmp_path, method=name, peft=peft)
    assert (config.learning_rate, config.training_sources["learning_rate"]) == (rate, "adapter")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"method": "olora", "learning_rate": 1e-5}, "10 times less than method olora needs (0.0001 to 0.001)"),
        ({"method": "l2p", "learning_rate": 1e-5}, "3000 times less than method l2p needs (0.03); it may hardly learn"),
        ({"method": "sapt", "learning_rate": 5e-4}, "10 times more than method sapt needs (5e-05); it may diverge"),
        ({"method": "ewc", "peft": "lora", "learning_rate": 1e-5}, "20 times less than an adapter needs (0.0002)"),
        ({"method": "olora", "learning_rate": 1e-4}, None),
        ({"method": "olora", "learning_rate": 9e-3}, None),
        ({"method": "olora"}, None),
        ({"method": "seqft", "learning_rate": 1.0}, None),
        ({"method": "olora", "learning_rate": 1e-5, "optim": "sgd"}, None),
        ({"method": "olora", "learning_rate": 0}, None),
    ],
)
def test_a_rate_ten_times_off_is_said(tmp_path: Path, settings: dict[str, Any], part: str | None) -> None:
    found = said(tmp_path, **settings)
    assert len(found) == (part is not None)
    assert part is None or part in found[0]
    assert not found or found[0].startswith("learning_rate: ")


@pytest.mark.parametrize("name", METHODS)
def test_an_optimizer_that_is_not_the_papers_is_said(tmp_path: Path, name: str) -> None:
    found = said(tmp_path, method=name)
    assert len(found) == (name in ("gem", "agem", "ogd", "rwalk"))
    assert not found or (found[0].startswith(f"{name}: optim is adamw") and "its paper's is sgd" in found[0])
    assert said(tmp_path, method=name, optim="sgd") == said(tmp_path, method=name, optim="adamw_torch") == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_olora_goes_on_at_the_later_rate_and_the_memory_has_it(base: Path, tmp_path: Path) -> None:
    done = teach(base, tmp_path, TASKS, make(tmp_path, method="olora"))
    rates = [{line["learning_rate"] for line in one.log if "learning_rate" in line} for one in done]
    assert rates == [{1e-3}, {1e-4}]
    recorded = [task.info["training"] for task in ReplayMemory.open(tmp_path / "memory").tasks]
    assert [(one["learning_rate"], one["optimizer_steps"]) for one in recorded] == [(1e-3, 2), (1e-4, 2)]
    assert recorded[1]["from"]["learning_rate"] == "method"
    assert [one.training for one in done] == recorded
    # One that is given holds for all tasks.
    done = teach(base, tmp_path / "own", TASKS, make(tmp_path, method="olora", learning_rate=2e-3))
    assert [one.training["learning_rate"] for one in done] == [2e-3, 2e-3]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_folder_goes_on_at_an_adapters_rate(base: Path, tmp_path: Path) -> None:
    learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m1", make(tmp_path, method="seqft", peft="lora"))
    plain = make(tmp_path, method="seqft")
    done = learn(tmp_path / "m1", TASKS[1], tmp_path / "memory", tmp_path / "m2", plain)
    assert (done.training["learning_rate"], done.training["from"]["learning_rate"]) == (2e-4, "adapter")
    before, after = weights(tmp_path / "m1"), weights(tmp_path / "m2")
    # AdamW's first steps are as large as the rate.
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-4
    slow = make(tmp_path, method="seqft", learning_rate=1e-5)
    with pytest.warns(NoEffectWarning, match="20 times less than an adapter needs"):
        learn(tmp_path / "m1", TASKS[1], tmp_path / "none", tmp_path / "m3", slow)


def test_methods_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    found = {one["name"]: one["training_defaults"] for one in json.loads(capsys.readouterr().out)}
    assert {name: one["learning_rate"] for name, one in found.items() if "learning_rate" in one} == {
        name: rate for name, (rate, _) in OFFICIAL.items()
    }
    assert found["olora"]["later_learning_rate"] == 1e-4
    assert found["ogd"]["paper_optim"] == "sgd"
    assert found["seqft"] == {}
    assert main(["methods"]) == 0
    assert "0.0001" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_runs_record_says_what_was_taken_and_from_where(base: Path, tmp_path: Path) -> None:
    config = make(tmp_path, method="olora", lr_scheduler_type="linear")
    run(base, TASKS, tmp_path / "run", config)
    scores, ledger = (json.loads((tmp_path / "run" / name).read_text()) for name in ("scores.json", "run.json"))
    source = {"learning_rate": "method", "lr_scheduler_type": "user", "optim": "library"}
    assert ledger["training_from"] == source
    assert (ledger["training"]["learning_rate"], ledger["training"]["later_learning_rate"]) == (1e-3, 1e-4)
    made = [(one["task"], one["learning_rate"], one["optimizer_steps"]) for one in scores["training"]]
    assert made == [("yes", 1e-3, 2), ("no", 1e-4, 2)]
    assert scores["training"][0]["from"] == source
    assert scores["training"][0]["lr_scheduler_type"] == "linear"
    (row,) = compare([tmp_path / "run"])["methods"]
    assert (row["learning_rates"], row["steps"]) == ([1e-3, 1e-4], 4)


def test_all_weights_of_a_small_model_take_a_higher_rate(base: Path, tmp_path: Path) -> None:
    rates = [rate_of_size(count) for count in (260_000, 135_000_000, 1_300_000_000, 7_000_000_000, 70_000_000_000)]
    assert rates == [5e-5, 5e-5, 2e-5, 1e-5, 5e-6]
    done = learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m", make(tmp_path, method="seqft"))
    assert (done.training["learning_rate"], done.training["from"]["learning_rate"]) == (5e-5, "model size")
    papers = make(tmp_path, method="seqft", preset="paper")
    done = learn(base, TASKS[0], tmp_path / "m2y", tmp_path / "m2", papers)
    assert (done.training["learning_rate"], done.training["from"]["learning_rate"]) == (1e-5, "library")


def test_what_was_begun_at_another_default_rate_does_not_go_on(tmp_path: Path) -> None:
    """The setting is the same number in both; the rate follows from the model's size by a rule that may change."""
    now = decisive(make(tmp_path, method="replay"))
    saved = {key: value for key, value in now.items() if key != "default_learning_rate"}
    with pytest.raises(ConfigError, match=r"another default_learning_rate \(None, now 'by model size"):
        check_same_learning({"training": saved}, {"training": now}, "x")
    lora = {"peft": {"r": 2, "target_modules": "all-linear"}}
    for other in ({"method": "replay", "learning_rate": 1e-5}, {"method": "sdft"}, {"method": "replay"} | lora):
        assert "default_learning_rate" not in decisive(make(tmp_path, **other))
