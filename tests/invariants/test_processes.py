"""Several processes are one: B samples on each of two are 2 B on one, whatever the method.

Per-step losses and gradient norms are compared as curves: by the largest difference, and by the mean one, in which a
drift shows that stays below the noise at every single step.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import fingerprint
from matrix import ROWS
from pair import Pair, learn_two, pair
from safetensors.torch import load_file
from tinylm import PLAIN_SGD, assert_same, differs, memory_tensors, weights

from seekr_cl.methods import get_method
from seekr_cl.training.trainer import looks_at_weights

WORDS = {"count": 18}
"""Not a multiple of the batch: the last one leaves a process with less than the other."""
REPLAY = {"samples": 5, "every": 1}
"""Five samples in batches of four: in the last one a process has none."""
LARGEST, MEAN = 5e-5, 5e-6
"""Relative to each value, or to one for smaller ones."""

CASES: dict[str, dict[str, Any]] = {name: {"method": {"name": name} | row.invariants} for name, row in ROWS.items()}
SEEKR = {"name": "seekr"} | ROWS["seekr"].invariants
GENERAL = Path(__file__).with_name("general.jsonl")
LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
CASES |= {
    # Gradients are measured term by term, in micro-batches after which nothing is reduced too.
    "seekr-measured": {
        "method": SEEKR,
        "measure_every": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
    },
    "seekr-joint": {"method": SEEKR, "replay": REPLAY | {"step": "joint"}, "gradient_accumulation_steps": 2},
    "seekr-checkpointed": {
        "method": SEEKR,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "replay-by-batches": {"method": "replay", "loss_average": "micro_batches"},
    "seekr-by-loss": {"method": SEEKR, "replay": REPLAY | {"choice": "loss", "task_weights": "similarity"}},
    "seekr-lora": {"method": SEEKR, "peft": LORA},
    # Of two earlier adapters a process may have to ask one that the other does not.
    "seekr-adapter": {"method": SEEKR | {"teacher": "adapter"}, "peft": LORA, "general": str(GENERAL)},
    "derpp-prompt": {"method": "derpp", "peft": {"peft_type": "prompt_tuning", "num_virtual_tokens": 3}},
}


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What accelerate's launcher makes of a config with ``fsdp_version: 2``."""
SHARDS = FSDP2 | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
SHARDED = [
    name
    for name in CASES
    if name in ("seekr-measured", "seekr-checkpointed", "seekr-lora", "seekr-adapter", "derpp-prompt")
    or (name in ROWS and not looks_at_weights(get_method(name)))
]


@pytest.fixture(scope="module")
def two() -> Iterator[Pair]:
    with pair() as processes:
        yield processes


@pytest.fixture(scope="module")
def sharded() -> Iterator[Pair]:
    with pair(**FSDP2) as processes:
        yield processes


