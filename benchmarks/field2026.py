"""The settings and methods of 2026 on a short form of the demo's stream, a row each, over seeds.

    python benchmarks/field2026.py make --rows seqft replay --seeds 0 1 2
    python benchmarks/field2026.py table

A row is a method of the library and settings as on the command line. Three skills that the demo's base model does not
know (``length`` has answers of one token) are learned one after another; after each all three and the eight skills that
it has mastered are asked. Data are those of the demo; the seed draws order and samples. ``make`` runs what is missing,
one run after another, and writes each run's answers to ``results/field2026/``; ``table`` shows what is there.
"""

import argparse
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from study_report import interval

from seekr_cl.config.overrides import apply_overrides
from seekr_cl.demo.skills import BASE_SKILLS, STREAM_SKILLS, Skill, examples
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation.evaluate import read_tally
from seekr_cl.evaluation.predictions import read_answered
from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.evaluation.statistics import Answered, Tally, aggregate_intervals
from seekr_cl.methods import get_method
from seekr_cl.runs.stream_run import run
from seekr_cl.tasks import Task
from seekr_cl.training import config_from

RESULTS = Path(__file__).parent / "results" / "field2026"
TASKS, TRAIN, TEST, PROBES = 3, 300, 60, 20
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 8,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 160,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
    "measure_every": 0,
    "max_length": 64,
    "progress": "none",
    "use_cpu": True,
    "keep_models": "last",
    "checkpoint_every": 0,
}
REPLAY: dict[str, Any] = {"ratio": 0.03, "every": 3}
CLAIM = 3
"""Seeds that a claim needs."""
PROMPTS = "PROMPTS"
"""In a row: a file with 32 prompts of the base skills, four of each, none of which is asked in a test."""
LORA = (
    "seqft peft.peft_type=LORA peft.r=8 peft.lora_alpha=32 peft.target_modules=all-linear peft.lora_dropout=0.1 "
    "learning_rate=2e-3"
)
"""One adapter that is trained on and on, of the size of ``inflora``'s and ``slao``'s."""
ROWS: dict[str, tuple[str, ...]] = {
    "seqft": (
        "seqft",
        "seqft learning_rate=2e-4",
        "seqft learning_rate=1e-4",
        "seqft average=sfa",
        "seqft average=wise_ft",
        "seqft average=ema",
        "seqft train=attention",
        "seqft optim=muon",
        "seqft optim=muon learning_rate=1e-3",
        "seqft optim=muon learning_rate=2e-3",
        "sdft",
    ),
    LORA: (
        LORA,
        "slao learning_rate=2e-3",
        "slao method.targets=all-linear learning_rate=2e-3",
        "inflora learning_rate=2e-3",
        "inflora method.targets=all-linear learning_rate=2e-3",
    ),
    "replay": (
        "replay",
        "inflora method.targets=all-linear learning_rate=2e-3",
        "replay task_loss=dft",
        "replay task_loss=eaft",
        "replay task_loss=talr",
        "replay task_loss=stm",
        "replay task_loss=flow",
        "derpp",
        "seekr measure_every=20",
        "onpolicy_replay method.loss=kl",
    ),
    "derpp": (
        "derpp",
        "derpp general=self",
        f"derpp general.source=self general.prompts={PROMPTS}",
    ),
}
"""What is compared, by the row that it is compared with in pairs."""


def task(skill: Skill, train: int, test: int, seed: int) -> Task:
    """A skill as a task."""
    rows = examples(skill, train + test, seed=seed)
    loaded = Task.load(rows, name=skill.name, max_new_tokens=14)
    return Task(skill.name, loaded.train[:train], test=loaded.train[train:], max_new_tokens=14)


def make(row: str, seed: int) -> dict[str, Any]:
    """One run: its scores, and which answers were right, a digit each."""
    stream = [task(skill, TRAIN, TEST, 1) for skill in STREAM_SKILLS[:TASKS]]
    probes = [task(skill, 1, PROBES, 2) for skill in BASE_SKILLS]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder, as_file(files("seekr_cl.demo") / "model") as model:
        method, *given = row.replace(PROMPTS, str(_prompts(Path(folder)))).split()
        settings = dict(SETTINGS) | {"method": {"name": method}, "seed": seed}
        if get_method(method).replays:
            settings["replay"] = dict(REPLAY)
        config = config_from(apply_overrides(settings, given, None), folder, "field2026")
        output = Path(folder) / "run"
        matrix = run(model, stream, output, config, probes=probes)
        answered = read_answered(output, matrix)
        assert answered is not None
        final = output / "evaluations" / f"{TASKS:02d}-{stream[-1].slug}"
        return {
            "row": row,
            "seed": seed,
            "matrix": matrix.rows,
            "probes": {name: scores[-1] for name, scores in matrix.extra.items()},
            "last": [_digits(tally) for tally in answered.last],
            "learnt": [_digits(tally) for tally in answered.learnt],
            "kept": [_digits(read_tally(final / f"{probe.slug}.jsonl", probe.metric)) for probe in probes],
            "cpu": round(time.process_time() - started, 1),
        }


