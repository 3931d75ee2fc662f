"""The layouts in which benchmarks are published, read into rows of prompt, answer and references.

======================  =================================================================================
layout                  where, and what a file holds
======================  =================================================================================
plain (TRACE)           ``<task>/{train,eval,test}.json``: a list of ``{prompt, answer}``
CL_Benchmark (O-LoRA)   ``<category>/<task>/{train,dev,test}.json``: a list of ``{sentence, label}``, with
                        ``labels.json`` beside it and ``configs/instruction_config.json`` above
natural-instructions    ``<task>/{train,dev,test}.json`` (SAPT, of Long_Sequence in another template) or
                        ``<task>_<title>.json``, which is split here:
                        ``{Definition, Instances: [{input, output}]}``
======================  =================================================================================
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seekr_cl.errors import DataError, nearest
from seekr_cl.system import reading
from seekr_cl.system.utf8 import decoded
from seekr_cl.tasks.benchmarks.archives import Files
from seekr_cl.tasks.benchmarks.registry import Benchmark
from seekr_cl.tasks.examples import example_from, kind_of

_SPLITS = {"train": ("train",), "eval": ("eval", "dev", "validation"), "test": ("test",)}
_INSTRUCTIONS = "instruction_config.json"
_NO_INSTRUCTION = ("COPA",)
"""O-LoRA's categories whose sentences are whole prompts already."""
_GENERATED = "generated_data"
"""SAPT's repository holds what its models made of every task, under the tasks' own names."""
SPLIT_SEED, TEST_ROWS, EVAL_ROWS, TRAIN_ROWS = 0, 100, 100, 1000
"""How a natural-instructions file is split: in the sizes of SAPT, which does not publish its draw."""


class MissingTaskError(DataError):
    """A source without one of the benchmark's tasks, which some of its orders may not need."""


