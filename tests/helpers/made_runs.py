"""Run folders whose answers are drawn from given chances, written by the library's own writers."""

import json
import random
from pathlib import Path
from typing import Any

from seekr_cl.evaluation import ScoreMatrix, score_answers, write_predictions
from seekr_cl.evaluation.scoring import scoring_hash
from seekr_cl.system.files import write_json
from seekr_cl.tasks import Example, Task

EVALUATION = {
    "engine": "transformers", "version": "5", "dtype": "float32", "device": "cpu", "batch_size": 8,
    "same_for_any_batch_size": True, "decoding": {"strategy": "greedy", "stop": ["</s>"]}, "max_length": 64,
    "prompt_boundary": "separate",
}  # fmt: skip


class _Plain:
    """Renders as the encoder does, without a tokenizer."""

    class texts:  # noqa: N801
        """Every text is read as it is."""

        as_read, length = staticmethod(str), staticmethod(len)

    def render(self, example: Example) -> tuple[str, str]:
        return example.prompt, example.completion


def task(name: str, count: int = 40, **more: Any) -> Task:
    examples = [Example(f"{name} {number}", str(number % 3)) for number in range(count)]
    return Task(name, examples, test=examples, **more)


def make_run(
    folder: Path, method: str, seed: int, final: float, tasks: list[Task] | None = None, stages: int | None = None,
    settings: dict[str, Any] | None = None, **ledger: Any,
) -> Path:  # fmt: skip
    """A run that answers right with chance 0.9 just after learning and ``final`` after the last task."""
    tasks = tasks or [task("a"), task("b"), task("c")]
    rng = random.Random(f"{method} {seed}")
    matrix = ScoreMatrix([one.name for one in tasks], [one.metric for one in tasks], [0.0] * len(tasks))
    stages = len(tasks) if stages is None else stages
    for stage in range(stages):
        row = []
        for place, one in enumerate(tasks):
            chance = 0.0 if place > stage else 0.9 if place == stage else 0.9 + (final - 0.9) * stage / (len(tasks) - 1)
            answers = [e.completion if rng.random() < chance else "no" for e in one.test]
            score = score_answers(one, _Plain(), answers)
            write_predictions(folder / "evaluations" / f"{stage + 1:02d}-{tasks[stage].slug}", score)
            row.append(score.score)
        matrix.rows.append(row)
    described = {"name": method, "preset": None, "settings": settings or {}, "replay": None, "memory": None}
    about = {"method": described, "seed": seed, "seconds": 60.0 + seed, "memory_bytes": 2_000_000 + seed}
    write_json(folder / "scores.json", matrix.to_json() | about | {"evaluation": EVALUATION})
    identity = {
        "method": described, "seed": seed, "model_sha256": "m", "training": {"num_train_epochs": 3.0},
        "tasks": [
            {"name": t.name, "metric": t.metric, "epochs": t.epochs, "fingerprint": t.fingerprint()}
            | {"test": scoring_hash(t)} for t in tasks
        ],
    }  # fmt: skip
    write_json(folder / "run.json", identity | ledger)
    return folder


def change(path: Path, **new: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in new.items():
        inner = content
        *above, last = key.split("__")
        for one in above:
            inner = inner[one]
        inner[last] = value
    write_json(path, content)