def _prompts(folder: Path) -> Path:
    """Prompts of the base skills, for the base model to answer itself."""
    asked = {example["prompt"] for skill in BASE_SKILLS for example in examples(skill, 1 + PROBES, seed=2)}
    rows = [row for skill in BASE_SKILLS for row in examples(skill, 4, seed=3, exclude=asked)]
    path = folder / "prompts.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def _digits(tally: Tally) -> str:
    """Exact match of each answer."""
    return "".join("1" if value else "0" for value in tally.columns_NC[:, 0])


def _tallies(answers: list[str]) -> list[Tally]:
    return [Tally(np.array([[100.0 * int(digit)] for digit in one])) for one in answers]


def place(row: str, seed: int) -> Path:
    """Where a run's answers are."""
    return RESULTS / f"{re.sub('[^a-z0-9.]+', '-', row.lower()).strip('-')}-{seed}.json"


def found(row: str) -> dict[int, dict[str, Any]]:
    """A row's runs by seed."""
    runs = {seed: place(row, seed) for seed in range(10)}
    return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in runs.items() if path.exists()}


def _mean_of(key: str) -> Callable[[dict[str, Any]], float]:
    return lambda one: mean(tally.score for tally in _tallies(one[key]))


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else f"{values[0]:.1f}"


def _against(key: str, runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """The paired difference from a base row, with its interval over seeds and answers; bold where that excludes 0
    and rests on three seeds, the least for a claim."""
    shared = sorted(runs.keys() & base.keys())
    pairs = [(_tallies(runs[seed][key]), _tallies(base[seed][key])) for seed in shared]
    if not pairs:
        return "-"
    low, high = interval(pairs)
    value = mean(mean(a.score - b.score for a, b in zip(*pair)) for pair in pairs)
    said = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{said}**" if (low > 0 or high < 0) and len(pairs) >= CLAIM else said


def table(base: str, rows: tuple[str, ...]) -> list[str]:
    """The rows, with their differences from the base row."""
    columns = ["row", "seeds", "right after", "OP", "BWT", "base skills", "right after, less", "OP, less", "base, less"]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        if not (runs := found(row)):
            continue
        each = list(runs.values())
        after = zip(*([tally.score for tally in _tallies(one["learnt"])] for one in each))
        bwt = [_matrix(one).bwt for one in each]
        change = aggregate_intervals([Answered(_tallies(one["last"]), _tallies(one["learnt"])) for one in each])["bwt"]
        cells = [
            f"`{row}`" if row != LORA else "plain LoRA",
            ", ".join(map(str, runs)),
            " ".join(f"{mean(scores):.0f}" for scores in after),
        ]
        cells += [_spread([_mean_of("last")(one) for one in each])]
        cells += [f"{mean(value for value in bwt if value is not None):.1f}"]
        cells[-1] += f" [{change.low:.1f}, {change.high:.1f}]" if change else ""
        cells += [_spread([_mean_of("kept")(one) for one in each])]
        cells += ["" if row == base else _against(key, runs, found(base)) for key in ("learnt", "last", "kept")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _matrix(one: dict[str, Any]) -> ScoreMatrix:
    names = [skill.name for skill in STREAM_SKILLS[:TASKS]]
    return ScoreMatrix(tasks=names, metrics=["exact_match"] * TASKS, base=None, rows=one["matrix"])


def main() -> None:
    """Makes what is missing, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["make", "table"])
    parser.add_argument("--rows", nargs="+", default=list(dict.fromkeys(row for rows in ROWS.values() for row in rows)))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    if given.what == "table":
        for base, rows in ROWS.items():
            print("\n".join(["Less plain LoRA:" if base == LORA else f"Less `{base}`:", "", *table(base, rows), ""]))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    # Seed by seed, so that what is interrupted has whole seeds.
    for seed in given.seeds:
        for row in given.rows:
            path = place(row, seed)
            if not path.exists():
                try:
                    made = make(row, seed)
                except ConfigError as error:
                    # Some settings are refused for what a seed's model makes of the data.
                    print(f"{row} {seed}: {error}", flush=True)
                    continue
                path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
                print(f"{row} {seed}: {made['matrix']} kept {_mean_of('kept')(made):.1f}, {made['cpu']} s", flush=True)


if __name__ == "__main__":
    main()