@dataclass(slots=True)
class Rows:
    """One task as read.

    Attributes:
        splits: ``{split: [{prompt, answer, references?}]}``.
        notes: what is not as published.
    """

    splits: dict[str, list[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)


def read_task(files: Files, benchmark: Benchmark, task: str, variant: str | None) -> Rows:
    """Find a task in any of the layouts and read it.

    Args:
        files: the folder or archive.
        benchmark: whose names and aliases count.
        task: the task.
        variant: the edition; only paths that name it are looked at where any path names an edition.

    Returns:
        Its rows; those with an empty answer are left out, and a note says how many.

    Raises:
        DataError: if the task is missing, there twice, in no known layout, or a row cannot be used.
    """
    found = _find(files, benchmark, task, variant)
    if "whole" in found:
        rows = _split(_natural(found["whole"], _json(files, found["whole"]), task), task)
    else:
        rows = Rows({split: _rows(files, name, task) for split, name in found.items()})
    for split in ("train", "test"):
        if not rows.splits.get(split):
            raise DataError(f"{files.label}: task {task} has no {split} rows; give the whole archive")
    empty = 0
    for split, given in rows.splits.items():
        kept = [row for row in given if row["answer"]]
        empty += len(given) - len(kept)
        rows.splits[split] = kept
    if empty:
        rows.notes.append(f"{task}: {empty} rows without an answer left out")
    return rows


def _find(files: Files, benchmark: Benchmark, task: str, variant: str | None) -> dict[str, str]:
    folders: dict[str, dict[str, str]] = {}
    single = []
    wanted = (task, *benchmark.aliases.get(task, ()))
    for name in _of_variant(files, benchmark, variant):
        *above, file = name.split("/")
        stem, dot, suffix = file.rpartition(".")
        if not dot or suffix != "json" or _GENERATED in above:
            continue
        if above and _is(above[-1], wanted):
            for split, spellings in _SPLITS.items():
                if stem in spellings:
                    folders.setdefault("/".join(above), {})[split] = name
        elif _is(stem, wanted):
            single.append(name)
    if len(folders) + len(single) > 1:
        both = ", ".join([*folders, *single][:3])
        raise DataError(f"{files.label}: task {task} is there more than once ({both}); give one of these folders")
    if not folders and not single:
        known = {part for name in files.names for part in name.split("/")[:-1]}
        edition = f" of variant {variant}" if variant else ""
        raise MissingTaskError(f"{files.label}: no task {task}{edition} in a known layout{nearest(task, known)}")
    return next(iter(folders.values())) if folders else {"whole": single[0]}


def _is(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a folder or file is a task's: natural-instructions add a title to the number."""
    return any(name == one or (one.startswith("task") and name.startswith(f"{one}_")) for one in wanted)


def names_edition(part: str, benchmark: Benchmark) -> str | None:
    """The variant that a folder's name ends in, as in ``LLM-CL-Benchmark_5000``."""
    ending = part.casefold().rpartition("_")[2]
    return ending if "_" in part and ending in benchmark.variants else None


def _of_variant(files: Files, benchmark: Benchmark, variant: str | None) -> list[str]:
    editions = {
        name: next((found for part in name.split("/")[:-1] if (found := names_edition(part, benchmark))), None)
        for name in files.names
    }
    if variant is None or not any(editions.values()):
        return files.names
    return [name for name, edition in editions.items() if edition == variant]


def _json(files: Files, name: str) -> Any:
    try:
        text = decoded(files.read(name))
        reading.require_records(text)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{files.label}: {name}: invalid JSON ({error}); download it again") from None


def _rows(files: Files, name: str, task: str) -> list[dict[str, Any]]:
    content = _json(files, name)
    if isinstance(content, Mapping):
        return _natural(name, content, task)
    if not isinstance(content, list) or not content:
        raise DataError(f"{files.label}: {name}: must be a list of rows, not {kind_of(content)}")
    if isinstance(content[0], Mapping) and "sentence" in content[0]:
        return _labelled(files, name, content)
    rows = []
    references = _references(files, name, len(content))
    for number, row in enumerate(content, 1):
        example = example_from(row, f"{files.label}: {name} row {number}", allow_empty=True)
        if example.messages is not None:
            raise DataError(f"{files.label}: {name} row {number}: benchmarks have prompt and answer, not messages")
        more = {"references": references[number - 1]} if references else {}
        rows.append({"prompt": example.prompt, "answer": example.completion, **more})
    return rows


def _references(files: Files, name: str, count: int) -> list[Any]:
    beside = name.removesuffix(".json") + "_references.json"
    if beside not in files.names:
        return []
    content = _json(files, beside)
    fits = isinstance(content, list) and len(content) == count
    if not fits or not all(isinstance(one, list) and one and all(isinstance(t, str) for t in one) for one in content):
        raise DataError(f"{files.label}: {beside}: must hold a list of texts for each of the {count} rows of {name}")
    return content


def _labelled(files: Files, name: str, content: list[Any]) -> list[dict[str, Any]]:
    """O-LoRA's rows: task and data set, instruction, options, sentence."""
    folder, _, _ = name.rpartition("/")
    category, task = (["", *folder.split("/")])[-2:]
    head = f"Task:{category}\nDataset:{task}\n"
    if category not in _NO_INSTRUCTION:
        labels = _json(files, f"{folder}/labels.json") if f"{folder}/labels.json" in files.names else None
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise DataError(f"{files.label}: {folder}: needs labels.json, a list of the labels")
        head += f"{_instruction(files, category)}Option: {', '.join(labels)} \n"
    rows = []
    for number, row in enumerate(content, 1):
        texts = [row.get(key) if isinstance(row, Mapping) else None for key in ("sentence", "label")]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{files.label}: {name} row {number}: must hold 'sentence' and 'label' as text")
        rows.append({"prompt": f"{head}{texts[0]}\nAnswer:", "answer": texts[1]})
    return rows


def _instruction(files: Files, category: str) -> str:
    found = [name for name in files.names if name.rpartition("/")[2] == _INSTRUCTIONS]
    if len(found) != 1:
        raise DataError(
            f"{files.label}: needs one {_INSTRUCTIONS}, has {len(found)}; give the whole repository, "
            "whose configs/ folder holds it, and not CL_Benchmark alone"
        )
    content = _json(files, found[0])
    try:
        return next(str(one["instruction"]) for one in content[category] if one["instruction_type"] == "zero-shot")
    except (KeyError, TypeError, StopIteration):
        raise DataError(f"{files.label}: {found[0]}: no zero-shot instruction for {category}") from None


def _natural(name: str, content: Any, task: str) -> list[dict[str, Any]]:
    """Natural-instructions' rows in the zero-shot templates of SAPT's loader, their trailing space left out."""
    numbered = task.startswith("task")
    try:
        told = content["Definition"]
        # Long_Sequence's COPA has an empty list: its inputs are whole questions.
        lines = [told] if isinstance(told, str) else list(told)
        definition = lines[0].strip() if lines or numbered else ""
        pairs = [(one["input"], one["output"]) for one in content["Instances"]]
    except (KeyError, TypeError, IndexError, AttributeError):
        raise DataError(f"{name}: must hold 'Definition' and 'Instances' with input and output") from None
    if numbered:
        head = f"Definition: {definition}\n\nNow complete the following example -\nInput: "
    else:
        head = f"{definition}\n" if told else ""
    rows = []
    for number, (given, output) in enumerate(pairs, 1):
        answers = [output] if isinstance(output, str) else output
        if not isinstance(given, str) or not isinstance(answers, list) or not answers:
            raise DataError(f"{name} instance {number}: input must be text and output a list of texts")
        if not all(isinstance(answer, str) for answer in answers):
            raise DataError(f"{name} instance {number}: output must be a list of texts")
        answers = [answer.strip() for answer in answers]
        rows.append(
            {"prompt": f"{head}{given}\nOutput:", "answer": answers[0]}
            | ({"references": answers} if len(answers) > 1 else {})
        )
    return rows


def _split(rows: list[dict[str, Any]], task: str) -> Rows:
    drawn = random.Random(SPLIT_SEED).sample(rows, len(rows))
    if len(rows) < 3:
        raise DataError(f"task {task}: {len(rows)} instances are too few to split")
    test = min(TEST_ROWS, len(rows) // 3)
    ends = (test, test + min(EVAL_ROWS, len(rows) // 3))
    splits = {"train": drawn[ends[1] : ends[1] + TRAIN_ROWS], "eval": drawn[ends[0] : ends[1]], "test": drawn[:test]}
    return Rows(splits, [f"{task}: split drawn by seekr-cl (seed {SPLIT_SEED}), SAPT does not publish its draw"])
