"""Training speed on real models, beside TRL's SFTTrainer: the same rows, model, batch, weights and precision.

    pip install -e '.[bench]' --constraint constraints.txt && make smollm2
    python benchmarks/throughput.py --quick --json        # one line of ratios; five minutes on two quiet cores
    python benchmarks/throughput.py --markdown benchmarks/results/throughput.md       # every shape and set of rows
    python benchmarks/throughput.py --record-before --source EARLIER_CHECKOUT/src     # what run_vs_before stands on
    python benchmarks/throughput.py --against EARLIER_CHECKOUT/src --clock cpu        # the whole run alone, in turn

Every training runs in a process of its own, the variants of a case in turn; ratios are medians over the rounds of each
round's own ratio. Rows per second are of the training loop alone, ``seekr_vs_seqft`` of all that ``seekr learn`` does.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from throughput_cases import (
    SETS,
    SHAPES,
    SHARED,
    Case,
    chosen,
    model_folder,
    quick_cases,
    whole_cases,
    write_rows,
    write_stream,
)
from throughput_report import BEFORE, before_ratio, markdown, record, summary

WORKER = Path(__file__).with_name("throughput_worker.py")
SEED = 42
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
EARLIER_TASKS = 5
"""The memory holds 1% of so many earlier tasks, each as long as the one that is timed."""


def main() -> None:
    given = _parse()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(dir=given.work, prefix="throughput-") as name:
        bench = Bench(given, Path(name))
        if given.record_before:
            timed = [(bench.whole_run(), bench.yardstick()) for _ in range(given.rounds)]
            record(given.source, [run for run, _ in timed], [yardstick for _, yardstick in timed], bench.run_case())
            return
        if given.against:
            print(json.dumps(against(bench, given)))
            return
        found = bench.measure()
        run = None if given.no_run else bench.whole_run()
    ratios = summary(found, given.clock)
    ratios["run_vs_before"] = None if run is None else before_ratio(run, found, bench.run_case(), given.clock)
    if given.output:
        given.output.write_text(json.dumps({"ratios": ratios, "run": run, "measured": found}, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(given, ratios, found, run), encoding="utf-8")
    print(json.dumps(ratios) if given.json else markdown(given, ratios, found, run))


def against(bench: "Bench", given: argparse.Namespace) -> dict[str, Any]:
    """The whole run with another checkout's code and with this one's, in turn: no yardstick is needed."""
    rounds = []
    for number in range(given.rounds):
        sources = [given.against, given.source]
        one = {source: bench.whole_run(source) for source in (sources if number % 2 == 0 else sources[::-1])}
        rounds.append([one[source][given.clock] for source in sources])
    ratios = [sum(then.values()) / sum(now.values()) for then, now in rounds]
    return {"run_vs_before": ratios, "case": bench.run_case(), "clock": given.clock, "before_and_now": rounds}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="what the ratios need and nothing else")
    parser.add_argument("--json", action="store_true", help="print one line of ratios and nothing else")
    parser.add_argument("--model", help=f"in place of every case's: {', '.join(SHAPES)}, or a model folder")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="only cases of these")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="only cases of these rows")
    parser.add_argument("--weights", nargs="+", choices=("lora", "full"), help="only cases that train these")
    parser.add_argument("--variants", nargs="+", help="only seqft, derpp, seekr, trl, trl-packed")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    parser.add_argument("--rounds", type=int, help="of all variants in turn (default 3, with --quick 1)")
    parser.add_argument("--rows", type=int, help="with short answers (default 64, with --quick 24); of long ones half")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens of the longest row")
    parser.add_argument("--run-rows", type=int, default=8, help="training rows of each of the run's five tasks")
    parser.add_argument("--run-tests", type=int, default=4, help="test rows of each")
    parser.add_argument("--no-run", action="store_true", help="leave out the whole seekr run")
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE", help="of this library's side")
    parser.add_argument("--source", type=Path, help="src folder of another checkout to measure in place of this one")
    parser.add_argument("--against", type=Path, help="src folder of another checkout; only the whole run, of both")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="what the ratios are of")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process (default: all cores)")
    parser.add_argument("--record-before", action="store_true", help=f"write {BEFORE.name}; of an unchanged commit")
    parser.add_argument("--work", type=Path, help="folder for models and rows meanwhile (default: the system's)")
    parser.add_argument("--output", type=Path, help="JSON file for every measurement")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    given = parser.parse_args()
    quick = given.quick or given.record_before or given.against is not None
    given.rounds = given.rounds or (1 if quick else 3)
    cases = (quick_cases if quick else whole_cases)(given.rows or (24 if quick else 64))
    given.cases = chosen(cases, given.shapes, given.sets, given.weights, given.variants)
    if given.model:
        given.cases = [replace(case, shape=given.model) for case in given.cases]
    if not given.cases:
        parser.error("no case is left; --shapes, --sets, --weights and --variants leave out too much")
    return given


class Bench:
    """The measurements that were asked for, in a folder that goes afterwards."""

    def __init__(self, given: argparse.Namespace, work: Path) -> None:
        from transformers import logging

        # Rows are cut here; a tokenizer would warn of every one that is longer than its model.
        logging.set_verbosity_error()
        self.given, self.work = given, work
        self._number = 0
        self._run_shape = given.model or "smollm2"

    def run_case(self) -> dict[str, Any]:
        """What must be the same for two timings of the whole run to be comparable."""
        keys = ("batch", "length", "precision", "run_rows", "run_tests", "threads")
        return {key: getattr(self.given, key) for key in keys} | {"shape": self._run_shape, "rows": self._yard().rows}

    def measure(self) -> list[dict[str, Any]]:
        """Every case's variants in turn; which one is first rotates."""
        found = []
        for case in self.given.cases:
            rows, (start, memory) = self._rows(case), self._earlier(case)
            for number in range(self.given.rounds):
                shift = number % len(case.variants)
                for variant in case.variants[shift:] + case.variants[:shift]:
                    one = self._train(case, variant, rows, start, memory, number)
                    about = {"shape": case.shape, "weights": case.weights, "set": case.set, "variant": variant}
                    found.append({**about, "round": number, **rows, **one})
        return found

    def yardstick(self) -> dict[str, Any]:
        """TRL on short answers: how fast the machine is at the moment."""
        return self._train(self._yard(), "trl", self._rows(self._yard()), Path(), None, 0)

    def whole_run(self, source: Path | None = None) -> dict[str, Any]:
        """``seekr run`` of five tasks, training and evaluation, with LoRA; ``source`` as the option."""
        given, model = self.given, model_folder(self._run_shape, self.work)
        stream = write_stream(model, given.run_rows, given.run_tests, given.length, self.work)
        words = [
            "run",
            str(stream),
            "--output",
            str(self._new("run")),
            *self._settings("seekr", "lora"),
            *given.settings,
        ]
        return self._measured("run", {"command": words}, source)

    def _yard(self) -> Case:
        return next((case for case in self.given.cases if "trl" in case.variants), self.given.cases[0])

    def _rows(self, case: Case) -> dict[str, Any]:
        kind, data = SETS[case.set]
        file = self.work / f"{case.set}.jsonl"
        model = model_folder(case.shape, self.work)
        tokens = write_rows(SHARED / "data" / data, case.rows, model, self.given.length, file)
        return {"kind": kind, "rows": case.rows, "tokens": tokens, "file": str(file)}

    def _earlier(self, case: Case) -> tuple[Path, Path | None]:
        """The model after earlier tasks and their memory: 1% of five tasks as long as the one that is timed."""
        model = model_folder(case.shape, self.work)
        if not {"derpp", "seekr"} & set(case.variants):
            return model, None
        count = max(1, round(0.01 * EARLIER_TASKS * case.rows))
        file, output, memory = self.work / "earlier.jsonl", self._new("earlier"), self._new("memory")
        data = SHARED / "data" / "long_sequence" / "agnews"
        write_rows(data, max(count, self.given.batch), model, self.given.length, file)
        words = ["learn", "--model", str(model), "--task", str(file), "--memory", str(memory), "--output", str(output)]
        words += self._settings("seekr", case.weights, f"replay.samples={count}")
        self._measured(f"earlier task of {case.set}", {"command": words})
        return output, memory

    def _train(
        self, case: Case, variant: str, rows: dict[str, Any], start: Path, memory: Path | None, number: int
    ) -> dict[str, Any]:
        output, model = self._new(variant), model_folder(case.shape, self.work)
        if variant.startswith("trl"):
            job: dict[str, Any] = {"trl": self._trl(case, variant, rows, model, output, number)}
        else:
            copy = self._new("memory")
            if memory is not None and variant != "seqft":
                shutil.copytree(memory, copy)
            words = ["learn", "--model", str(start), "--task", rows["file"]]
            words += ["--memory", str(copy), "--output", str(output), f"seed={SEED + number}"]
            job = {
                "command": words + self._settings(variant, case.weights if start == model else "") + self.given.settings
            }
        one = self._measured(f"{variant} {case.shape} {case.weights} {case.set}", job)
        shutil.rmtree(output, ignore_errors=True)
        return one

    def _settings(self, method: str, weights: str, kept: str = "replay.ratio=0.01") -> list[str]:
        words = [f"method={method}", "progress=none", "num_train_epochs=1", "max_grad_norm=1", "learning_rate=1e-4"]
        words += [f"per_device_train_batch_size={self.given.batch}", f"max_length={self.given.length}"]
        words += ["use_cpu=true"] * (not torch.cuda.is_available()) + ["bf16=true"] * (self.given.precision == "bf16")
        if method in ("derpp", "seekr"):
            words.append(kept)
        if weights == "lora":
            words += ["peft.peft_type=LORA", *(f"peft.{key}={value}" for key, value in LORA.items())]
        return words

    def _trl(
        self, case: Case, variant: str, rows: dict[str, Any], model: Path, output: Path, number: int
    ) -> dict[str, Any]:
        """Its settings where they must be equal; a packed batch holds as many rows as a padded one."""
        given, packed = self.given, variant == "trl-packed"
        batch = max(1, round(given.batch * rows["tokens"] / rows["rows"] / given.length)) if packed else given.batch
        settings = {
            "per_device_train_batch_size": batch, "num_train_epochs": 1, "learning_rate": 1e-4, "max_grad_norm": 1.0,
            "lr_scheduler_type": "cosine", "adam_beta2": 0.95, "weight_decay": 0.0, "seed": SEED + number,
            "bf16": given.precision == "bf16", "use_cpu": not torch.cuda.is_available(), "report_to": "none",
            "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True,
            "packing": packed, "max_length": given.length,
        }  # fmt: skip
        lora = LORA | {"task_type": "CAUSAL_LM"} if case.weights == "lora" else None
        return {"model": str(model), "rows": rows["file"], "output": str(output), "settings": settings, "lora": lora}

    def _new(self, name: str) -> Path:
        self._number += 1
        return self.work / f"{name}-{self._number}"

    def _measured(self, title: str, job: dict[str, Any], source: Path | None = None) -> dict[str, Any]:
        file = self._new("job").with_suffix(".json")
        file.write_text(json.dumps(job), encoding="utf-8")
        source = source or self.given.source or Path(__file__).resolve().parents[1] / "src"
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.given.threads), "MKL_NUM_THREADS": str(self.given.threads),
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(source.resolve()),
        }  # fmt: skip
        command = [sys.executable, str(WORKER), str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{title} failed with {done.returncode}:\n{done.stderr[-3000:]}")
        one = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{title}: {sum(one['wall'].values()):.1f} s, CPU {sum(one['cpu'].values()):.1f} s", file=sys.stderr)
        return one


if __name__ == "__main__":
    main()
