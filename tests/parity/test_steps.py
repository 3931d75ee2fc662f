"""Every golden replay step through ``Seekr.replay_loss``: losses, gradient norms, gradients."""

from dataclasses import replace

import numpy as np
import torch
from golden_case import close, each, settings

from seekr_cl.methods.common.logit_distillation import distil_logits, pad_logits, take_logits
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.schedule import MicroBatch


def kinds(case):
    rows = case.values["steps"]
    return list(dict.fromkeys((row["mode"], row["selection"], row["logits_w"], row["attn_w"]) for row in rows))


def replay_batch(case, method, memory, wanted):
    """The batch as training would get it."""
    pairs = [(memory[task], memory[task].samples[number]) for task, number in wanted]
    schedule = [MicroBatch(replay=tuple(range(len(pairs))))]
    return ScheduledBatches(schedule, [], pairs, method, case.layout)[0]["replay"]


@each(kinds)
def test_replay_steps(case, key):
    mode, selection, logits_w, attn_w = key
    memory, student = case.memories[mode, selection], case.model(case.student)
    method = case.method(student, lambda1=1 - logits_w, lambda2=attn_w, query_budget=case.budget(mode))
    try:
        rows = [row for row in case.values["steps"] if (row["mode"], row["selection"]) == key[:2]]
        rows = [row for row in rows if (row["logits_w"], row["attn_w"]) == key[2:]]
        for row in rows:
            check_step(case, method, memory, student, row)
    finally:
        method.close()


def check_step(case, method, memory, student, row):
    name = f"batch {row['batch']}"
    batch = replay_batch(case, method, memory, row["batch"])
    assert batch["input_ids"].shape[1] == row["L"]
    prefix = row.get("arrays", "-")
    for field in ("input_ids", "labels", "attention_mask"):
        if f"{prefix}/{field}" in case.names:
            assert (batch[field].numpy() == case.arrays[f"{prefix}/{field}"]).all(), name
    student.zero_grad()
    terms = method.replay_loss(student, batch)
    per_layer = {str(layer): float(value.detach()) for layer, value in method.tap.action.losses().items()}
    total = sum(term.weight * term.value for term in terms.values())
    total.backward()
    student_grads = {n: p.grad for n, p in student.named_parameters()}

    assert per_layer.keys() == row["attn_per_layer"].keys(), name
    for layer, value in row["attn_per_layer"].items():
        close(per_layer[layer], value, what=f"{name} layer {layer}")
    values = {"replay": "ce", "logits": "logits_distill", "attention": "attn_mean"}
    for term, golden in values.items():
        close(terms[term].value.detach(), row[golden], what=f"{name} {golden}")
    close(total.detach(), row["total"], what=f"{name} total")
    norms = {n: float(grad.norm()) for n, grad in student_grads.items()}
    close(np.linalg.norm(list(norms.values())), row["grad_norm"], what=f"{name} norm")
    golden_norms = row["grad_norm_per_param"]
    assert norms.keys() == golden_norms.keys()
    close([norms[n] for n in golden_norms], list(golden_norms.values()), what=f"{name} norms", of_max=True)
    for n, grad in student_grads.items():
        if f"{prefix}/grad/{n}" in case.names:
            close(grad, case.arrays[f"{prefix}/grad/{n}"], what=f"{name} {n}", of_max=True)


def with_logits(case):
    rows = case.values["steps"]
    return [n for n, row in enumerate(rows) if f"{row.get('arrays')}/teacher_logits" in case.names]


def stored(case, row, **changes):
    """Student logits and teacher signals of a step, both from the stored arrays."""
    given = settings(**changes)
    samples = []
    for task, number in row["batch"]:
        sample = case.samples[task][number]
        logits = torch.tensor(case.arrays[f"imp/{task}/replay_logits"][number])
        start = case.layout.offset(len(sample.ids_L), len(logits))
        own = logits[start : start + len(sample.ids_L)]
        samples.append(replace(sample, signals={"logits": take_logits(own.__getitem__, sample, given, "float32")}))
    student = torch.tensor(case.arrays[f"{row['arrays']}/student_logits"])
    return distil_logits(student, pad_logits(samples, case.layout, student.shape[1]), given)


@each(with_logits)
def test_logit_term_from_stored_logits(case, key):
    row = case.values["steps"][key]
    close(stored(case, row), row["logits_distill"])


@each(with_logits)
def test_teacher_logits_as_the_official_collator_delivers_them(case, key):
    row = case.values["steps"][key]
    delivered = torch.tensor(case.arrays[f"{row['arrays']}/teacher_logits"])
    memory = case.memories[row["mode"], row["selection"]]
    for teacher, (task, number) in zip(delivered, row["batch"]):
        sample = memory[task].samples[number]
        at = sample.logits.position_A + case.layout.offset(len(sample.ids_L), len(teacher))
        assert ((teacher != -100).any(-1).nonzero()[:, 0] == at).all()
        close(sample.logits.decode()[0], teacher[at].softmax(-1), of_max=True)


@each(lambda case: with_logits(case) if (case.folder / "alt_correct.npz").is_file() else [])
def test_logits_at_the_positions_that_predict_the_answer(case, key):
    alt, row = np.load(case.folder / "alt_correct.npz"), case.values["steps"][key]
    number = row["arrays"].rsplit("/", 1)[1]
    for form, ending in (("cross_entropy", ""), ("kl", "_kl")):
        value = stored(case, row, logit_alignment="next_token", logit_form=form)
        close(value, alt[f"step/{number}/logits_distill_shifted{ending}"], what=form)
