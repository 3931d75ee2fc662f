"""Several processes are one: B samples on each of two are 2 B on one, whatever the method.

The cases are those of ``cases.py``.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import fingerprint
from matrix import ROWS
from pair import Pair, learn_two, pair
from recorded import assert_same_curves, curves
from safetensors.torch import load_file, save_file
from tinylm import assert_same, config_for, differs, memory_tensors, weights

from cases import CASES, LORA, SEEKR, settings_of, tolerance_of, words_of
from seekr_cl.methods import get_method
from seekr_cl.training.fsdp_loading import hindrance

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What accelerate's launcher makes of a config with ``fsdp_version: 2``."""
SHARDS = FSDP2 | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
ONCE = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
"""What it adds by default."""
SHARDED = [
    name
    for name in CASES
    if name in ("seekr-measured", "seekr-checkpointed", "seekr-lora", "seekr-adapter", "seekr-projected")
    or name in ("derpp-prompt", "replay-by-updates", "seekr-packed")
    or (name in ROWS and get_method(name).weight_access != "whole")
]


NEEDS_WHOLE: list[tuple[dict[str, Any], str]] = [
    ({"optim": "muon", "learning_rate": 0.01}, "optim: muon needs whole matrices"),
    ({"average": {"kind": "ema", "decay": 0.5}}, "average does not support sharded weights"),
]
"""Settings that look at whole weights, and what is said where an engine holds them in pieces."""


@pytest.fixture(scope="module")
def two() -> Iterator[Pair]:
    with pair() as processes:
        yield processes


@pytest.fixture(scope="module")
def sharded() -> Iterator[Pair]:
    with pair(**FSDP2) as processes:
        yield processes


@pytest.fixture(scope="module")
def once() -> Iterator[Pair]:
    with pair(**FSDP2, **ONCE) as processes:
        yield processes


