"""Old tasks probed while a new one is learned: what is measured, and what a drop leads to."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tinylm import assert_same, config_for, constant_task, logits_in_chunks, save_base, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from seekr_cl.errors import ConfigError, TrainingError
from seekr_cl.memory import ReplayMemory, TaskSamples
from seekr_cl.training import RetentionConfig, SeekrConfig, learn
from seekr_cl.training.probing import Probe, ProbeSet, measure
from seekr_cl.training.retention import RetentionProbe, RetentionWarning, measure_all, summary
from seekr_cl.training.tracker import TrackedTraining, Tracker

SETTINGS: dict[str, Any] = {"replay": {"samples": 12}, "learning_rate": 0.02, "num_train_epochs": 4}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has learned to say yes, and its memory."""
    folder = tmp_path_factory.mktemp("learned")
    save_base(folder / "base")
    config = config_for("derpp", folder, **SETTINGS)
    learn(folder / "base", constant_task("yes", "yes"), folder / "memory", folder / "m1", config)
    return folder


def second(learned: Path, folder: Path, resume: bool = False, **retention: Any) -> Any:
    """Learns to say no; the questions are other ones, and yes is forgotten on the way."""
    if not resume:
        folder.mkdir()
        shutil.copytree(learned / "memory", folder / "memory")
    config = config_for("derpp", folder, **SETTINGS, retention={"probe_every": 4, "max_drop": 1} | retention)
    return learn(learned / "m1", constant_task("no", "no"), folder / "memory", folder / "m2", config, resume=resume)


