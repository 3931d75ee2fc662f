"""Sensitivity, forgettability, accumulated importance and head selection against the official numbers."""

import numpy as np
import torch
from golden_case import close, each, each_case, heads_of

from seekr_cl.attention import AttentionTap
from seekr_cl.heads import select_heads
from seekr_cl.methods.seekr.scoring import Scorer


@each(lambda case: case.modes)
def test_importance_and_heads_of_the_stream(case, key):
    mode = key
    former = {"sensitivity": 0.0, "forgettability": 0.0}
    for task, done in zip(case.tasks, case.stream(mode)):
        prefix = f"imp/{mode}/{task}"
        now = {"sensitivity": done.importance.sensitivity_NH, "forgettability": done.importance.forgettability_NH}
        for name, golden in (("sensitivity", "attn_grads"), ("forgettability", "attn_diffs")):
            close(now[name] - former[name], case.arrays[f"{prefix}/{golden}"], what=f"{task} {name}")
        close(done.importance.scores("sum_of_products"), case.arrays[f"{prefix}/ipt_accum"], what=task)
        assert done.memory.heads == heads_of(case.values[f"sel/{mode}/{task}"]["heads"])
        norm = torch.stack([p.grad.square().sum() for p in done.model.parameters() if p.grad is not None]).sum().sqrt()
        close(norm, case.arrays[f"{prefix}/leaked_grad_norm"], what="leaked gradient")
        former = now


@each(lambda case: case.modes)
def test_measured_queries_are_the_official_ones(case, key):
    for task in case.tasks:
        model = case.model(case.after(task))
        method = case.method(model, query_budget=case.budget(key))
        try:
            scorer = Scorer(method.tap, case.layout, "padded", case.samples[task])
            golden = case.arrays[f"imp/{key}/{task}/queries_abs"]
            method._queries = case.queries(key, task)
            measured = method._measured_queries(scorer, case.samples[task], range(len(golden)))
            assert [query_R.tolist() for query_R in measured] == [row.tolist() for row in golden]
        finally:
            method.close()


@each(lambda case: [(m, t) for m in case.modes for t in case.tasks if f"imp/{m}/{t}/attn_rows" in case.names])
def test_rows_stored_for_replay(case, key):
    mode, task = key
    golden = torch.tensor(case.arrays[f"imp/{mode}/{task}/attn_rows"])
    with AttentionTap(case.model(case.after(task))) as tap:
        scorer = Scorer(tap, case.layout, "padded", case.samples[task])
        for number, sample in enumerate(case.samples[task]):
            query_R = case.queries(mode, task)[number] + scorer.offset(sample)
            (rows,) = scorer.before([sample], [query_R], lambda call, index, rows_HRL: rows_HRL)
            for layer, rows_HRL in rows.items():
                close(rows_HRL, golden[number, layer], what=f"sample {number} layer {layer}", of_max=True)


@each_case
def test_leak_off_leaves_no_gradients(case):
    task = case.tasks[0]
    done = case.learn_task(case.modes[0], task, gradient_leak=False)
    assert all(p.grad is None and p.requires_grad for p in done.model.parameters())
    close(done.importance.sensitivity_NH, case.arrays[f"imp/{case.modes[0]}/{task}/attn_grads"])


def selections(case):
    found = [
        (key, n) for key in case.values if key.startswith("select/") for n in range(len(case.values[key]["results"]))
    ]
    return found + [("select_synth", n) for n in range(len(case.values.get("select_synth", [])))]


@each(selections)
def test_selection(case, key):
    name, number = key
    record = case.values[name]
    row, source = (record[number], record[number]["input"]) if name == "select_synth" else (None, record["input"])
    row = row or record["results"][number]
    scores = torch.tensor(case.arrays[source])
    chosen = select_heads(scores, tuple(range(len(scores))), row["layer_budget"], row["head_budget"])
    assert chosen == heads_of(row["heads"])


@each(lambda case: case.tasks if (case.folder / "alt_correct.npz").is_file() else [])
def test_default_measure_runs_over_valid_entries(case, key):
    alt = np.load(case.folder / "alt_correct.npz")
    done = case.learn_task(None, key, measure="valid", gradient_leak=False)
    close(done.importance.sensitivity_NH, alt[f"imp/{key}/attn_grads_valid"], what="sensitivity")
    close(done.importance.forgettability_NH, alt[f"imp/{key}/attn_diffs_valid"], what="forgettability")
