"""What SEEKR measures on kept samples, beside plain passes over them: before_task and after_task of one task.

    python benchmarks/task_ends.py [--model FOLDER] [--samples 16] [--length 512] [--rounds 5] [--quick]

The plain passes are two forward and one backward pass over the same samples with the same model, one sample at a time
as well as in batches of similar length, with the loss on the answers' tokens; the backward pass gives the gradients of
all weights. Alternated in one process on one thread; medians of each round's own ratio.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import alternate, machine, ratio, spread

from seekr_cl.memory import ReplaySample
from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.models.loading import load_model
from seekr_cl.tasks import Encoder, Task, collate
from seekr_cl.training.sample_selection import as_sample

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEEKR_SHARED", ROOT / ".." / "shared"))
SHAPES = {
    "short answers": "long_sequence/yahoo",
    "long answers": "trace/MeetingBank",
}


def samples_of(path: str, length: int, count: int, tokenizer: Any) -> list[ReplaySample]:
    """The first rows of a task that fit, as the memory keeps them."""
    encoder = Encoder(tokenizer, length)
    found: list[ReplaySample] = []
    for example in Task.load(SHARED / "data" / path).train:
        try:
            found.append(as_sample(example, encoder.encode(example), encoder))
        except ValueError:
            continue
        if len(found) == count:
            break
    return found


def plain(model: Any, samples: list[ReplaySample], rows: int) -> Callable[[], None]:
    """Two forward passes and one backward pass, so many rows at a time, rows of similar length together."""
    order = sorted(range(len(samples)), key=lambda place: len(samples[place].ids_L))
    batches = [
        collate([samples[place].encoded for place in order[start : start + rows]], 0)
        for start in range(0, len(order), rows)
    ]

    def run() -> None:
        for batch in batches:
            given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
            with torch.no_grad():
                model(**given)
            causal_lm_loss(model(**given).logits, batch["labels"]).backward()
            model.zero_grad(set_to_none=True)

    return run


def task_ends(model: Any, samples: list[ReplaySample]) -> Callable[[], None]:
    """``before_task`` and ``after_task`` as ``seekr learn`` calls them, with the library's settings."""
    kind = get_method("seekr")

    def run() -> None:
        method: Any = kind(kind.Settings(), Context(model, Layout(0), None, 0, print, "int8"))
        try:
            method.before_task(samples)
            method.after_task("task", samples)
        finally:
            method.close()

    return run


def measure(
    folder: Path, count: int, rounds: int, rows: int, length: int, shapes: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ratios by shape, each as soon as it is measured."""
    model, tokenizer = load_model(folder)
    model.eval()
    for name in shapes:
        samples = samples_of(SHAPES[name], length, count, tokenizer)
        # What is set up once is set up on one sample: a round of all would take as long as one that counts.
        task_ends(model, samples[:1])()
        plain(model, samples[:1], 1)()
        seconds = alternate(
            {
                "task ends": task_ends(model, samples),
                "plain, one at a time": plain(model, samples, 1),
                "plain, in batches": plain(model, samples, rows),
            },
            rounds,
            warm=False,
        )
        ours = seconds.pop("task ends")
        yield (
            name,
            {
                "tokens": sum(len(sample.ids_L) for sample in samples),
                "seconds": statistics.median(ours),
                "over": {
                    other: {"ratio": ratio(ours, theirs), "range": spread(ours, theirs)}
                    for other, theirs in seconds.items()
                },
            },
        )


def main() -> None:
    """Prints the table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=os.environ.get("SEEKR_SMOLLM2", ROOT / ".venv" / "smollm2"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4, help="rows of a plain batch")
    parser.add_argument("--length", type=int, default=512, help="the most tokens of a sample")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="only these")
    parser.add_argument("--quick", action="store_true", help="3 samples of 128 tokens, 2 rounds: two minutes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, rounds, length = (3, 2, 128) if options.quick else (options.samples, options.rounds, options.length)
    found = measure(Path(options.model), count, rounds, options.rows, length, options.shapes)
    if options.json:
        print(json.dumps(dict(found)))
        return
    print("| samples | tokens | seconds | over | ratio (median) | lowest to highest |\n|---|---|---|---|---|---|")
    for name, one in found:
        for other, made in one["over"].items():
            print(
                f"| {count} of {name} | {one['tokens']} | {one['seconds']:.2f} | {other} | {made['ratio']:.3f} "
                f"| {made['range']} |",
                flush=True,
            )
    print(f"\nMachine: {machine()}.")


if __name__ == "__main__":
    main()
