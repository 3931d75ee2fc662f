"""What the plan says against what is there: memory, RAM, replay batches and steps of a tiny model that learns."""

from typing import Any

import pytest
import torch
from tinylm import config_for, constant_task, reverse_task, teach

from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.sample_codec import pack
from seekr_cl.memory.signals import ROWS
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.planning import Workload, adapter_size, make_plan, read_shape
from seekr_cl.planning.signal_costs import choose_heads
from seekr_cl.replay.batches import ScheduledBatches

LETTERS = 20
TOKENS, ANSWER = 2 * LETTERS + 2, LETTERS + 1


def size(part: Any) -> int:
    if isinstance(part, torch.Tensor):
        return part.nbytes
    if isinstance(part, dict):
        return sum(map(size, part.values()))
    if isinstance(part, list):
        return sum(map(size, part))
    names = getattr(part, "__dataclass_fields__", ())
    return sum(size(getattr(part, name)) for name in names)


def tasks():
    return [reverse_task(count=9, length=LETTERS), reverse_task("other", count=8, length=LETTERS)]


def plan(base, config, examples=(9, 8)):
    return make_plan(read_shape(base), config, Workload(list(examples), [1.0] * len(examples), TOKENS, ANSWER))


FORMS = [("top_k", {}), ("top_k", {"attention_tail": "bucket", "query_budget": None}), ("dense", {}), ("factors", {})]
FORMS += [("top_k", {"target": "values"}), ("top_k", {"target": "hidden"})]
FORMS += [("top_k", {"attention_top_k": 99}), ("dense", {"logits_top_k": None}), ("top_k", {"head_budget": 0})]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize(("form", "more"), FORMS)
def test_bytes_are_those_of_a_real_memory(base, tmp_path, monkeypatch, form, more, dtype):
    """The same to the byte for ids, logits, attention and the replay batch; factors where all heads are kept."""
    chosen = {"heads": "all"} if form == "factors" else {"head_budget": 3}
    settings = {"name": "seekr", "query_budget": 7, "attention_signal": form, "logits_top_k": 5} | chosen | more
    if form == "top_k":
        settings = {"attention_top_k": 6} | settings
    config = config_for(settings, tmp_path, signal_dtype=dtype, replay={"samples": 3, "every": 1})
    held, batches = [], []
    after, fetch = Seekr.after_task, ScheduledBatches.__getitem__

    def watched_after(self, name, samples):
        held.append(sum(rows.num_bytes for layers in self._before.values() for rows in layers.values()))
        return after(self, name, samples)

    def watched_fetch(self, index):
        parts = fetch(self, index)
        if "replay" in parts:
            batches.append(parts["replay"])
        return parts

    monkeypatch.setattr(Seekr, "after_task", watched_after)
    monkeypatch.setattr(ScheduledBatches, "__getitem__", watched_fetch)
    done = teach(base, tmp_path, tasks(), config)
    predicted = plan(base, config)
    sample = predicted.chosen.sample
    memory = ReplayMemory.open(tmp_path / "memory")
    for _, kept in memory.samples:
        assert (len(kept.ids_L), len(kept.ids_L) - kept.completion_start) == (TOKENS, ANSWER)
        found = {"ids": 0, "logits": 0, "attention": 0}
        for name, tensor in pack([kept]).items():
            part = name.split("/")[1]
            part = "attention" if part in ROWS else part
            found[part if part in found else "ids"] += tensor.nbytes
        assert found == {"ids": sample.ids, "logits": sample.logits, "attention": sample.attention}
    files = sum(file["bytes"] for record in memory._current.tasks for file in record["files"])
    tensors = predicted.chosen.total
    assert tensors < files < tensors + 6 * 2000  # header and texts
    assert held[0] == predicted.chosen.held
    # What a sample brings into a replay batch, beside ids, mask and labels.
    count = len(batches[0]["input_ids"])
    student = ANSWER * 3 * 4 * read_shape(base).vocabulary
    assert size(batches[0]["rows"]) + size(batches[0]["logits"]) == count * (sample.step - student)
    assert sum(one.steps for one in done) == predicted.steps.steps + predicted.steps.extra


