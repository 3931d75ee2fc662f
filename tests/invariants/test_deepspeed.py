"""DeepSpeed's ZeRO on two processes is one process, and a killed training goes on to the last bit."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from deep import SETTING, needs_deepspeed
from killing import fingerprint
from pair import Pair, learn_two, pair
from test_processes import NEEDS_WHOLE, assert_same_outcome
from tinylm import differs, weights

from cases import CASES, SEEKR, settings_of, words_of

pytestmark = [
    needs_deepspeed,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup_steps": 3}
# The default makes whole steps of gradients that are rounding.
ADAM |= {"adam_epsilon": 1e-3}
CASES_HERE = {
    name: CASES[name]
    for name in ("seqft", "icarl", "onpolicy_replay", "seekr-measured", "seekr-joint", "seekr-adapter")
}
CASES_HERE |= {"seekr-adam": {"method": SEEKR | {"lambda2": "auto"}} | ADAM}


def zero_pair(stage: int, folder: Path, first_seed: int = 1) -> AbstractContextManager[Pair]:
    """Two processes with what accelerate's launcher makes of a config; small weights, too, are cut up in stage 3."""
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "train_batch_size")
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    config = folder / f"zero{stage}.json"
    config.write_text(json.dumps({"zero_optimization": zero} | dict.fromkeys(auto, "auto")))
    return pair(setting=SETTING, first_seed=first_seed, **SETTING, ACCELERATE_DEEPSPEED_CONFIG_FILE=str(config))


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Pair]]:
    """Two processes of a stage, started when they are first asked for."""
    folder, started = tmp_path_factory.mktemp("zero"), {}

    def of_stage(stage: int) -> Pair:
        if stage not in started:
            context = zero_pair(stage, folder)
            started[stage] = context, context.__enter__()
        return started[stage][1]

    yield of_stage
    for context, _ in started.values():
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, Path]:
    """By stage the trainings that were not killed, once they are there."""
    return {}


@pytest.mark.parametrize(
    ("stage", "name"), [(2, "seekr-joint"), (2, "seekr-adam"), *((3, name) for name in CASES_HERE)], ids=str
)
def test_zero_is_one_process(
    bases: dict[str, Path], zero: Callable[[int], Pair], tmp_path: Path, stage: int, name: str
) -> None:
    case: dict[str, Any] = CASES_HERE[name]
    alone, together = tmp_path / "alone", tmp_path / "together"
    learn_two(bases["llama"], alone, words_of(name), settings_of(case, 4))
    assert zero(stage).ask(bases["llama"], together, words_of(name), settings_of(case, 2)) == ["", ""]
    assert differs(weights(together / "m2"), weights(bases["llama"])), "nothing was learnt"
    assert_same_outcome(alone, together, name)


@pytest.mark.parametrize(("settings", "said"), NEEDS_WHOLE, ids=["muon", "average"])
def test_settings_on_whole_weights_are_refused(
    bases: dict[str, Path], zero: Callable[[int], Pair], tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    answers = zero(3).ask(bases["llama"], tmp_path, words_of("seqft"), settings_of(CASES["seqft"] | settings, 2))
    assert all(f"ConfigError: DeepSpeed: {said}; use DDP" in answer for answer in answers), answers
    assert not (tmp_path / "m1").exists()


@pytest.mark.parametrize(
    ("stage", "fault"), [(2, "learn.step:16"), (3, "learn.step:16"), (3, "learn.scored:2")], ids=str
)
def test_a_killed_process_is_as_if_it_had_not_been(
    bases: dict[str, Path],
    zero: Callable[[int], Pair],
    undisturbed: dict[int, Path],
    tmp_path: Path,
    stage: int,
    fault: str,
) -> None:
    settings = settings_of(
        {"method": SEEKR | {"lambda2": "auto"}, "checkpoint_every": 2, "num_train_epochs": 2} | ADAM, 2
    )
    killed = tmp_path / "killed"
    if stage not in undisturbed:
        undisturbed[stage] = tmp_path / "whole"
        assert zero(stage).ask(bases["llama"], undisturbed[stage], words_of("seekr"), settings) == ["", ""]
    whole = undisturbed[stage]
    with zero_pair(stage, tmp_path, first_seed=2) as first:
        answers = first.ask(bases["llama"], killed, words_of("seekr"), settings, fault=fault, rank=1)
        assert answers[1] == "no answer", "it was not killed"
        assert answers[0] not in ("", "no answer"), "the other went on, or waits for ever"
    assert list(killed.glob("m2.checkpoints/0*")), "nothing to go on from"
    # Those that wait are new processes for this training: nothing in them knows of it.
    assert zero(stage).ask(bases["llama"], killed, words_of("seekr"), settings, resume=True) == ["", ""]
    assert fingerprint(killed) == fingerprint(whole)


def test_weights_of_another_type_are_refused(
    bases: dict[str, Path], zero: Callable[[int], Pair], tmp_path: Path
) -> None:
    case = {"method": SEEKR, "bf16": True}
    answers = zero(2).ask(bases["llama"], tmp_path / "no", words_of("seekr"), settings_of(case, 2))
    assert all("ConfigError: DeepSpeed: " in answer and "dtype: bfloat16" in answer for answer in answers)
    case |= {"dtype": "bfloat16"}
    assert zero(2).ask(bases["llama"], tmp_path / "yes", words_of("seekr"), settings_of(case, 2)) == ["", ""]


def test_what_looks_at_single_weights_refuses_zero(
    bases: dict[str, Path], zero: Callable[[int], Pair], tmp_path: Path
) -> None:
    answers = zero(3).ask(bases["llama"], tmp_path, words_of("ewc"), settings_of(CASES["ewc"], 2))
    assert all("ConfigError: DeepSpeed: method ewc works on single weights" in answer for answer in answers)
    assert all("train with DDP or FSDP2" in answer for answer in answers)
    clock = CASES["replay-by-updates"]
    answers = zero(3).ask(bases["llama"], tmp_path / "clock", words_of("replay"), settings_of(clock, 2))
    assert all("ConfigError: DeepSpeed: " in answer and "replay.clock: updates" in answer for answer in answers)
    assert not (tmp_path / "m1").exists()
