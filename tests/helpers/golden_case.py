"""Golden cases as the library's own objects: samples, models, methods (keys: shared/golden/README.md)."""

import glob
import json
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.models.loading import load_model, pad_id
from seekr_cl.tasks import Encoder, Example
from seekr_cl.training import config_from
from seekr_cl.training.sample_selection import as_sample

PATTERN = os.environ.get(
    "SEEKR_GOLDEN", str(Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "case*")
)
FOLDERS = sorted(Path(path) for path in glob.glob(PATTERN) if (Path(path) / "arrays.npz").is_file())
NO_CASE = f"no golden case matches {PATTERN}; set SEEKR_GOLDEN"
OFFICIAL = config_from({"preset": "official", "use_cpu": True}, "unused").method.settings


def settings(**changes) -> SeekrSettings:
    """The official preset's settings of SEEKR with some changed."""
    return replace(OFFICIAL, **changes)


def close(actual, expected, rel=1e-5, what="", of_max=False):
    """Asserts a relative agreement, element by element or in units of the largest value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    largest = np.abs(expected).max(initial=0.0)
    # Values far below the largest one are sums that cancel; float32 cannot hold them to any relative precision.
    atol = rel * largest if of_max else 1e-2 * rel * largest
    np.testing.assert_allclose(actual, expected, rtol=0 if of_max else rel, atol=atol, err_msg=what)


def heads_of(record: dict) -> dict[int, list[int]]:
    return {int(layer): heads for layer, heads in record.items()}


class Case:
    """One folder of golden numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        self.values = self.meta["values"]
        self.arrays = np.load(folder / "arrays.npz")
        self.names = list(self.arrays.files)
        self._models: dict[str, torch.nn.Module] = {}

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the tasks in the order in which they were learned."""
        texts = json.loads((self.folder / "texts.json").read_text(encoding="utf-8"))
        return [name for name in texts if f"imp/{name}/replay_logits" in self.names]

    @cached_property
    def modes(self) -> list[str]:
        found = [name.split("/")[1] for name in self.names if name.endswith("/attn_grads")]
        return list(dict.fromkeys(found))

    def budget(self, mode: str) -> int | None:
        """Queries per sample in a mode, ``None`` for all."""
        return next(row["query_budget"] for row in self.values["steps"] if row["mode"] == mode) or None

    def model(self, checkpoint: str):
        if checkpoint not in self._models:
            self._models[checkpoint], self._tokenizer = load_model(self.folder / checkpoint)
            self._models[checkpoint].eval()
        return self._models[checkpoint]

    def before(self, task: str) -> str:
        return f"m{self.tasks.index(task)}"

    def after(self, task: str) -> str:
        return f"m{self.tasks.index(task) + 1}"

    @property
    def student(self) -> str:
        return f"m{len(self.tasks) + 1}"

    @cached_property
    def layout(self) -> Layout:
        self.model(self.student)
        collator = self.meta["collator"]
        return Layout(pad_id(self._tokenizer), collator["padding_side"], collator["pad_to_multiple_of"])

    @cached_property
    def samples(self) -> dict[str, list[ReplaySample]]:
        self.model(self.student)
        prompt, answer = self.meta["collator"]["max_prompt_len"], self.meta["collator"]["max_ans_len"]
        encoder = Encoder(self._tokenizer, prompt + answer, "merged", prompt, answer)
        texts = json.loads((self.folder / "texts.json").read_text(encoding="utf-8"))
        given = {name: [Example(row["prompt"], row["answer"]) for row in texts[name]] for name in self.tasks}
        return {name: [as_sample(e, encoder.encode(e), encoder) for e in rows] for name, rows in given.items()}

    def queries(self, mode: str | None, task: str) -> list[torch.Tensor]:
        """The official draw, counted from each sample's first token; all tokens without a mode or a budget."""
        if mode is None or self.budget(mode) is None:
            return [torch.arange(len(sample.ids_L)) for sample in self.samples[task]]
        relative = torch.tensor(self.arrays[f"imp/{mode}/{task}/queries_rel"])
        return [row + len(sample.ids_L) for row, sample in zip(relative, self.samples[task])]

    def method(self, model, importance=None, **changes) -> Seekr:
        context = Context(model, self.layout, importance, seed=0, warn=lambda message: None)
        return Seekr(settings(**changes), context)

    def learn_task(self, mode: str | None, task: str, importance=None, heads=None, **changes) -> SimpleNamespace:
        """What happens to the memory around a task: the model is the checkpoint before it, then the one after it."""
        model, _ = load_model(self.folder / self.before(task))
        model.eval()
        given = {"query_budget": mode and self.budget(mode), **changes}
        method = self.method(model, importance, **given)
        if given["query_budget"]:
            method._draw_queries = lambda lengths: self.queries(mode, task)
        if heads is not None:
            method._choose_heads = lambda: heads
        try:
            method.before_task(self.samples[task])
            model.load_state_dict(self.model(self.after(task)).state_dict())
            done = method.after_task(task, self.samples[task])
        finally:
            method.close()
        return SimpleNamespace(memory=done.task, importance=done.importance, model=model)

    def stream(self, mode: str, manual: bool = False, **changes) -> list[SimpleNamespace]:
        """All tasks one after another, importance accumulating; heads selected under the golden budgets."""
        done, importance = [], None
        for task in self.tasks:
            record = self.values[f"sel/{mode}/{task}"]
            budgets = {"layer_budget": record["layer_budget"], "head_budget": record["head_budget"]}
            heads = heads_of(self.values["sel/manual"][task]) if manual else None
            done.append(self.learn_task(mode, task, importance, heads, **budgets, **changes))
            importance = done[-1].importance
        return done

    @cached_property
    def memories(self) -> dict[tuple[str, str], dict[str, MemoryTask]]:
        """``{(mode, selection): {task: what the library keeps}}``."""
        return {
            (mode, selection): dict(zip(self.tasks, [one.memory for one in self.stream(mode, selection == "manual")]))
            for mode in self.modes
            for selection in ("manual", "auto")
        }


CASES = [Case(folder) for folder in FOLDERS]


def each_case(function):
    """Runs a test on every golden case."""
    if not CASES:
        return pytest.mark.skip(reason=NO_CASE)(pytest.mark.parametrize("case", [None])(function))
    return pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder.name)(function)


def each(what):
    """Runs a test on every ``(case, key)`` for the keys that ``what(case)`` lists."""

    def decorate(function):
        if not CASES:
            return pytest.mark.skip(reason=NO_CASE)(pytest.mark.parametrize(("case", "key"), [(None, None)])(function))
        found = [pytest.param(case, key, id=f"{case.folder.name}-{_id(key)}") for case in CASES for key in what(case)]
        return pytest.mark.parametrize(("case", "key"), found)(function)

    return decorate


def _id(key) -> str:
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)
