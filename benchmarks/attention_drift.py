"""How far attention moves while a stream is learned, with and without its distillation.

    python benchmarks/attention_drift.py study --runs runs/study/labels3_lora --seeds 0 1 2
    python benchmarks/attention_drift.py demo --seeds 0 1 2

A SEEKR memory holds, for each kept sample, what the chosen heads looked at and what the model said right after the
sample's task. At a stream's end each method's model is asked again: KL of its attention from the stored rows (mean over
samples, heads and queries, in nats a row) and KL of its output from the stored one (mean over answer tokens). All
methods keep the same samples, and only ``seekr`` is trained on the rows. ``study`` takes the models of finished runs of
``benchmarks/study.py``, ``demo`` learns three tasks of the demo's stream first. Where attention hardly moves without
its distillation, there is nothing for that to hold.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from statistics import mean

import torch
from field2026 import REPLAY, SETTINGS, TASKS, TEST, TRAIN, task

from seekr_cl.attention import AttentionTap, DistillRows
from seekr_cl.demo.skills import STREAM_SKILLS
from seekr_cl.memory import MemoryTask, ReplayMemory
from seekr_cl.methods import Layout
from seekr_cl.methods.common.logit_distillation import LogitSettings, distil_logits, pad_logits
from seekr_cl.methods.common.teachers import row_targets
from seekr_cl.models.loading import load_model
from seekr_cl.runs.stream_run import run
from seekr_cl.training import config_from

LAYOUT = Layout(pad_id=0)
STUDY = {"seqft": "seqft", "derpp": "derpp-4", "seekr": "seekr-4"}
"""Methods and the study's rows."""


@torch.no_grad()
def moved(model: torch.nn.Module, kept: MemoryTask) -> tuple[float, float]:
    """KL of attention and of the output from what is stored, means over a task's samples."""
    pairs = list[tuple[float, float]]()
    with AttentionTap(model) as tap:
        for sample in kept.samples:
            length = len(sample.ids_L)
            tap.action = distil = DistillRows(row_targets([(kept, sample)], LAYOUT, length, "sample_mean"))
            output = model(input_ids=sample.ids_L[None], use_cache=False).logits.float()
            logits = distil_logits(output, pad_logits([sample], LAYOUT, length), LogitSettings())
            pairs.append((sum(value.item() for value in distil.losses().values()), logits.item()))
    attention, outputs = zip(*pairs)
    return mean(attention), mean(outputs)


def measure(models: Mapping[str, Path], memory: Path, seed: int) -> list[dict[str, object]]:
    """A row for each model and each task but the last, which the models have just learned."""
    rows = []
    for name, folder in models.items():
        model = load_model(folder)[0].eval()
        for age, kept in enumerate(reversed(ReplayMemory.open(memory).tasks)):
            if age:
                attention, outputs = moved(model, kept)
                rows.append(
                    {
                        "method": name,
                        "seed": seed,
                        "task": kept.name,
                        "age": age,
                        "attention": attention,
                        "output": outputs,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def of_study(runs: Path, seed: int) -> tuple[dict[str, Path], Path]:
    """The last models of the study's runs, and SEEKR's memory."""
    models = {name: next((runs / f"{row}-{seed}" / "models").glob("0*"), None) for name, row in STUDY.items()}
    return {name: folder for name, folder in models.items() if folder}, runs / f"{STUDY['seekr']}-{seed}" / "memory"


def of_demo(seed: int, work: Path) -> Iterator[tuple[dict[str, Path], Path]]:
    """The models of a short form of the demo's stream."""
    stream = [task(skill, TRAIN, TEST, 1) for skill in STREAM_SKILLS[:TASKS]]
    with as_file(files("seekr_cl.demo") / "model") as model:
        for name in STUDY:
            settings = SETTINGS | {"method": name, "seed": seed}
            if name != "seqft":
                settings["replay"] = dict(REPLAY)
            if name == "seekr":
                settings["measure_every"] = 20
            config = config_from(settings, str(work / "trainer"))
            run(str(model), stream, work / name, config)
    models = {name: next((work / name / "models").glob("0*")) for name in STUDY}
    yield models, work / "seekr" / "memory"


def table(rows: list[dict[str, object]]) -> str:
    """Means over seeds, lowest to highest, by a sample's age in tasks."""
    lines = [
        "| method | tasks since | seeds | attention, nats a row | output, nats a token |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, age in sorted(
        {(str(row["method"]), int(str(row["age"]))) for row in rows}, key=lambda one: (one[1], one[0])
    ):
        some = [row for row in rows if (row["method"], row["age"]) == (name, age)]
        cells = [f"`{name}`", str(age), ", ".join(str(row["seed"]) for row in some)]
        for key in ("attention", "output"):
            values = [float(str(row[key])) for row in some]
            cells.append(f"{mean(values):.3g} ({min(values):.3g} to {max(values):.3g})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["study", "demo"])
    parser.add_argument("--runs", type=Path, default=Path("runs/study/labels3_lora"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = list[dict[str, object]]()
    for seed in given.seeds:
        if given.what == "study":
            rows += measure(*of_study(given.runs, seed), seed)
            continue
        with tempfile.TemporaryDirectory() as work:
            for made in of_demo(seed, Path(work)):
                rows += measure(*made, seed)
    print(table(rows))


if __name__ == "__main__":
    main()