@pytest.fixture(scope="module")
def warned(learned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("warned") / "run"
    with pytest.warns(RetentionWarning, match="step 8: 'yes' fell by .* points of answer probability"):
        return folder, second(learned, folder, on_drop="warn")


def test_probes_are_what_the_models_say(learned: Path, warned: tuple[Path, Any]) -> None:
    """By hand: likelihood and greedy answer of a new task's first example, before and after."""
    folder, done = warned
    old, new = done.retention["tasks"]
    assert (old["task"], old["kind"], old["source"]) == ("yes", "old", "memory")
    assert (new["task"], new["kind"]) == ("no", "new")
    task = constant_task("no", "no")
    example = getattr(task, new["source"])[0]
    tokenizer = AutoTokenizer.from_pretrained(folder / "m2")
    for side, place in (("before", learned / "m1"), ("after", folder / "m2")):
        model = AutoModelForCausalLM.from_pretrained(place).eval()
        prompt = tokenizer(example.prompt)["input_ids"]
        answer = tokenizer(example.completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chances = logits.log_softmax(-1)[range(len(answer)), answer]
        assert new[side]["log_likelihood"][0] == pytest.approx(float(chances.mean()), abs=1e-4)
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=len(answer), do_sample=False)[0, len(prompt) :]
        assert new[side]["exact"][0] == (greedy.tolist() == answer)
    # The signals are those of the model that has just learned the task, so nothing has moved before the next.
    assert max(old["before"]["kl"]) < 1e-3 < min(old["after"]["kl"])
    assert new["before"]["kl"] == [None] * len(new["before"]["exact"])


def test_every_probe_and_drop_is_in_the_log(warned: tuple[Path, Any]) -> None:
    _, done = warned
    probed = {line["step"]: line["retention/yes"] for line in done.retention["probes"]}
    assert list(probed) == list(range(4, done.steps, 4))
    before = [100 * math.exp(value) for value in done.retention["tasks"][0]["before"]["log_likelihood"]]
    for action in done.retention["actions"]:
        assert action["retention_action"] == "warn"
        fell = sum(before) / len(before) - probed[action["step"]]
        assert f"fell by {fell:.1f} points" in action["retention_told"]
        assert fell > 1
    assert done.retention["actions"]
    assert done.retention["probes"][0] in done.log


def test_more_replay_keeps_more(learned: Path, warned: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.warns(RetentionWarning):
        done = second(learned, tmp_path / "more", on_drop="more_replay")

    def later(result: Any) -> float:
        """The first probe comes before the first action."""
        return min(line["retention/yes"] for line in result.retention["probes"][1:])

    assert later(done) > later(warned[1])
    # A pass over 12 samples in batches of 4 for each action, in steps of their own.
    extra = done.training["replay_steps"] - warned[1].training["replay_steps"]
    size = config_for("derpp", tmp_path, **SETTINGS).per_device_train_batch_size
    assert extra == len(done.retention["actions"]) * math.ceil(12 / size) > 0
    assert done.training["new_steps"] == warned[1].training["new_steps"]


def test_stop_replaces_nothing_and_goes_on_as_if_never_stopped(
    learned: Path, warned: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "stop"
    with pytest.warns(RetentionWarning), pytest.raises(TrainingError, match=r"retention: step \d+: 'yes' fell by"):
        second(learned, folder, on_drop="stop")
    assert not (folder / "m2").exists()
    with pytest.warns(RetentionWarning):
        done = second(learned, folder, resume=True, on_drop="warn")
    assert_same(weights(folder / "m2"), weights(warned[0] / "m2"))
    assert done.retention["tasks"] == warned[1].retention["tasks"]
    assert done.retention["probes"] == warned[1].retention["probes"]


@pytest.mark.parametrize(
    ("method", "retention", "said"),
    [
        ("seqft", {"probe_every": 5}, "retention: method seqft keeps no samples of old tasks"),
        ("ewc", {"samples": 5}, "keeps no samples of old tasks"),
        ("derpp", {"on_drop": "stop"}, "retention.on_drop: would be ignored; set retention.probe_every"),
        ("derpp", {"max_drop": 5}, "retention.max_drop: would be ignored"),
        ("derpp", {"probe_every": 0}, "retention.probe_every: 0 must be at least 1"),
        ("derpp", {"probe_every": 5, "samples": 0}, "retention.samples: 0 leaves"),
        ("derpp", {"probe_every": 5, "on_drop": "panic"}, "retention.on_drop: 'panic' is unknown"),
        ("derpp", {"prob_every": 5}, "unknown key 'prob_every'; did you mean 'probe_every'"),
    ],
)
def test_what_could_not_be_done_is_refused(tmp_path: Path, method: str, retention: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        SeekrConfig(output_dir=str(tmp_path), use_cpu=True, method=method, retention=retention)


def test_a_run_scores_tests_and_probes_only_if_asked(tmp_path: Path) -> None:
    config = config_for("derpp", tmp_path, retention={})
    assert (config.retention.count(evaluated=False), config.retention.count(evaluated=True)) == (32, 0)
    asked = config_for("derpp", tmp_path, retention={"probe_every": 5})
    assert asked.retention.count(evaluated=True) == 32


def test_any_name_twice_and_numbers_that_are_none(learned: Path) -> None:
    """An action is not taken for a probe; of a set without a finite number nothing is said."""
    model: Any = AutoModelForCausalLM.from_pretrained(learned / "m1").eval()
    store = ReplayMemory.open(learned / "memory")
    sets = [
        ProbeSet(name, "old", "memory", [Probe(one.ids_L, one.spans) for one in store.tasks[0].samples], before)
        for name, before in [("action", {"log_likelihood": [0.0] * 12})] * 2 + [("x", {"log_likelihood": [None] * 12})]
    ]
    state = TrainerState(global_step=1, max_steps=9)
    trainer = SimpleNamespace(_network=model, log=state.log_history.append)
    watch = RetentionProbe(trainer, RetentionConfig(probe_every=1, max_drop=0.1), sets, TaskSamples([]), 4, 0)
    with pytest.warns(RetentionWarning, match=r"'action \(2\)' fell"):
        watch.on_step_end(None, state, None)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(math.nan)
    watch.on_step_end(None, state, None)
    TrackedTraining(Tracker(), "t", [], []).on_train_end(None, state, None)
    found = summary(sets, measure_all(model, sets), state.log_history)
    assert [set(line) for line in found["probes"]] == [{"retention/action", "retention/action (2)"}]
    assert [line["retention_task"] for line in found["actions"]] == ["action", "action"]
    assert json.loads(json.dumps(found, allow_nan=False))["tasks"][2]["after"]["log_likelihood"] == [None] * 12


@pytest.mark.parametrize("positions", [None, 5])
def test_a_probe_depends_on_no_other(learned: Path, positions: int | None) -> None:
    """In float64, answers of several turns and one that nothing comes before among them, and logits in chunks."""
    model: Any = AutoModelForCausalLM.from_pretrained(learned / "m1", dtype=torch.float64).eval()
    store = ReplayMemory.open(learned / "memory")
    probes = [Probe(one.ids_L, one.spans, one.logits) for one in store.tasks[0].samples]
    ids_L = torch.arange(4, 24)
    probes += [Probe(ids_L[:9], ((2, 4), (6, 9))), Probe(ids_L, ((0, 20),)), Probe(ids_L[:1], ((0, 1),))]
    with logits_in_chunks(positions):
        together = measure(model, probes)
    alone = [measure(model, [one]) for one in probes]
    assert together["exact"] == [one["exact"][0] for one in alone]
    for name in ("log_likelihood", "kl"):
        told = [one[name][0] for one in alone]
        assert [value is None for value in together[name]] == [value is None for value in told]
        assert [value or 0.0 for value in together[name]] == pytest.approx([value or 0.0 for value in told], abs=2e-6)
    for one, (mean, greedy) in zip(probes[:-1], zip(together["log_likelihood"], together["exact"])):
        with torch.no_grad():
            logits_LV = model(one.ids_L[None]).logits[0]
        at = [place for begin, end in one.spans for place in range(max(1, begin), end)]
        chances_AV = logits_LV[[place - 1 for place in at]].log_softmax(-1)
        assert mean == pytest.approx(float(chances_AV[range(len(at)), one.ids_L[at]].mean()), abs=1e-6)
        assert greedy == bool((chances_AV.argmax(-1) == one.ids_L[at]).all())


def test_probes_compute_as_training_does_and_say_that_they_run(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(learned / "memory", tmp_path / "memory")
    kinds = []

    def noted(module: Any, args: Any, output: Any) -> None:
        kinds.append((torch.is_grad_enabled(), output.dtype))

    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: noted(module, args, output) if isinstance(module, torch.nn.Linear) else None
    )
    try:
        config = config_for("derpp", tmp_path, replay={"samples": 2}, bf16=True, progress="lines", retention={})
        learn(learned / "m1", constant_task("no", "no"), tmp_path / "memory", tmp_path / "m2", config)
    finally:
        hook.remove()
    assert set(kinds) >= {(False, torch.bfloat16), (True, torch.bfloat16)}
    first = kinds.index(next(one for one in kinds if one[0]))
    assert {dtype for _, dtype in kinds[:first]} == {torch.bfloat16}
    assert capsys.readouterr().err.count("no: probing 15 answers (retention.samples)") == 2
