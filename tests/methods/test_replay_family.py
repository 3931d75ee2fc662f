"""iCaRL, InsCL, LFPT5 and on-policy replay: one step, or what is replayed, against numbers written down once more."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import char_tokenizer, config_for, constant_task, differs, reverse_task, teach, weights
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from seekr_cl.errors import ConfigError
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample, TaskSamples
from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.methods.base import Batch
from seekr_cl.methods.common.generation import write
from seekr_cl.planning.overheads import COSTS
from seekr_cl.replay.replay_config import ReplayConfig
from seekr_cl.replay.schedule import MicroBatch, build_schedule, review_batches
from seekr_cl.replay.selection import information
from seekr_cl.tasks import Encoded, Encoder, Example, Task, collate
from seekr_cl.training.sample_selection import replay_weights

LEARNING: dict[str, Any] = {"learning_rate": 0.02, "num_train_epochs": 10}


@pytest.fixture(scope="module")
def fluent(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned with LFPT5 that every answer is yes, and to write such samples."""
    folder = tmp_path_factory.mktemp("fluent")
    task = constant_task("yes", "yes", count=24)
    teach(base, folder, [task], config_for("lfpt5", folder, replay={"every": 1}, **LEARNING))
    return folder


def context_of(folder: Path, **more: Any) -> Context:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    warn = more.pop("warn", lambda sentence: pytest.fail(sentence))
    return Context(model, Layout(0), None, 5, warn, "float32", tokenizer, **more)


def sample_of(context: Context, prompt: str, completion: str) -> ReplaySample:
    one = Encoder(context.tokenizer, 64).encode(Example(prompt, completion))
    return ReplaySample(prompt, completion, torch.tensor(one.input_ids), one.completion_start)


def batch_of(*samples: ReplaySample) -> Batch:
    return dict(collate([Encoded(one.ids_L.tolist(), one.completion_start, 0) for one in samples], 0))


def token_losses(model: Any, ids: list[int], first: int) -> list[float]:
    """-log p of each token from ``first`` on, one sequence alone, in float64."""
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-float(logp[place - 1, ids[place]]) for place in range(first, len(ids))]


@pytest.mark.parametrize("labelled", [False, True])
def test_icarl_teaches_new_labels_and_what_the_model_before_said(base: Path, labelled: bool) -> None:
    """Algorithm 3: the targets of new examples are labels, those of all old outputs what the old model says."""
    context = context_of(base)
    settings = get_method("icarl").Settings(distillation=2.0, exemplar_labels=labelled)
    method = get_method("icarl")(settings, context)
    one, two = sample_of(context, "ab=", "ba"), sample_of(context, "cdef=", "fedc")
    batch = batch_of(one, two)
    assert set(method.new_task_loss(context.model, batch)) == {"task"}  # nothing old, nothing to distil
    method.replay_source([MemoryTask("old", [one])])
    before: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        context.model.lm_head.weight.mul_(1.3)
    labels, divergences = [], []
    for sample in (one, two):
        ids = sample.ids_L[None]
        with torch.no_grad():
            q, p = (model(input_ids=ids).logits[0].double().softmax(-1) for model in (context.model, before))
        labels += token_losses(context.model, ids[0].tolist(), sample.completion_start)
        for place in range(sample.completion_start - 1, ids.shape[1] - 1):
            divergences.append(sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p[place], q[place])))
    right = {
        "task": (sum(labels) / len(labels), 1.0),
        "replay": (sum(labels) / len(labels), 1.0),
        "distil_new": (sum(divergences) / len(divergences), 2.0),
        "distil_old": (sum(divergences) / len(divergences), 2.0),
    }
    for terms, names in (
        (method.new_task_loss(context.model, batch), ("task", "distil_new")),
        (method.replay_loss(context.model, batch), ("replay", "distil_old")[not labelled :]),
    ):
        assert tuple(terms) == names
        for name, term in terms.items():
            assert float(term.value.detach()) == pytest.approx(right[name][0], rel=1e-4)
            assert term.weight == right[name][1]
    # Without distillation there is nothing but the labels to replay.
    plain = get_method("icarl")(get_method("icarl").Settings(distillation=0.0), context)
    plain.replay_source([MemoryTask("old", [one])])
    assert tuple(plain.replay_loss(context.model, batch)) == ("replay",)


