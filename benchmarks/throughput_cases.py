"""What the throughput benchmark trains: models of known shapes, and real rows that fit into a length.

Rows are cut once, here, so that every trainer gets the same tokens: TRL would cut a row's end, which is its answer, and
this library the beginning of its prompt.
"""

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEEKR_SHARED", ROOT.parent / "shared"))
SMOLLM2 = Path(os.environ.get("SEEKR_SMOLLM2", ROOT / ".venv" / "smollm2"))

Names = list[str] | None

SETS = {
    "yahoo": ("short", "long_sequence/yahoo"),
    "dbpedia": ("short", "long_sequence/dbpedia"),
    "gsm8k": ("long", "general/gsm8k"),
    "meetingbank": ("long", "trace/MeetingBank"),
}
"""Answer length and folder of every set of rows."""

STREAM = ("agnews", "dbpedia", "amazon", "yelp", "yahoo")
"""The five tasks of the run that is timed as a whole."""

QWEN3 = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
}  # fmt: skip
"""Qwen3-0.6B's config."""

SHAPES = ("smollm2", "smollm2-random", "smollm2-6-layers", "qwen3-random")


@dataclass(frozen=True, slots=True)
class Case:
    """Variants that train the same model on the same rows.

    Attributes:
        shape: of ``SHAPES``, or a model folder.
        weights: ``lora`` or ``full``.
        set: of ``SETS``.
        rows: how many.
        variants: methods of this library, ``trl``, ``trl-packed``.
    """

    shape: str
    weights: str
    set: str
    rows: int
    variants: tuple[str, ...]


def quick_cases(rows: int) -> list[Case]:
    """What is claimed, in minutes: beside TRL on the real model; replay on a cheaper one, where 1% can be kept."""
    return [
        Case("smollm2", "lora", "yahoo", rows, ("trl", "seqft")),
        Case("smollm2", "lora", "gsm8k", max(1, rows // 2), ("trl", "seqft")),
        Case("smollm2-6-layers", "lora", "dbpedia", 3 * rows, ("seqft", "seekr")),
    ]


def whole_cases(rows: int) -> list[Case]:
    """Every shape, kind of weights and set of rows; of long answers half as many."""
    shapes = ("smollm2", "smollm2-random", "qwen3-random")
    variants = ("seqft", "trl", "derpp", "trl-packed", "seekr")
    return [
        Case(shape, weights, name, rows if SETS[name][0] == "short" else max(1, rows // 2), variants)
        for shape in shapes
        for weights in ("lora", "full")
        for name in SETS
    ]


def chosen(cases: list[Case], shapes: Names, sets: Names, weights: Names, variants: Names) -> list[Case]:
    """The cases of these, with these variants; ``None`` leaves all of them."""
    wanted = [
        replace(case, variants=tuple(name for name in case.variants if name in (variants or case.variants)))
        for case in cases
        if case.shape in (shapes or [case.shape])
        and case.set in (sets or [case.set])
        and case.weights in (weights or [case.weights])
    ]
    return [case for case in wanted if case.variants]


def model_folder(shape: str, work: Path) -> Path:
    """The folder of a model: the real SmolLM2, one of these shapes with random weights, or a folder by its path.

    Random ones take SmolLM2's tokenizer: what is timed depends on how many tokens there are, not on which.
    """
    if shape not in SHAPES:
        return Path(shape)
    if not (SMOLLM2 / "config.json").is_file():
        raise SystemExit(f"{SMOLLM2} is absent; make it with 'make smollm2', or name a model folder with --shapes")
    if shape == "smollm2":
        return SMOLLM2
    folder = work / shape
    if not folder.is_dir():
        _save_random(shape, folder)
    return folder


def _save_random(shape: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    if shape == "qwen3-random":
        config = Qwen3Config(**QWEN3, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    else:
        config = AutoConfig.from_pretrained(SMOLLM2)
        if shape == "smollm2-6-layers":
            config.num_hidden_layers = 6
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SMOLLM2).save_pretrained(folder)


@cache
def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def write_rows(data: Path, count: int, model: Path, length: int, file: Path, skip: int = 0) -> int:
    """Writes rows of a task folder whose prompt and answer fit, prompts cut on their left.

    Args:
        data: a folder with ``train.json``.
        count: how many rows.
        model: folder with the tokenizer.
        length: tokens of a row with its end token.
        file: the new JSONL file.
        skip: rows left out at the beginning.

    Returns:
        The tokens of all rows, their end tokens included: the useful ones.
    """
    if not data.is_dir():
        raise SystemExit(f"{data} is absent; set SEEKR_SHARED to the folder with the real data")
    tokenizer = _tokenizer(model)
    lines: list[str] = []
    tokens = 0
    for row in json.loads((data / "train.json").read_text(encoding="utf-8"))[skip:]:
        answer = " " + row["answer"].strip()
        prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        needed = len(tokenizer(answer, add_special_tokens=False).input_ids) + 1
        if needed > length // 2:
            continue
        # Cut text may come out a few tokens longer than its pieces.
        spare = 8 if len(prompt) + needed > length else 0
        text = tokenizer.decode(prompt[-(length - needed - spare) :]) if spare else row["prompt"]
        lines.append(json.dumps({"prompt": text, "completion": answer}))
        tokens += min(len(prompt), length - needed - spare) + needed
        if len(lines) == count:
            break
    if len(lines) < count:
        raise SystemExit(
            f"{data}: only {len(lines)} of {count} rows fit into {length} tokens; ask for fewer with --rows"
        )
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokens


def write_stream(model: Path, train: int, test: int, length: int, work: Path) -> Path:
    """The YAML file of a stream of five tasks, with its rows beside it."""
    tasks = []
    for name in STREAM:
        folder, data = work / "stream" / name, SHARED / "data" / "long_sequence" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(data, train, model, length, folder / "train.jsonl")
        write_rows(data, test, model, length, folder / "test.jsonl", skip=4 * train)
        files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
        tasks.append({"name": name, "data": files["train"], "test": files["test"], "max_new_tokens": 8})
    file = work / "stream.yaml"
    # JSON is YAML.
    file.write_text(json.dumps({"model": str(model), "tasks": tasks}), encoding="utf-8")
    return file
