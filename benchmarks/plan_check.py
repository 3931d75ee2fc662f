"""What ``seekr plan`` predicts against what is there: bytes, steps, RAM and time of models of four sizes that run here.

    python benchmarks/plan_check.py [--rounds 4] [--output benchmarks/results/plan.md]

Each size learns two tasks with plain fine-tuning, plain replay and SEEKR in alternation, each in a process of its own
(forked after the imports); the order changes from round to round and numbers are medians over the rounds. Time is the
processor's, not the clock's, so that others on the machine weigh less, and it is told apart: scoring is what SEEKR's
calls before and after training take, replay what its training takes beyond plain fine-tuning's.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from tinylm import char_tokenizer, config_for, reverse_task, teach

from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.sample_codec import pack
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.tasks import Encoder, Example, Task
from seekr_cl.training.trainer import SeekrTrainer

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"small": (64, 2, 4), "middle": (192, 4, 6), "large": (384, 6, 6)}
"""Hidden size, layers, heads."""
STORIES = Path(os.environ.get("SEEKR_SHARED", ROOT / ".." / "shared")) / "data" / "tiny_lm" / "stories260K"
METHODS = ("seqft", "replay", "seekr")
LETTERS, EXAMPLES, KEPT = 60, 48, 6
BATCH = 8


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
    common: dict[str, Any] = {"per_device_train_batch_size": BATCH, "signal_dtype": "int8", "measure_every": 0}
    replay = {} if method == "seqft" else {"replay": {"samples": KEPT, "every": 3}}
    return config_for({"name": method} | ({"lambda2": 10.0} if method == "seekr" else {}), folder, **common, **replay)


def tasks_for(base: Path) -> tuple[list[Task], int, int]:
    """Two tasks whose examples all have the same numbers of tokens, and these: of an example and of its answer."""
    tasks = [reverse_task(name, count=EXAMPLES, length=LETTERS, seed=3) for name in ("first", "second")]
    encoder = Encoder(AutoTokenizer.from_pretrained(base), 256)
    draw = random.Random(0)
    if base == STORIES:
        # Its tokens are pieces of words; of many texts those are taken that have the most frequent lengths.
        words = ["".join(draw.choices("abcdef", k=LETTERS)) for _ in range(60 * EXAMPLES)]
        examples = [Example(f"{word}=", word[::-1]) for word in words]
        lengths = [_lengths(encoder, example) for example in examples]
        ((usual, count),) = Counter(lengths).most_common(1)
        if count < 2 * EXAMPLES:
            raise SystemExit(f"only {count} texts of one length; draw more")
        same = [example for example, length in zip(examples, lengths) if length == usual]
        tasks = [Task(f"{number}", same[number::2][:EXAMPLES], test=same[-2:]) for number in (0, 1)]
    found = {_lengths(encoder, example) for task in tasks for example in task.train}
    ((tokens, answer),) = found
    return tasks, tokens, answer


def _lengths(encoder: Encoder, example: Example) -> tuple[int, int]:
    encoded = encoder.encode(example)
    return len(encoded.input_ids), len(encoded.input_ids) - encoded.completion_start


def in_a_fork(method: str, base: Path, folder: Path, tasks: list[Task]) -> dict[str, Any]:
    """One learning in a process of its own: seconds of training and of scoring, steps, peak RAM, RAM of held rows."""
    folder.mkdir()
    child = os.fork()
    if child == 0:
        with open(folder / "found.json", "w", encoding="utf-8") as file:
            json.dump(learn_all(method, base, folder, tasks), file)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{method} failed")
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found | {"peak": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


def learn_all(method: str, base: Path, folder: Path, tasks: list[Task]) -> dict[str, Any]:
    training: list[float] = []
    scoring: list[float] = []
    held = [0]

    def note(one: Any) -> None:
        held.append(sum(rows.num_bytes for layers in one._before.values() for rows in layers.values()))

    SeekrTrainer.train = _timed(SeekrTrainer.train, training)
    for name in ("before_task", "after_task"):
        setattr(Seekr, name, _timed(getattr(Seekr, name), scoring, note))
    done = teach(base, folder, tasks, settings(method, folder))
    return {
        "training": sum(training),
        "scoring": sum(scoring),
        "seconds": sum(training) + sum(scoring),
        "held": max(held),
        "steps": sum(one.steps for one in done),
    }


def _timed(call: Any, seconds: list[float], then: Any = lambda one: None) -> Any:
    def timed(self: Any, *given: Any, **named: Any) -> Any:
        started = time.process_time()
        result = call(self, *given, **named)
        seconds.append(time.process_time() - started)
        then(self)
        return result

    return timed


def measure(base: Path, place: Path, rounds: int) -> dict[str, Any]:
    tasks, tokens, answer = tasks_for(base)
    shape = read_shape(base)
    made = make_plan(shape, settings("seekr", place), Workload([EXAMPLES] * 2, [1.0] * 2, tokens, answer))
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for number in range(rounds):
        # Whoever comes first in a round pays for a cold cache, so the order changes.
        turn = number % len(METHODS)
        for method in METHODS[turn:] + METHODS[:turn]:
            found[method].append(in_a_fork(method, base, place / f"{method}-{number}", tasks))

    def middle(method: str, key: str) -> float:
        return statistics.median(one[key] for one in found[method])

    memory = ReplayMemory.open(place / "seekr-0" / "memory")
    there = sum(tensor.nbytes for _, sample in memory.samples for tensor in pack([sample]).values())
    files = sum(file["bytes"] for task in memory.current.tasks for file in task["files"])
    plain, steps = middle("seqft", "training"), made.steps
    scoring = middle("seekr", "scoring")
    return {
        "parameters": shape.parameters,
        "tokens": (tokens, answer),
        "bytes": (made.chosen.total, there, files),
        "steps": (steps.steps + steps.extra, found["seekr"][0]["steps"]),
        "plain_steps": (steps.steps, found["seqft"][0]["steps"]),
        "held": (made.chosen.held, found["seekr"][0]["held"]),
        "peak": (made.chosen.held + made.chosen.vram, middle("seekr", "peak") - middle("replay", "peak")),
        "replay": (
            steps.replayed / steps.trained,
            middle("replay", "training") / plain - 1,
            middle("seekr", "training") / plain - 1,
        ),
        "scoring": (steps.scored / steps.trained, scoring / plain),
        "sample": (steps.scoring, scoring / plain * steps.trained / sum(made.kept)),
        "share": (steps.time_share, 1 - plain / middle("seekr", "seconds")),
        "seconds": {method: [one["seconds"] for one in found[method]] for method in METHODS},
    }


COLUMNS = (
    "model", "weights", "tokens, answer", "bytes of samples: plan / there", "files", "steps: plan / there",
    "rows held in RAM: plan / there", "peak RAM over plain replay, MB: plan / measured",
    "replay's part of plain training: plan / plain replay / SEEKR", "scoring's part of plain training: plan / measured",
    "scoring a kept sample, in passes of an example: plan / measured",
    "share of all time: plan / measured", "seconds plain (rounds)", "seconds replay", "seconds SEEKR",
)  # fmt: skip


def row(name: str, found: dict[str, Any]) -> str:
    predicted, there, files = found["bytes"]
    cells = [
        name,
        f"{found['parameters']:,}",
        "{}, {}".format(*found["tokens"]),
        f"{predicted:,} / {there:,}",
        f"{files:,}",
        "{} / {}".format(*found["steps"]) + " ({} / {} without replay)".format(*found["plain_steps"]),
        "{:,} / {:,}".format(*found["held"]),
        "{:.1f} / {:.1f}".format(*(value / 1e6 for value in found["peak"])),
        "{:.3f} / {:.3f} / {:.3f}".format(*found["replay"]),
        "{:.3f} / {:.3f}".format(*found["scoring"]),
        "{:.2f} / {:.2f}".format(*found["sample"]),
        "{:.3f} / {:.3f}".format(*found["share"]),
        *(" ".join(f"{value:.2f}" for value in found["seconds"][method]) for method in METHODS),
    ]
    return f"| {' | '.join(cells)} |"


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{os.cpu_count()} x {names[0].partition(':')[2].strip() if names else platform.machine()}"


def write(output: Path, rounds: int, commit: str, load: list[float], lines: list[str]) -> None:
    """What is known so far: whoever stops a long run keeps the sizes that are done."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {_machine()}"
    output.write_text(
        "# The plan against what is there\n\n"
        f"Command: `python benchmarks/plan_check.py --rounds {rounds} --output {output}`. {versions}, one thread, "
        f"commit {commit}; load of the machine {min(load):.1f} to {max(load):.1f} (1 is this script alone). Two tasks "
        f"of {EXAMPLES} examples, {KEPT} kept of each, a replay batch after every third new one, batches of {BATCH}. "
        "Seconds are the processor's.\n\n" + "\n".join(lines) + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sizes", nargs="+", default=["stories260K", *SIZES], choices=["stories260K", *SIZES])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    load = [os.getloadavg()[0]]
    # Asked before anything is written.
    described = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(described, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    print("\n".join(lines), flush=True)
    for name in given.sizes:
        if name == "stories260K" and not (STORIES / "config.json").is_file():
            print(f"{STORIES} is absent; left out (set SEEKR_SHARED)", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as place:
            base = STORIES if name == "stories260K" else save_model(Path(place) / "base", *SIZES[name])
            found = measure(base, Path(place), given.rounds)
        load.append(os.getloadavg()[0])
        lines.append(row(f"{name} {SIZES.get(name, '')}".strip(), found))
        print(lines[-1], flush=True)
        if given.output:
            write(given.output, given.rounds, commit, load, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