def features(folder: Path, task: Task) -> Tensor:
    """Last hidden states, a mean over each example's tokens, of length one; in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    encoder, rows = Encoder(char_tokenizer(), 64), []
    for example in task.train:
        with torch.no_grad():
            ids = torch.tensor([encoder.encode(example).input_ids])
            rows.append(model.model(input_ids=ids).last_hidden_state[0].mean(0))
    return torch.stack([row / row.norm() for row in rows])


def herded(rows: Tensor, count: int) -> list[int]:
    """Algorithm 4: each next exemplar brings the exemplars' mean nearest to that of all."""
    chosen: list[int] = []
    for _ in range(count):
        left = [place for place in range(len(rows)) if place not in chosen]
        gaps = {place: float((rows.mean(0) - rows[[*chosen, place]].mean(0)).norm()) for place in left}
        chosen.append(min(gaps, key=gaps.get))
    return chosen


@pytest.mark.parametrize("name", ["icarl", "replay"])
def test_exemplars_are_herded_by_the_model_that_has_learnt_the_task(base: Path, tmp_path: Path, name: str) -> None:
    """Algorithm 2: the representation is updated first, the exemplars are chosen then."""
    task = reverse_task(count=20)
    config = config_for(name, tmp_path, replay={"samples": 5, "every": 1, "choice": "herding"}, **LEARNING)
    teach(base, tmp_path, [task], config)
    kept = [sample.prompt for sample in ReplayMemory.open(tmp_path / "memory").tasks[0].samples]
    after, before = (herded(features(folder, task), 5) for folder in (tmp_path / "m1", base))
    assert kept == [task.train[place].prompt for place in after]
    assert after != before