@pytest.fixture(scope="module")
def one(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A case learnt in one process, once."""
    done: dict[str, Path] = {}

    def learnt(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("one")
            learn_two(bases["llama"], done[name], WORDS, settings_of(CASES[name], 4))
        return done[name]

    return learnt


def settings_of(case: dict[str, Any], batch: int) -> dict[str, Any]:
    name = case["method"] if isinstance(case["method"], str) else case["method"]["name"]
    kind = get_method(name)
    kept = REPLAY if kind.replays else {"samples": REPLAY["samples"]}
    return PLAIN_SGD | ({"replay": kept} if kind.keeps else {}) | {"per_device_train_batch_size": batch} | case


def curves(folder: Path) -> dict[str, list[float]]:
    """Every number of every line of both tasks' logs, by name."""
    found: dict[str, list[float]] = {}
    for task in ("m1", "m2"):
        for line in json.loads((folder / task / "training_log.json").read_text()):
            for key, value in line.items():
                if key.startswith(("loss", "grad_norm", "share_", "weight_")):
                    found.setdefault(f"{task}/{key}", []).append(value)
    return found


def assert_same_curves(left: dict[str, list[float]], right: dict[str, list[float]], factor: float = 1.0) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        others = right[name]
        assert len(values) == len(others) > 0
        apart = [(one - other) / max(1.0, abs(one)) for one, other in zip(values, others)]
        assert max(map(abs, apart)) <= factor * LARGEST, f"{name}: {apart}"
        assert abs(sum(apart)) / len(apart) <= factor * MEAN, f"{name}: {apart}"


def assert_same_outcome(left: Path, right: Path, name: str) -> None:
    factor = ROWS.get(name, ROWS["seekr"]).tolerance
    assert_same_curves(curves(left), curves(right), factor)
    assert_same(weights(left / "m2"), weights(right / "m2"), factor * 2e-6)
    assert_same(memory_tensors(left / "memory"), memory_tensors(right / "memory"), factor * 2e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_two_processes_are_one(
    bases: dict[str, Path], one: Callable[[str], Path], two: Pair, tmp_path: Path, name: str
) -> None:
    assert two.ask(bases["llama"], tmp_path, WORDS, settings_of(CASES[name], 2)) == ["", ""]
    assert differs(weights(tmp_path / "m2"), weights(bases["llama"])), "nothing was learnt"
    assert_same_outcome(one(name), tmp_path, name)


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_sharded_model_is_a_whole_one(
    bases: dict[str, Path], one: Callable[[str], Path], sharded: Pair, tmp_path: Path, name: str
) -> None:
    """FSDP2 is one process, and so it is DDP."""
    assert sharded.ask(bases["llama"], tmp_path, WORDS, settings_of(CASES[name], 2)) == ["", ""]
    assert_same_outcome(one(name), tmp_path, name)


def test_methods_on_single_weights_refuse_shards(bases: dict[str, Path], sharded: Pair, tmp_path: Path) -> None:
    answers = sharded.ask(bases["llama"], tmp_path, WORDS, settings_of(CASES["ewc"], 2))
    assert all("ConfigError: FSDP: " in answer and "ewc" in answer for answer in answers)
    assert not (tmp_path / "m1").exists()


def test_compiling_is_refused_under_ddp(bases: dict[str, Path], two: Pair, tmp_path: Path) -> None:
    answers = two.ask(bases["llama"], tmp_path, WORDS, settings_of(CASES["seqft"] | {"torch_compile": True}, 2))
    assert all("ConfigError: torch_compile: does not train under DDP" in answer for answer in answers)


@pytest.mark.parametrize(
    ("environment", "fault"),
    [({}, "learn.step:16"), (FSDP2, "learn.step:16"), (SHARDS, "learn.step:16"), (SHARDS, "learn.scored:2")],
    ids=["ddp", "fsdp2", "fsdp2-shards", "fsdp2-shards-scored"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_killed_process_is_as_if_it_had_not_been(
    bases: dict[str, Path], two: Pair, sharded: Pair, tmp_path: Path, environment: dict[str, str], fault: str
) -> None:
    """SIGKILL to the second process in the second task, in its middle or after it; both start again and go on."""
    settings = settings_of({"method": SEEKR | {"lambda2": "auto"}, "optim": "adamw_torch", "checkpoint_every": 2}, 2)
    settings |= {"num_train_epochs": 2, "learning_rate": 1e-3}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (sharded if environment else two).ask(bases["llama"], whole, WORDS, settings) == ["", ""]
    with pair(**environment) as first:
        answers = first.ask(bases["llama"], killed, WORDS, settings, fault=fault, rank=1)
        assert answers[1] == "no answer", "it was not killed"
        assert answers[0] not in ("", "no answer"), "the other went on, or waits for ever"
    checkpoint = max(killed.glob("m2.checkpoints/0*"))
    for part in ("weights",) if "scored" in fault else ("weights", "optimizer"):
        pieces = [load_file(path) for path in checkpoint.glob(f"{part}.*-of-00002.safetensors")]
        assert len(pieces) == (2 if environment == SHARDS else 0)
        # The first process may hold a row more of each tensor.
        sizes = [sum(tensor.numel() for tensor in piece.values()) for piece in pieces]
        assert not pieces or max(sizes) < 0.6 * sum(sizes), "a process wrote more than its share"
    with pair(**environment) as second:
        assert second.ask(bases["llama"], killed, WORDS, settings, resume=True) == ["", ""]
    assert fingerprint(killed) == fingerprint(whole)
