"""The demo's ingredients and the demo itself, small, in real processes."""

import json
import random
from pathlib import Path

import pytest
from zygote import run_seekr

from seekr_cl.demo import variants
from seekr_cl.demo.skills import BASE_SKILLS, MAX_CHARACTERS, STREAM_SKILLS, VOCABULARY, examples
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation import evaluate_task
from seekr_cl.models.loading import load_model
from seekr_cl.tasks import Encoder, Task

MODEL = Path(variants.__file__).parent / "model"
SKILLS = [*BASE_SKILLS, *STREAM_SKILLS]


def test_at_least_five_tasks_and_a_model_under_four_megabytes():
    assert len(STREAM_SKILLS) >= 5
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 4_000_000


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_examples_are_repeatable_distinct_and_within_the_vocabulary(skill):
    rows = examples(skill, 60, seed=3)
    assert rows == examples(skill, 60, seed=3)
    assert rows != examples(skill, 60, seed=4)
    assert len({row["prompt"] for row in rows}) == 60
    for row in rows:
        assert set(row["prompt"] + row["completion"]) <= set(VOCABULARY)
        assert 0 < len(row["completion"]) <= MAX_CHARACTERS - len(row["prompt"])


@pytest.mark.parametrize(
    ("skill", "answer"),
    [("reverse", lambda w: w[::-1]), ("vowels", lambda w: "".join(c for c in w if c in "aeiou"))],
)
def test_a_skill_does_what_it_is_called(skill, answer):
    (found,) = [one for one in STREAM_SKILLS if one.name == skill]
    prompt, completion = found.make(random.Random(5))
    assert completion == answer(prompt.removeprefix(f"{skill}: ").removesuffix("="))


@pytest.mark.parametrize("skill", BASE_SKILLS, ids=lambda skill: skill.name)
def test_the_shipped_model_masters_the_base_skills(skill, tmp_path):
    model, tokenizer = load_model(MODEL)
    (tmp_path / "test.json").write_text(json.dumps(examples(skill, 40, seed=77)))
    file = str(tmp_path / "test.json")
    task = Task.load({"train": file, "test": file}, name=skill.name, max_new_tokens=14)
    assert evaluate_task(model, tokenizer, task, Encoder(tokenizer, 64), 40).score >= 95


def test_quick_demo_in_a_real_process(tmp_path):
    words = ["demo", "--quick", "--output", tmp_path / "out"]
    done = run_seekr([*words, "--methods", "seqft", "seekr+general", "num_train_epochs=2"], tmp_path)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert list(results) == ["seqft", "seekr+general"]
    for result in results.values():
        assert set(result) == {"op", "bwt", "base", "seconds", "memory_bytes"}
    assert results["seekr+general"]["memory_bytes"] > results["seqft"]["memory_bytes"]
    for name in (
        "comparison.png",
        "base_skills.png",
        "runs/seqft/scores.json",
        "runs/seekr+general/memory/manifest.json",
    ):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert "seekr+general" in done.out
    again = run_seekr(words)
    assert again.code == 2
    assert "not empty" in again.err


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'derpp'"):
        variants.make_variant("derp", 0, "base.json", {})


def test_settings_reach_only_the_methods_that_know_them():
    changes = {"method": {"heads": "random"}, "replay": {"every": 2}, "learning_rate": 1e-3}
    seekr, seqft = (variants.make_variant(name, 0, "g", changes).settings for name in ("seekr", "seqft"))
    assert seekr["method"]["heads"] == "random"
    assert seekr["replay"]["every"] == 2
    assert "heads" not in seqft["method"]
    assert "replay" not in seqft
    assert seqft["learning_rate"] == 1e-3
