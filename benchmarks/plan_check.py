"""What ``seekr plan`` predicts against what is there: bytes, steps and time of models of three sizes that run here.

    python benchmarks/plan_check.py [--rounds 4] [--output benchmarks/results/plan.md]

Each size learns two tasks with SEEKR and with plain fine-tuning in alternation, in one process; times are medians over
the rounds, and the predicted share of time (passes over replay and scoring among all passes) stands beside the measured
one (what SEEKR takes longer).
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))

from tinylm import char_tokenizer, config_for, reverse_task, teach

from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.records import encode
from seekr_cl.planning import Workload, make_plan, read_shape

SIZES = {"small": (64, 2, 4), "middle": (192, 4, 6), "large": (384, 6, 6)}
"""Hidden size, layers, heads."""
LETTERS, EXAMPLES, KEPT = 60, 48, 6
TOKENS, ANSWER = 2 * LETTERS + 2, LETTERS + 1


def save_model(folder: Path, hidden: int, layers: int, heads: int) -> Path:
    tokenizer = char_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=256, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(method: str, folder: Path) -> Any:
    common: dict[str, Any] = {"per_device_train_batch_size": 8, "signal_dtype": "int8", "measure_every": 0}
    if method == "seqft":
        return config_for(method, folder, **common)
    return config_for({"name": method, "lambda2": 10.0}, folder, replay={"samples": KEPT, "every": 3}, **common)


def measure(base: Path, place: Path, rounds: int) -> dict[str, Any]:
    tasks = [reverse_task(name, count=EXAMPLES, length=LETTERS, seed=3) for name in ("first", "second")]
    shape = read_shape(base)
    made = make_plan(shape, settings("seekr", place), Workload([EXAMPLES] * 2, [1.0] * 2, TOKENS, ANSWER))
    seconds: dict[str, list[float]] = {"seekr": [], "seqft": []}
    steps: dict[str, int] = {}
    for number in range(rounds):
        # Whoever comes first in a round pays for a cold cache, so the order changes.
        for method in sorted(seconds, reverse=bool(number % 2)):
            folder = place / f"{method}-{number}"
            done = teach(base, folder, tasks, settings(method, folder))
            seconds[method].append(sum(one.seconds for one in done))
            steps[method] = sum(one.steps for one in done)
    memory = ReplayMemory.open(place / "seekr-0" / "memory")
    held = sum(len(encode(sample).content) for _, sample in memory.samples)
    files = sum(file["bytes"] for task in memory.current.tasks for file in task["files"])
    times = {method: statistics.median(values) for method, values in seconds.items()}
    return {
        "parameters": shape.parameters,
        "bytes": (made.chosen.total, held, files),
        "steps": (made.steps.steps + made.steps.extra, steps["seekr"]),
        "plain": (made.steps.steps, steps["seqft"]),
        "share": (made.steps.time_share, 1 - times["seqft"] / times["seekr"]),
        "seconds": seconds,
    }


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{os.cpu_count()} x {names[0].partition(':')[2].strip() if names else platform.machine()}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = [
        "| model | weights | bytes of samples: plan / there | files | steps: plan / there | "
        "share of time: plan / measured | seconds SEEKR (rounds) | seconds plain (rounds) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory() as place:
            found = measure(save_model(Path(place) / "base", *sizes), Path(place), given.rounds)
        predicted, held, files = found["bytes"]
        shown = {key: " ".join(f"{value:.2f}" for value in values) for key, values in found["seconds"].items()}
        lines.append(
            f"| {name} {sizes} | {found['parameters']:,} | {predicted:,} / {held:,} | {files:,} | "
            f"{found['steps'][0]} / {found['steps'][1]} ({found['plain'][0]} / {found['plain'][1]} without replay) | "
            f"{found['share'][0]:.3f} / {found['share'][1]:.3f} | {shown['seekr']} | {shown['seqft']} |"
        )
        print(lines[-1], flush=True)
    if given.output:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
        ).stdout.strip()
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {_machine()}"
        given.output.write_text(
            "# The plan against what is there\n\n"
            f"Command: `python benchmarks/plan_check.py --rounds {given.rounds} --output {given.output}`. "
            f"{versions}, one thread, commit {commit}. Two tasks of {EXAMPLES} examples of {TOKENS} tokens, {KEPT} "
            "kept of each, a replay batch after every third new one, batches of 8.\n\n" + "\n".join(lines) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