def assert_same_outcome(left: Path, right: Path, name: str) -> None:
    factor = tolerance_of(name)
    assert_same_curves(curves(left), curves(right), factor)
    assert_same(weights(left / "m2"), weights(right / "m2"), factor * 2e-6)
    assert_same(memory_tensors(left / "memory"), memory_tensors(right / "memory"), factor * 2e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_two_processes_are_one(
    bases: dict[str, Path], one: Callable[[str], Path], two: Pair, tmp_path: Path, name: str
) -> None:
    assert two.ask(bases["llama"], tmp_path, words_of(name), settings_of(CASES[name], 2)) == ["", ""]
    assert differs(weights(tmp_path / "m2"), weights(bases["llama"])), "nothing was learnt"
    assert_same_outcome(one(name), tmp_path, name)


@pytest.mark.parametrize("name", ["seekr", "lwf", "seekr-lora"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_logits_of_a_sharded_model_in_chunks(
    bases: dict[str, Path], one: Callable[[str], Path], sharded: Pair, tmp_path: Path, name: str
) -> None:
    settings = settings_of(CASES[name], 2) | {"chunk": 2}
    assert sharded.ask(bases["llama"], tmp_path, words_of(name), settings) == ["", ""]
    assert_same_outcome(one(name), tmp_path, name)


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_sharded_model_is_a_whole_one(
    bases: dict[str, Path], one: Callable[[str], Path], sharded: Pair, tmp_path: Path, name: str
) -> None:
    """FSDP2 is one process, and so it is DDP."""
    assert sharded.ask(bases["llama"], tmp_path, words_of(name), settings_of(CASES[name], 2)) == ["", ""]
    assert_same_outcome(one(name), tmp_path, name)


@pytest.mark.parametrize("name", ["inscl", "seekr-adapter", "seekr-packed"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_only_the_first_process_loads_a_large_model(
    bases: dict[str, Path], sharded: Pair, once: Pair, tmp_path: Path, name: str
) -> None:
    """The other one's weights are none, and change no bit; of an adapter of rank one it has rows of half the parts."""
    rank_one = {"peft": LORA | {"r": 1}, "optim": "adamw_torch", "checkpoint_every": 2}
    settings = settings_of(CASES[name] | (rank_one if "peft" in CASES[name] else {}), 2)
    other = shutil.copytree(bases["llama"], tmp_path / "other")
    weightless = {key: torch.full_like(t, torch.nan) for key, t in load_file(other / "model.safetensors").items()}
    save_file(weightless, other / "model.safetensors", {"format": "pt"})
    by_all, by_first = tmp_path / "by_all", tmp_path / "by_first"
    assert sharded.ask(bases["llama"], by_all, words_of(name), settings) == ["", ""]
    base_of = {"1": str(other)}
    assert once.ask(bases["llama"], by_first, words_of(name), settings, base_of=base_of) == ["", ""]
    assert differs(weights(by_first / "m2"), weights(by_first / "m1"))
    assert fingerprint(by_first) == fingerprint(by_all)


def test_another_model_in_another_process_is_refused(bases: dict[str, Path], once: Pair, tmp_path: Path) -> None:
    settings = settings_of(CASES["seqft"], 2)
    answers = once.ask(bases["llama"], tmp_path, words_of("seqft"), settings, base_of={"1": str(bases["qwen3"])})
    assert all("ModelError: fsdp_cpu_ram_efficient_loading: " in answer for answer in answers)


def test_settings_that_need_all_of_a_model_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, needs in (("lwf", "method lwf"), ("olora", "method olora"), ("ewc", None), ("seekr", None)):
        assert hindrance(config_for(name, tmp_path)) == needs
    config = config_for("seqft", tmp_path, peft="lora")
    # Not given as a setting, since bitsandbytes may be missing here.
    config.quantization = "4bit"
    assert hindrance(config) == "quantization: 4bit"
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert hindrance(config_for("seqft", tmp_path)) == "fsdp_offload_params"


def test_methods_on_whole_weights_refuse_shards(bases: dict[str, Path], sharded: Pair, tmp_path: Path) -> None:
    answers = sharded.ask(bases["llama"], tmp_path, words_of("olora"), settings_of(CASES["olora"], 2))
    assert all("ConfigError: FSDP: method olora works on single weights" in answer for answer in answers)
    assert all(answer.rstrip().endswith("train with DDP") for answer in answers)
    assert not (tmp_path / "m1").exists()


@pytest.mark.parametrize(("settings", "said"), NEEDS_WHOLE, ids=["muon", "average"])
def test_settings_on_whole_weights_refuse_shards(
    bases: dict[str, Path], sharded: Pair, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    answers = sharded.ask(bases["llama"], tmp_path, words_of("seqft"), settings_of(CASES["seqft"] | settings, 2))
    assert all(f"ConfigError: FSDP: {said}; use DDP" in answer for answer in answers), answers
    assert not (tmp_path / "m1").exists()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_an_average_under_ddp(bases: dict[str, Path], two: Pair, tmp_path: Path) -> None:
    """What its refusal advises. Muon would blow up rounding, since its steps in all directions are alike."""
    alone, together, case = tmp_path / "alone", tmp_path / "together", CASES["seqft"] | NEEDS_WHOLE[1][0]
    learn_two(bases["llama"], alone, words_of("seqft"), settings_of(case, 4))
    assert two.ask(bases["llama"], together, words_of("seqft"), settings_of(case, 2)) == ["", ""]
    assert_same_outcome(alone, together, "seqft")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_processes_are_one(bases: dict[str, Path], two: Pair, tmp_path: Path) -> None:
    """DDP's module is inside the compiled one then. Both take long to begin, and each waits for the other."""
    case = CASES["derpp"] | {"measure_every": 1, "gradient_accumulation_steps": 2}
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    alone, together = tmp_path / "alone", tmp_path / "together"
    learn_two(bases["llama"], alone, {"count": 6}, settings_of(case, 4))
    answers = two.ask(bases["llama"], together, {"count": 6}, settings_of(case | compiled, 2))
    assert answers == ["", ""]
    assert_same_outcome(alone, together, "derpp")


def test_weights_of_another_type_are_refused(bases: dict[str, Path], sharded: Pair, once: Pair, tmp_path: Path) -> None:
    settings = settings_of({"method": "seqft", "dtype": "bfloat16", "bf16": True}, 2)
    for name, processes in (("sharded", sharded), ("once", once)):
        answers = processes.ask(bases["llama"], tmp_path / name, words_of("seqft"), settings)
        assert all("ConfigError: FSDP: mixed precision makes the weights float32" in answer for answer in answers)


@pytest.mark.parametrize(
    ("name", "environment", "fault"),
    [
        ("seekr", {}, "learn.step:16"),
        # What it gathers between steps, and from task to task, is sharded too.
        ("rwalk", SHARDS, "learn.step:16"),
        ("seekr", FSDP2 | ONCE, "learn.step:16"),
        ("seekr", SHARDS, "learn.scored:2"),
    ],
    ids=["ddp", "fsdp2-shards", "fsdp2-once", "fsdp2-shards-scored"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_killed_process_is_as_if_it_had_not_been(
    bases: dict[str, Path], two: Pair, sharded: Pair, tmp_path: Path, name: str, environment: dict[str, str], fault: str
) -> None:
    """SIGKILL to the second process in the second task, in its middle or after it; both start again and go on."""
    method = SEEKR | {"lambda2": "auto"} if name == "seekr" else CASES[name]["method"]
    settings = settings_of({"method": method, "optim": "adamw_torch", "checkpoint_every": 2}, 2)
    settings |= {"num_train_epochs": 2, "learning_rate": 1e-3}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (sharded if environment else two).ask(bases["llama"], whole, words_of(name), settings) == ["", ""]
    with pair(**environment) as first:
        answers = first.ask(bases["llama"], killed, words_of(name), settings, fault=fault, rank=1)
        assert answers[1] == "no answer", "it was not killed"
        assert answers[0] not in ("", "no answer"), "the other went on, or waits for ever"
    checkpoint = max(killed.glob("m2.checkpoints/0*"))
    for part in ("weights",) if "scored" in fault else ("weights", "optimizer"):
        pieces = [load_file(path) for path in checkpoint.glob(f"{part}.*-of-00002.safetensors")]
        assert len(pieces) == (2 if environment.items() >= SHARDS.items() else 0)
        # The first process may hold a row more of each tensor.
        sizes = [sum(tensor.numel() for tensor in piece.values()) for piece in pieces]
        assert not pieces or max(sizes) < 0.6 * sum(sizes), "a process wrote more than its share"
    with pair(first_seed=2, **environment) as second:
        assert second.ask(bases["llama"], killed, words_of(name), settings, resume=True) == ["", ""]
    assert fingerprint(killed) == fingerprint(whole)
