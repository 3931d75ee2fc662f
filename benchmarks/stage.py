"""A whole stage: a task of 500 real examples with 1% replay of five earlier tasks, SEEKR against plain replay.

Plain is the method ``replay``: the same examples, the same schedule and so the same tokens, cross entropy only, nothing
scored and nothing stored but text. Both start from the same memory of five tasks, 1% of 500 examples of each.
"""

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timing import ratio, spread
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from seekr_cl.tasks import Task
from seekr_cl.training import config_from, learn

SHARED = Path(os.environ.get("SEEKR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
EARLIER = ("C-STANCE", "FOMC", "Py150", "ScienceQA", "NumGLUE-cm")
TASK = "20Minuten"
LENGTH, EXAMPLES = 256, 500


def stage_ratio(rounds: int = 2) -> dict[str, Any]:
    """CPU seconds of the sixth task's stage under both methods, learned in turn from the same start."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        start, memory = _five_tasks(work)
        seconds: dict[str, list[float]] = {"seekr": [], "replay": []}
        for number in range(rounds):
            for method in ("seekr", "replay") if number % 2 else ("replay", "seekr"):
                copy, output = work / f"memory-{method}-{number}", work / f"model-{method}-{number}"
                shutil.copytree(memory, copy)
                began = time.process_time()
                learn(start, _task(TASK, EXAMPLES), copy, output, _config(method, work))
                seconds[method].append(time.process_time() - began)
                shutil.rmtree(output)
    return {
        "ratio": ratio(seconds["seekr"], seconds["replay"]),
        "spread": spread(seconds["seekr"], seconds["replay"]),
        "seconds": seconds,
    }


def _five_tasks(work: Path) -> tuple[Path, Path]:
    """A small random model after a short look at five tasks, with a memory that holds five examples of each."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "data" / "tiny_lm" / "stories260K")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    current = work / "base"
    LlamaForCausalLM(config).save_pretrained(current)
    tokenizer.save_pretrained(current)
    for name in EARLIER:
        output = work / f"after-{name}"
        learn(current, _task(name, 24), work / "memory", output, _config("seekr", work, samples=EXAMPLES // 100))
        current = output
    return current, work / "memory"


def _task(name: str, examples: int) -> Task:
    task = Task.load(SHARED / "data" / "trace" / name)
    return replace(task, train=task.train[:examples])


def _config(method: str, work: Path, samples: int = EXAMPLES // 100) -> Any:
    budgets = {"layer_budget": 0.75, "head_budget": 0.125, "query_budget": 100} if method == "seekr" else {}
    # What steers lambda2 is part of SEEKR's price; plain training measures no gradients.
    measured = {} if method == "seekr" else {"measure_every": 0}
    settings = {
        "use_cpu": True, "progress": "none", "method": {"name": method, **budgets}, "max_length": LENGTH,
        "num_train_epochs": 1, "per_device_train_batch_size": 8, "replay": {"samples": samples},
        "long_completions": "skip", **measured,
    }  # fmt: skip
    return config_from(settings, str(work / "trainer"))
