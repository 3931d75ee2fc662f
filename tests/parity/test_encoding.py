"""The "merged" boundary against the batches the official collator made (keys: golden/README.md)."""

import glob
import json
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from seekr_cl.tasks import Encoder, Example, collate

PATTERN = os.environ.get(
    "SEEKR_GOLDEN", str(Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "case*")
)
CASES = sorted(path for path in glob.glob(PATTERN) if os.path.isfile(os.path.join(path, "arrays.npz")))


@pytest.fixture(params=CASES or [None], ids=lambda path: os.path.basename(path) if path else "none")
def case(request):
    if request.param is None:
        pytest.skip(f"no golden case matches {PATTERN}; set SEEKR_GOLDEN")
    folder = Path(request.param)
    meta = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return folder, meta["collator"], texts, np.load(folder / "arrays.npz")


def build(folder, collator):
    prompt, answer = collator["max_prompt_len"], collator["max_ans_len"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "m0")
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Encoder(tokenizer, prompt + answer, "merged", prompt, answer), pad


def test_training_batches(case):
    folder, collator, texts, arrays = case
    encoder, pad = build(folder, collator)
    names = [key.split("/")[1] for key in arrays.files if key.startswith("in/") and key.endswith("/labels")]
    assert names
    for name in names:
        encoded = [encoder.encode(Example(row["prompt"], row["answer"])) for row in texts[name]]
        batch = collate(encoded, pad, collator["padding_side"], collator["pad_to_multiple_of"])
        for key, tensor in batch.items():
            np.testing.assert_array_equal(tensor.numpy(), arrays[f"in/{name}/{key}"], err_msg=f"{name}/{key}")


def test_prompts_for_generation(case):
    folder, collator, texts, arrays = case
    encoder, _ = build(folder, collator)
    names = [key.split("/")[1] for key in arrays.files if key.endswith("_inference/input_ids")]
    assert names
    for name in names:
        want, mask = arrays[f"in/{name}/input_ids"], arrays[f"in/{name}/attention_mask"]
        rows = texts[name.removesuffix("_inference")]
        assert len(rows) == len(want)
        for row, ids, valid in zip(rows, want, mask):
            assert encoder.encode_prompt(Example(row["prompt"], row["answer"])) == ids[valid == 1].tolist()