@pytest.mark.parametrize("name", ["sapt", "derpp", "gem"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_method_that_keeps_samples_can_herd(base: Path, tmp_path: Path, name: str) -> None:
    config = config_for(name, tmp_path, replay={"samples": 3, "choice": "herding"}, num_train_epochs=2)
    teach(base, tmp_path, [reverse_task("first"), reverse_task("second")], config)
    assert [len(task.samples) for task in ReplayMemory.open(tmp_path / "memory").tasks] == [3, 3]


def test_a_method_that_looks_before_training_herds_before(base: Path, tmp_path: Path) -> None:
    task = reverse_task(count=20)
    settings: dict[str, Any] = {"name": "seekr", "layer_budget": None, "head_budget": 3, "query_budget": 4}
    config = config_for(settings, tmp_path, replay={"samples": 5, "every": 1, "choice": "herding"}, **LEARNING)
    teach(base, tmp_path, [task], config)
    kept = [sample.prompt for sample in ReplayMemory.open(tmp_path / "memory").tasks[0].samples]
    assert kept == [task.train[place].prompt for place in herded(features(base, task), 5)]


def test_a_methods_replay_defaults_give_way_to_the_user(tmp_path: Path) -> None:
    assert config_for("icarl", tmp_path).replay.choice == "herding"
    assert config_for("icarl", tmp_path, replay={"choice": "first"}).replay.choice == "first"
    assert config_for("icarl", tmp_path, preset="official", replay={}).replay.choice == "herding"
    assert config_for("lfpt5", tmp_path, replay={}).replay.ratio == 0


def test_information_of_a_prompt_is_that_of_its_rare_words() -> None:
    # N = 3 prompts; "sum" is in all of them, "up" in two, "tables" and "lists" in one each.
    found = information(["Sum up tables, sum", "sum up", "sum LISTS"])
    assert found == pytest.approx([math.log(3 / 2) + math.log(3), math.log(3 / 2), math.log(3)])


def test_weights_split_a_tasks_share_by_information_or_surprise(base: Path, tmp_path: Path) -> None:
    context = context_of(base)
    old = [
        MemoryTask("one", [sample_of(context, "uv xy=", "ba"), sample_of(context, "uv=", "b")]),
        MemoryTask("two", [sample_of(context, "q=", "cc"), sample_of(context, "q=", "a")]),
    ]
    replay, new = TaskSamples(old), [Encoded([5, 6, 7], 2, 0)]

    def weigh(**settings: Any) -> list[float]:
        found = replay_weights(config_for("replay", tmp_path, replay=settings), replay, new, context)
        assert found is not None
        return found

    # Equal tasks weigh as much as they have samples. N = 4, f(uv) = f(q) = 2, f(xy) = 1.
    uv, xy = math.log(2), math.log(4)
    expected = [2 * (uv + xy) / (2 * uv + xy), 2 * uv / (2 * uv + xy), 1, 1]
    assert weigh(sample_weights="information") == pytest.approx(expected)
    losses = [[token_losses(context.model, s.ids_L.tolist(), s.completion_start) for s in task.samples] for task in old]
    means = [[sum(one) / len(one) for one in task] for task in losses]
    expected = [2 * mean / sum(task) for task in means for mean in task]
    assert weigh(sample_weights="surprise") == pytest.approx(expected, rel=1e-5)
    both = weigh(task_weights="similarity", sample_weights="information")
    assert sum(both) == pytest.approx(1)
    assert both[0] / both[1] == pytest.approx((uv + xy) / uv)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inscl_is_replay_with_its_papers_settings(base: Path, tmp_path: Path) -> None:
    tasks = [reverse_task("first", 8), constant_task("no", "no", 8), constant_task("yes", "yes", 8)]
    # The tiny tasks' prompts are one word each; two of them share theirs.
    tasks[0].train[0] = tasks[0].train[1]
    spelt = {"task_weights": "similarity", "sample_weights": "information"}
    ends = []
    for name, more in (("inscl", {}), ("replay", spelt), ("replay", {})):
        folder = tmp_path / f"{name}{len(ends)}"
        teach(base, folder, tasks, config_for(name, folder, replay={"ratio": 0.5, "every": 1} | more))
        ends.append(weights(folder / "m3"))
    assert not differs(ends[0], ends[1])
    assert differs(ends[0], ends[2])


def test_the_forgetting_curve_reviews_the_whole_memory_on_its_days() -> None:
    assert sorted(review_batches(60)) == [2, 4, 8, 14, 30, 60]
    assert sorted(review_batches(3)) == [1, 2, 3]  # days 1 to 7 end within the first batch
    assert review_batches(0) == frozenset()
    schedule = build_schedule(
        epochs_of=[2.0] * 15,
        num_replay=3,
        batch_size=1,
        replay_batch_size=2,
        seed=0,
        cadence=ReplayConfig(cadence="forgetting_curve"),
    )
    # 30 new batches over two epochs: a review is 2 replay batches that hold each of the 3 samples once.
    passed, reviewed = 0, {}
    for micro in schedule:
        passed += bool(micro.new)
        if micro.replay:
            reviewed.setdefault(passed, []).extend(micro.replay)
    assert {day: sorted(seen) for day, seen in reviewed.items()} == {day: [0, 1, 2] for day in (1, 2, 4, 7, 15, 30)}
    assert sum(len(micro.new) for micro in schedule) == 30
    assert MicroBatch(new=schedule[0].new) == schedule[0]


def test_the_forgetting_curve_fixes_when_replay_comes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replay\.cadence: 'forgetting_curve' fixes"):
        config_for("replay", tmp_path, replay={"cadence": "forgetting_curve", "every": 2})


def test_lfpt5_learns_whole_texts_beside_answers(base: Path) -> None:
    context = context_of(base, task="rev")
    method = get_method("lfpt5")(get_method("lfpt5").Settings(prefix="{task}:", separator="=="), context)
    one, two = sample_of(context, "ab=", "ba"), sample_of(context, "cdef=", "fedc")
    terms = method.new_task_loss(context.model, batch_of(one, two))
    # The official code weighs all but the consistency by 1 - 0.01.
    weights_of = {name: term.weight for name, term in terms.items()}
    assert weights_of == pytest.approx({"task": 0.99, "lm": 0.2475})

    def ids(text: str) -> list[int]:
        return list(context.tokenizer(text)["input_ids"])

    def written(name: str) -> float:
        losses = []
        for prompt, answer in (("ab=", "ba"), ("cdef=", "fedc")):
            text = [*ids(f"{name}:{prompt}=={answer}"), context.tokenizer.eos_token_id]
            losses += token_losses(context.model, text, len(ids(f"{name}:")))
        return sum(losses) / len(losses)

    answers = [x for s in (one, two) for x in token_losses(context.model, s.ids_L.tolist(), s.completion_start)]
    assert float(terms["task"].value.detach()) == pytest.approx(sum(answers) / len(answers), rel=1e-5)
    assert float(terms["lm"].value.detach()) == pytest.approx(written("rev"), rel=1e-5)
    # Replayed under the old task's name; the earlier model is this one, so that its outputs agree.
    taught = method._with_outputs([one, two])
    extras = method.collate_replay(
        [(MemoryTask("old", taught), sample) for sample in taught], batch_of(*taught)["input_ids"].shape[1]
    )
    terms = method.replay_loss(context.model, batch_of(*taught) | extras)
    weights_of = {name: term.weight for name, term in terms.items()}
    # "ba" and "fedc" with their ends: eight positions, over which the official code sums.
    assert weights_of == pytest.approx({"replay": 0.99, "consistency": 0.08, "lm_old": 0.2475})
    assert float(terms["lm_old"].value.detach()) == pytest.approx(written("old"), rel=1e-5)
    assert float(terms["consistency"].value.detach()) == pytest.approx(0, abs=1e-6)


def test_lfpt5s_consistency_is_a_sum_over_positions(base: Path) -> None:
    """0.01 times kl_div(reduction="sum"), as in the official code, written down in float64."""
    context = context_of(base, task="rev")
    method = get_method("lfpt5")(get_method("lfpt5").Settings(), context)
    assert method.settings.top_k == 64
    samples = [sample_of(context, "ab=", "ba"), sample_of(context, "cdef=", "fedcba"), sample_of(context, "q=", "c")]
    taught = method._with_outputs(samples)
    before: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    with torch.no_grad():
        context.model.lm_head.weight.mul_(1.3)
    batch = batch_of(*taught)
    extras = method.collate_replay([(MemoryTask("old", taught), one) for one in taught], batch["input_ids"].shape[1])
    term = method.replay_loss(context.model, batch | extras)["consistency"]
    now, total = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval(), 0.0
    with torch.no_grad():
        now.lm_head.weight.mul_(1.3)
        for sample in samples:
            asked = slice(sample.completion_start - 1, len(sample.ids_L) - 1)
            p, q = (one(input_ids=sample.ids_L[None]).logits[0, asked].log_softmax(-1) for one in (before, now))
            total += float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
    assert term.weight * float(term.value.detach()) == pytest.approx(0.01 * total, rel=1e-4)
    assert total > 0.1


def test_texts_fit_into_the_models_context(base: Path) -> None:
    context = context_of(base, task="rev")
    method = get_method("lfpt5")(get_method("lfpt5").Settings(prefix="{task}:", separator="=="), context)
    sample = sample_of(context, "abcdef" * 10, "fed")  # 64 tokens with the end, as many as the model has positions
    batch = batch_of(sample)
    assert batch["input_ids"].shape == (1, 64)
    text = method._text("rev", sample.ids_L[: sample.completion_start], sample.ids_L[sample.completion_start :])
    assert len(text.input_ids) == 64
    assert context.tokenizer.decode(text.input_ids).replace(" ", "").startswith("rev:")
    assert text.input_ids[-6:-4] == context.tokenizer("==")["input_ids"]
    written = write(context.model, [[5] * 64, *[[5] * 60] * 16], 30, eos_id=2, pad_id=0, seed=0)
    assert written[0] == []
    assert all(1 <= len(new) <= 4 for new in written[1:])


def test_lfpt5_keeps_no_sample_and_writes_its_own(fluent: Path) -> None:
    memory = ReplayMemory.open(fluent / "memory")
    assert len(memory.samples) == 0
    assert memory.method_state is not None
    known = memory.method_state.content["tasks"]
    assert list(known) == ["yes"]

    def write(seed: int) -> list[ReplaySample]:
        context = context_of(fluent / "m1", previous_state=({}, memory.method_state.content), examples=[None] * 40)
        context.seed = seed
        found = get_method("lfpt5")(get_method("lfpt5").Settings(), context).replay_source(list(memory.tasks))
        assert [task.name for task in found] == ["yes"]
        return list(found[0].samples)

    written = write(5)
    assert len(written) == 8  # 0.2 of 40
    assert COSTS["lfpt5"].replayed(get_method("lfpt5").Settings(), [0], 40) == 8
    assert [s.completion for s in written].count("yes") >= 7
    assert len({sample.prompt for sample in written}) > 2
    for sample in written:
        assert sample.prompt.endswith("?")
        assert sample.logits is not None
    torch.manual_seed(99)
    again = write(5)
    assert [(s.prompt, s.completion) for s in again] == [(s.prompt, s.completion) for s in written]
    assert [s.prompt for s in write(6)] != [s.prompt for s in written]


def test_lfpt5_says_what_it_cannot_write(base: Path) -> None:
    said: list[str] = []
    context = context_of(base, previous_state=({}, {"tasks": {"yes": 12}}), examples=[None] * 20, warn=said.append)
    method = get_method("lfpt5")(get_method("lfpt5").Settings(), context)
    assert method.replay_source([MemoryTask("other", [])]) == []
    assert said == [
        "lfpt5 did not learn other, so it cannot write samples of them",
        "lfpt5: 0 of 4 pseudo-samples of 'yes' could be read",
    ]


def test_on_policy_replay_replays_the_models_own_best_answers(fluent: Path) -> None:
    """The model says yes to everything: those whose reference is yes are its best, in the order of the memory."""
    context = context_of(fluent / "m1")
    samples = [sample_of(context, f"{word}?", answer) for word, answer in
               (("uvw", "no"), ("xyz", "yes"), ("wvu", "yes"), ("zyx", "maybe"))]  # fmt: skip
    old = [MemoryTask("old", samples, info={"metric": "exact_match"})]
    method = get_method("onpolicy_replay")(get_method("onpolicy_replay").Settings(), context)
    (found,) = method.replay_source(old)
    assert [(s.prompt, s.completion) for s in found.samples] == [("xyz?", "yes"), ("wvu?", "yes")]
    assert COSTS["onpolicy_replay"].replayed(method.settings, [4, 0, 1], 9) == 2 + 0 + 1
    everything = get_method("onpolicy_replay").Settings(keep=1.0, temperature=0.0)
    (found,) = get_method("onpolicy_replay")(everything, context).replay_source(old)
    assert [s.completion for s in found.samples] == ["yes"] * 4
    for sample in found.samples:
        assert sample.ids_L.tolist() == sample_of(context, sample.prompt, "yes").ids_L.tolist()
    # By confidence: the two whose tokens have the highest mean log-probability, worked out one by one.
    sure = get_method("onpolicy_replay").Settings(scorer="confidence", temperature=0.0)
    (best,) = get_method("onpolicy_replay")(sure, context).replay_source(old)
    losses = {s.prompt: token_losses(context.model, s.ids_L.tolist(), s.completion_start) for s in found.samples}
    surest = sorted(losses, key=lambda prompt: sum(losses[prompt]) / len(losses[prompt]))[:2]
    assert {s.prompt for s in best.samples} == set(surest)


def test_on_policy_replay_falls_back_on_references_aloud(base: Path) -> None:
    said: list[str] = []
    context = context_of(base, warn=said.append)
    old = MemoryTask("old", [sample_of(context, "uvw?", "no")], info={"metric": "exact_match"})
    method = get_method("onpolicy_replay")(get_method("onpolicy_replay").Settings(temperature=0.0), context)
    assert method.replay_source([old]) == [old]
    assert said == ["task 'old': the model ends none of its answers; the references are replayed"]


def test_what_was_written_survives_a_checkpoint(fluent: Path) -> None:
    context = context_of(fluent / "m1")
    old = [MemoryTask("old", [sample_of(context, "uvw?", "yes"), sample_of(context, "xyz?", "yes")])]
    method = get_method("onpolicy_replay")(get_method("onpolicy_replay").Settings(keep=1.0), context)
    method.replay_source(old)
    tensors, content = method.state_dict()
    other = get_method("onpolicy_replay")(get_method("onpolicy_replay").Settings(), context)
    other.load_state_dict(tensors, content)
    back: list[Tensor] = [sample.ids_L for sample in other.replay_source([])[0].samples]
    assert [ids.tolist() for ids in back] == [s.ids_L.tolist() for s in method.replay_source([])[0].samples]
