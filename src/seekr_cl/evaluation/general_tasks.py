"""The harness's task configs for local files of ``{"prompt": ..., "answer": ...}``.

What such files lack shows in the results: MMLU's shots come from any subject, and BBH's have no chain of thought.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.system import reading


@dataclass(frozen=True, slots=True)
class Local:
    """A benchmark over local files.

    Attributes:
        shots: examples before the question, drawn from ``train.json``.
        metric: key of the harness's results: metric and filter.
        config: what the harness's config needs beside the data.
    """

    shots: int
    metric: str
    config: dict[str, Any] = field(default_factory=dict)


def _choice(*answers: str) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": list(answers),
        "doc_to_target": f"{{{{{list(answers)}.index(answer)}}}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _written(metric: dict[str, Any], tokens: int, *until: str, **more: Any) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": list(until), "max_gen_toks": tokens, "do_sample": False},
        "metric_list": [{"aggregation": "mean", "higher_is_better": True} | metric],
    } | more


# The pattern and what is left out of the comparison are those of the harness's own GSM8K.
_NUMBER = {
    "name": "strict-match",
    "filter": [{"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"}, {"function": "take_first"}],
}
_PLAIN = {"metric": "exact_match", "regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$"], "ignore_case": True}


def _answered(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F1 by the harness's own TyDiQA code, which treats English (en) and Arabic (ar) apart."""
    from lm_eval.tasks.tydiqa.utils import f1_score, metric_max_over_ground_truths

    return {"f1": metric_max_over_ground_truths(f1_score, results[0].strip(), doc["references"], doc["subtask"][:2])}


LOCAL = {
    "mmlu": Local(5, "acc,none", _choice("A", "B", "C", "D")),
    "gsm8k": Local(8, "exact_match,strict-match", _written(_PLAIN, 256, "\n\n", "Question:", filter_list=[_NUMBER])),
    "bbh": Local(3, "exact_match,none", _written({"metric": "exact_match"}, 32, "\n")),
    "tydiqa": Local(1, "f1,none", _written({"metric": "f1"}, 64, "\n", process_results=_answered)),
    "boolq": Local(0, "acc,none", _choice("False", "True")),
    "piqa": Local(0, "acc,none", _choice("A", "B")),
}


def local_config(name: str, folder: Path) -> dict[str, Any]:
    """A task for the harness.

    Args:
        name: one of ``LOCAL``.
        folder: holds ``<name>/train.json`` and ``<name>/test.json``.

    Raises:
        DataError: naming a file that is missing or cannot be used.
    """
    splits = {split: _rows(folder / name, split) for split in ("train", "test")}
    choices = LOCAL[name].config.get("doc_to_choice")
    for split, rows in splits.items():
        for number, row in enumerate(rows):
            if choices is not None and row["answer"] not in choices:
                place = f"{folder / name / split}.json: row {number}"
                raise DataError(f"{place}: answer {row['answer']!r} is none of {', '.join(choices)}")
    return {
        "task": f"local_{name}",
        "custom_dataset": partial(_dataset, splits),
        "training_split": "train",
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": " ",
    } | LOCAL[name].config


def _rows(folder: Path, split: str) -> list[dict[str, Any]]:
    path = folder / f"{split}.json"
    rows = _read(path)
    beside = {
        key: _read(file) if (file := folder / f"{split}_{kind}.json").is_file() else None
        for key, kind in (("references", "references"), ("subtask", "subtasks"))
    }
    made = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "answer")):
            raise DataError(f"{path}: row {number}: needs the texts 'prompt' and 'answer'")
        one = {"prompt": row["prompt"], "answer": row["answer"], "references": [row["answer"]], "subtask": ""}
        for key, values in beside.items():
            if values is not None:
                if len(values) != len(rows):
                    raise DataError(f"{path}: {len(rows)} rows, but {len(values)} {key} in the file beside it")
                one[key] = values[number]
        made.append(one)
    return made


def _read(path: Path) -> list[Any]:
    try:
        content = reading.read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); --general takes <benchmark>/test.json") from error
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: must be a list of records and not empty")
    return content


def _dataset(splits: dict[str, list[dict[str, Any]]], **_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