@pytest.mark.parametrize("replay", [{"samples": 3}, {"samples": 4, "every": 2}, {"samples": 3, "step": "joint"}])
@pytest.mark.parametrize("method", ["replay", "derpp", "seqft"])
def test_steps_are_those_of_a_real_run(base, tmp_path, method, replay):
    more = {} if method == "seqft" else {"replay": replay}
    config = config_for(method, tmp_path, gradient_accumulation_steps=2, **more)
    stream = [*tasks(), constant_task("no", "no", 10)]
    done = teach(base, tmp_path, stream, config)
    steps = plan(base, config, [9, 8, 10]).steps
    assert sum(one.steps for one in done) == steps.steps + steps.extra
    assert steps.trained == 27
    assert (steps.replayed > 0) == (method != "seqft")
    assert (steps.time_share > 0) == (method != "seqft")
    # What DER++ keeps of an example is asked for in a pass forward.
    assert steps.scored == pytest.approx(len(stream) * replay.get("samples", 0) / 3 if method == "derpp" else 0)


def test_written_samples_are_replayed_though_none_is_kept(base, tmp_path):
    config = config_for({"name": "lfpt5", "pseudo_ratio": 0.5}, tmp_path, replay={"batch_size": 2, "every": 1})
    planned = plan(base, config, [8, 8])
    # Two batches of 4 new examples in the second task, after each a replay batch of 2 of 4 written samples.
    assert (planned.chosen.total, planned.steps.replayed) == (0, 4)


def test_a_byte_budget_says_how_many_samples_it_leaves(base, tmp_path):
    free = plan(base, config_for("seekr", tmp_path, replay={"samples": 6}))
    assert free.fit is None
    limit = free.chosen.sample.stored * 2 * 4 + 10
    tight = plan(base, config_for("seekr", tmp_path, replay={"samples": 6}, memory={"max_bytes": limit}))
    assert (tight.fit, tight.limit) == (4, limit)


def test_key_value_heads_in_use_on_average(base):
    """Of heads 0 to 3 with keys shared by two, two random heads use 2 - 2 * 1/6 key/value heads."""
    from seekr_cl.methods.seekr.seekr_settings import SeekrSettings

    chosen = choose_heads(read_shape(base), SeekrSettings(layer_budget=1, head_budget=2))
    assert chosen.groups == pytest.approx(2 - 2 / 6)


def test_adapters_as_teachers_are_counted(base, tmp_path):
    """What is kept of a sample to the byte, the adapters but for their files' headers; both ways stand side by side."""
    method = {"name": "seekr", "teacher": "adapter", "query_budget": 7}
    peft = {"peft_type": "LORA", "r": 3, "target_modules": "all-linear"}
    config = config_for(method, tmp_path, replay={"samples": 3, "every": 1}, peft=peft)
    teach(base, tmp_path, tasks(), config)
    work = Workload([9, 8], [1.0, 1.0], TOKENS, ANSWER)
    predicted = make_plan(read_shape(base), config, work, adapter_size(base, config.peft))
    memory = ReplayMemory.open(tmp_path / "memory")
    for _, kept in memory.samples:
        assert sum(tensor.nbytes for tensor in pack([kept]).values()) == predicted.chosen.sample.stored
    records = memory._current.tasks
    adapters = sum(record["teacher"]["bytes"] for record in records)
    counted = 2 * adapter_size(base, config.peft)
    assert counted < adapters < counted + 2 * 6000
    assert predicted.chosen.total == predicted.teachers["adapter"]
    assert predicted.teachers["adapter"] - counted == 6 * predicted.chosen.sample.stored
    other = config_for({"name": "seekr", "query_budget": 7}, tmp_path, replay={"samples": 3, "every": 1}, peft=peft)
    stored = make_plan(read_shape(base), other, work, adapter_size(base, peft))
    assert stored.teachers == predicted.teachers
    assert stored.chosen.total == stored.teachers["stored"]
    assert adapter_size(tmp_path / "m2", None) == (tmp_path / "m2/adapter_model.safetensors").stat().st_size
    assert adapter_size(base, None) is None
