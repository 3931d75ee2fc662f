"""Whole runs of the official ``main()`` against ``learn``, task by task (e2e*.json beside the golden cases)."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import FOLDERS, PATTERN, close, heads_of
from safetensors.torch import load_file, save_file

from seekr_cl.memory import ReplayMemory
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.tasks import Task
from seekr_cl.training import config_from, learn
from seekr_cl.training.optimizer_carryover import FILE as CARRY
from seekr_cl.training.trainer import SeekrTrainer

LOSS, NORM, IMPORTANCE, PARAMETER = 1e-3, 5e-3, 1e-3, 5e-3
TERMS = {"loss_replay": "ce", "loss_logits": "logits_distill"}


@dataclass(frozen=True)
class Golden:
    """One run of an e2e file."""

    file: Path
    name: str
    run: dict[str, Any]
    runs: dict[str, Any]

    @property
    def options(self) -> dict[str, str]:
        argv = self.run["argv"]
        return dict(zip(argv[::2], argv[1::2]))

    def path(self, option: str) -> Path:
        return self.file.parent / self.options[option]

    def settings(self) -> dict[str, Any]:
        o = self.options
        return {
            "preset": "official",
            "method": {
                "name": "seekr",
                "lambda1": 1 - float(o["--logits_distill_weight"]),
                "lambda2": float(o["--attns_distill_weight"]),
                "layer_budget": int(o["--attn_layer_budget"]),
                "head_budget": int(o["--attn_head_budget"]),
                "query_budget": int(o["--attn_query_budget"]) or None,
                "gradient_leak": self.run["settings"]["leak"],
            },
            "replay": {"ratio": float(o["--past_task_ratio"])},
            "learning_rate": float(o["--learning_rate"]),
            "weight_decay": float(o["--weight_decay"]),
            "warmup_steps": int(o["--num_warmup_steps"]),
            "per_device_train_batch_size": int(o["--per_device_train_batch_size"]),
            "gradient_accumulation_steps": int(o["--gradient_accumulation_steps"]),
            "max_prompt_length": int(o["--max_prompt_len"]),
            "max_answer_length": int(o["--max_ans_len"]),
            "seed": int(o["--seed"]),
            "logging_steps": 1,
            "progress": "none",
            "measure_every": 0,
            "use_cpu": True,
        }

    def tasks(self) -> list[Task]:
        names = self.options["--dataset_name"].split(",")
        epochs = [float(n) for n in self.options["--num_train_epochs"].split(",")]
        return [Task.load(str(self.path("--data_path") / name), epochs=n) for name, n in zip(names, epochs)]

    def queries(self, number: int) -> list[list[int]] | str:
        return self.run["after_task"][number]["queries_relative"]


def all_runs() -> list[Golden]:
    found = []
    beside = {folder.parent for folder in FOLDERS} or {Path(os.path.dirname(PATTERN) or ".")}
    for file in sorted(file for folder in beside for file in folder.glob("e2e*.json")):
        runs = json.loads(file.read_text(encoding="utf-8"))
        found += [Golden(file, name, run, runs) for name, run in runs.items()]
    return found


RUNS = all_runs()
each_run = pytest.mark.parametrize(
    "golden",
    [pytest.param(golden, id=f"{golden.file.stem}-{golden.name}") for golden in RUNS]
    or [pytest.param(None, marks=pytest.mark.skip(reason=f"no e2e*.json beside {PATTERN}"))],
)


def run_tasks(golden: Golden, folder: Path, monkeypatch, first: int = 0, last: int | None = None, model: Any = None):
    """Learns tasks ``first`` to ``last``; returns, for each, its log, its kinds of batches and the state on disk."""
    config = config_from(golden.settings(), str(folder / "trainer"))
    model, results, kinds = model or golden.path("--model_name_or_path"), [], []
    step = SeekrTrainer.compute_loss

    def noted(self, network, inputs, *args, **kwargs):
        kinds.append("R" if "replay" in inputs else "n")
        return step(self, network, inputs, *args, **kwargs)

    monkeypatch.setattr(SeekrTrainer, "compute_loss", noted)
    for number, task in list(enumerate(golden.tasks()))[first : None if last is None else last + 1]:
        relative = golden.queries(number)
        if relative != "all":
            drawn = lambda self, lengths, rows=relative: [torch.tensor(r) + n for r, n in zip(rows, lengths)]  # noqa: E731
            monkeypatch.setattr(Seekr, "_draw_queries", drawn)
        former = ReplayMemory.open(folder / "memory", create=True).importance
        kinds.clear()
        learnt = learn(model, task, folder / "memory", folder / f"model{number}", config)
        model = folder / f"model{number}"
        memory = ReplayMemory.open(folder / "memory")
        log = [line for line in learnt.log if "grad_norm" in line]
        results.append((number, task.name, "".join(kinds), log, memory, former))
    return results, model


@each_run
def test_run(golden, tmp_path, monkeypatch):
    first, model = 0, None
    resumed = golden.run["settings"].get("resume")
    if resumed:
        # "e2e_out_<run>/<task>": the official resume keeps weights and scores that task again, and with that its
        # leftover gradient, but loses the optimizer's state.
        name, number = Path(resumed).parent.name.removeprefix("e2e_out_"), int(Path(resumed).name)
        base = Golden(golden.file, name, golden.runs[name], golden.runs)
        _, model = run_tasks(base, tmp_path, monkeypatch, last=number)
        left = {key: t for key, t in load_file(model / CARRY).items() if not key.startswith("state/")}
        save_file(left, model / CARRY)
        first = number + 1
    results, model = run_tasks(golden, tmp_path, monkeypatch, first, model=model)
    for number, name, kinds, log, memory, former in results:
        check_task(golden, number, name, kinds, log)
        check_memory(golden, number, memory, former)
    check_parameters(golden, load_file(model / "model.safetensors"))


def check_parameters(golden, mine):
    """How far the final weights are from the official ones, in units of how far these moved.

    Single elements tell little: Adam's first step is the gradient's sign, also where the gradient is rounding noise.
    """
    final = load_file(golden.file.with_suffix("") / f"{golden.name}_final.safetensors")
    start = load_file(golden.path("--model_name_or_path") / "model.safetensors")
    assert mine.keys() == final.keys()
    for name, tensor in final.items():
        apart, moved = float((mine[name] - tensor).norm()), float((tensor - start[name]).norm())
        assert apart <= PARAMETER * moved, f"{name}: {apart:.1e} apart, the official run moved it by {moved:.1e}"


def check_task(golden, number, name, kinds, log):
    """The order of batches and, for each optimizer step, the means of its terms and the gradient's norm."""
    assert kinds == golden.run["schedule"][name]["pattern"]
    steps = [step for step in golden.run["steps"] if step["task"] == number]
    groups, open_group = [], []
    for step in steps:
        open_group.append(step)
        if step["optimizer_step"]:
            groups.append(open_group)
            open_group = []
    assert not open_group, "an unfinished accumulation passes into the next task"
    assert len(groups) == len(log)
    for group, line in zip(groups, log):
        where = f"{name} micro step {group[0]['micro_step']}"
        of_kind = {kind: [step for step in group if step["kind"] == kind] for kind in ("new", "replay")}
        for kind, part in of_kind.items():
            assert (f"loss_{kind}_total" in line) == bool(part), where
            if part:
                close(line[f"loss_{kind}_total"], mean(part, "total"), LOSS, where)
        for key, term in TERMS.items() if of_kind["replay"] else ():
            close(line[key], mean(of_kind["replay"], term), LOSS, f"{where} {term}")
        if of_kind["replay"]:
            layers = [list(step["attn_per_layer"].values()) for step in of_kind["replay"]]
            attention = sum(sum(part) / len(part) for part in layers) / len(layers)
            close(line["loss_attention"], attention, LOSS, f"{where} attention")
        close(line["grad_norm"], group[-1]["grad_norm_before_clip"], NORM, f"{where} gradient norm")


def mean(steps, key):
    return sum(step[key] for step in steps) / len(steps)


def check_memory(golden, number, memory, former):
    """Selected heads, importance and its two factors, the kept samples."""
    expected = golden.run["after_task"][number]
    assert memory.tasks[number].heads == heads_of(expected["selected_heads"])
    assert len(memory.tasks[number].samples) == expected["buffer_samples"]
    now = memory.importance
    close(now.product_NH, expected["attn_ipt_accumulated"], IMPORTANCE, "importance", of_max=True)
    for mine, golden_name in (("sensitivity_NH", "attn_grads"), ("forgettability_NH", "attn_diffs")):
        added = getattr(now, mine) - (getattr(former, mine) if former is not None else 0.0)
        close(added, expected[golden_name], IMPORTANCE, golden_name, of_max=True)
