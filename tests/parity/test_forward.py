"""Logits, losses and attention rows of the checkpoints against the official forward pass."""

import torch
from golden_case import close, each

from seekr_cl.attention import AttentionTap, RecordRows, RowIndex
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.tasks import collate


def passes(case):
    return [tuple(name.split("/")[1:3]) for name in case.names if name.startswith("fwd/") and name.endswith("/attn")]


def batch_of(case, task):
    layout = case.layout
    return collate([s.encoded for s in case.samples[task]], layout.pad_id, layout.side, layout.multiple)


@each(passes)
def test_logits_losses_and_rows(case, key):
    task, checkpoint = key
    batch, model = batch_of(case, task), case.model(checkpoint)
    for name, tensor in batch.items():
        assert (tensor.numpy() == case.arrays[f"in/{task}/{name}"]).all(), name
    size, length = batch["input_ids"].shape
    with AttentionTap(model) as tap:
        wanted = {}
        for layer, heads in tap.heads.items():
            sample_P = torch.arange(size).repeat_interleave(heads)
            query_PR = torch.arange(length).expand(len(sample_P), -1)
            wanted[layer] = RowIndex(sample_P, torch.arange(heads).repeat(size), query_PR)
        record = RecordRows(wanted)
        with tap.use(record), torch.no_grad():
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            logits = model(**inputs, use_cache=False).logits
    real = batch["attention_mask"].bool()
    prefix = f"fwd/{task}/{checkpoint}"
    close(logits[real], case.arrays[f"{prefix}/logits"][real.numpy()], what="logits", of_max=True)
    attention = torch.tensor(case.arrays[f"{prefix}/attn"])
    assert list(record.rows) == list(range(attention.shape[1]))
    for layer, rows in record.rows.items():
        rows_BLHL = rows.unflatten(0, (size, -1)).transpose(1, 2)
        close(rows_BLHL[real], attention[:, layer].transpose(1, 2)[real], what=f"layer {layer}", of_max=True)


@each(passes)
def test_loss_of_every_sample(case, key):
    task, checkpoint = key
    model = case.model(checkpoint)
    expected = case.arrays[f"fwd/{task}/{checkpoint}/loss_per_sample"]
    for number, sample in enumerate(case.samples[task]):
        layout = case.layout
        batch = collate([sample.encoded], layout.pad_id, layout.side, layout.multiple)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        close(causal_lm_loss(logits, batch["labels"]), expected[number], what=f"sample {number}")
    batch = batch_of(case, task)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    close(causal_lm_loss(logits, batch["labels"]), case.arrays[f"fwd/{task}/{checkpoint}/loss"], what="batch")
