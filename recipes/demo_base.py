"""Build the base model of the embedded demo: a character model pretrained on eight string skills.

Run from the repository root, on one thread of an ordinary processor::

    OMP_NUM_THREADS=1 python recipes/demo_base.py            # train and save, about twenty minutes
    OMP_NUM_THREADS=1 python recipes/demo_base.py --check    # accuracy of the saved model, exit code 1 below 95 %

The model, its tokenizer and ``RECIPE.json`` (seed, steps, seconds, accuracies, versions) are written to
``src/seekr_cl/demo/model``. The weights are stored in half precision; the accuracies in ``RECIPE.json`` are
those of the stored file read back into single precision, as the demo reads it. The seed fixes every batch and
the starting weights; floating-point sums may still differ a little from one processor to another.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from seekr_cl.demo.skills import BASE_SKILLS, VOCABULARY, Skill, examples

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "seekr_cl" / "demo" / "model"
SEED = 20
STEPS = 3000
BATCH = 128
LEARNING_RATE = 2e-3
WARMUP = 100
WEIGHT_DECAY = 0.05
REQUIRED = 0.95
CHECK_ROWS = 300
# Far from the seed the demo draws its own rows with, so that the two never share a stream of examples.
CHECK_SEED = 990_001
MAX_ANSWER = 12
IGNORED = -100


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per character and no normalisation."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*special, *VOCABULARY])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=128,
        # The clean-up joins punctuation to words in English text; here a space before ":" is data.
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained network of about 0.8 million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def training_batch(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, forbidden: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Draw one right-padded batch of all base skills; only answers and end tokens carry a label."""
    rows: list[tuple[list[int], list[int]]] = []
    while len(rows) < BATCH:
        prompt, answer = BASE_SKILLS[len(rows) % len(BASE_SKILLS)].make(rng)
        if prompt in forbidden:
            continue
        start = tokenizer(prompt)["input_ids"]
        end = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((start + end, [IGNORED] * len(start) + end))
    width = max(len(ids) for ids, _ in rows)
    # Causal attention never looks right, so padding on the right needs no mask.
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return {"input_ids": ids, "labels": labels}


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, skill: Skill, rows: int) -> float:
    """Measure the share of greedy answers that are exactly right."""
    model.eval()
    data = examples(skill, rows, CHECK_SEED)
    inputs = tokenizer([row["prompt"] for row in data], return_tensors="pt", padding=True, return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=MAX_ANSWER, do_sample=False)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(answer == row["completion"] for answer, row in zip(answers, data)) / rows


def check(folder: Path) -> dict[str, float]:
    """Measure every base skill of a saved model, read back in single precision."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {skill.name: accuracy(model, tokenizer, skill, CHECK_ROWS) for skill in BASE_SKILLS}


def train(folder: Path, steps: int, seed: int) -> None:
    """Train the base model and save it with its tokenizer and its record."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    forbidden = frozenset(row["prompt"] for skill in BASE_SKILLS for row in examples(skill, CHECK_ROWS, CHECK_SEED))
    for step in range(1, steps + 1):
        model.train()
        loss = model(**training_batch(tokenizer, rng, forbidden)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 250 == 0 or step == steps:
            scores = {skill.name: accuracy(model, tokenizer, skill, 100) for skill in BASE_SKILLS}
            seconds = time.perf_counter() - began
            print(f"step {step} loss {loss.item():.4f} {seconds:.0f} s {scores}", flush=True)
    seconds = time.perf_counter() - began

    model.half()
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_ANSWER,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The weights are written readable by their owner alone, which an installed package must not be.
    (folder / "model.safetensors").chmod(0o644)
    record = {
        "command": "OMP_NUM_THREADS=1 python recipes/demo_base.py",
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "parameters": model.num_parameters(),
        "seconds": round(seconds, 1),
        "accuracy": check(folder),
        "rows_per_skill": CHECK_ROWS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder / "RECIPE.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Train or check, and report whether every base skill is good enough."""
    parser = argparse.ArgumentParser(description="Build or check the base model of the embedded demo.")
    parser.add_argument("--check", action="store_true", help="only measure the saved model")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of weights and batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.check:
        train(arguments.output, arguments.steps, arguments.seed)
    scores = check(arguments.output)
    for name, score in scores.items():
        print(f"{name:10s} {score:.3f}")
    return 0 if min(scores.values()) >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
