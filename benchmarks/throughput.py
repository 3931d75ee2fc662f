"""Training speed on real models, beside TRL's SFTTrainer: the same rows, model, batch, weights and precision.

    pip install -e '.[bench]' --constraint constraints.txt && make smollm2
    python benchmarks/throughput.py --quick --json        # one line of ratios; five minutes on two quiet cores
    python benchmarks/throughput.py --markdown benchmarks/results/throughput.md       # every shape and set of rows
    python benchmarks/throughput.py --record-before --source EARLIER_CHECKOUT/src     # what run_vs_before stands on

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
from pathlib import Path
from typing import Any

from throughput_cases import SETS, SHAPES, SHARED, model_folder, write_rows, write_stream
from throughput_report import BEFORE, before_ratio, markdown, record, summary

WORKER = Path(__file__).with_name("throughput_worker.py")
VARIANTS = ("seqft", "derpp", "seekr", "trl", "trl-packed")
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
QUICK = {"shapes": ["smollm2"], "sets": ["yahoo", "gsm8k"], "weights": ["lora"], "rounds": 2}
EARLIER_TASKS = 5
"""The memory holds 1% of so many earlier tasks, each as long as the one that is timed."""


def main() -> None:
    given = _parse()
    with tempfile.TemporaryDirectory(dir=given.work, prefix="throughput-") as name:
        bench = Bench(given, Path(name))
        if given.record_before:
            timed = [(bench.whole_run(), bench.yardstick()) for _ in range(given.rounds)]
            record(given, [run for run, _ in timed], [yardstick for _, yardstick in timed], bench.case())
            return
        found = bench.measure()
        run = None if given.no_run else bench.whole_run()
    ratios = summary(found, given.clock)
    ratios["run_vs_before"] = None if run is None else before_ratio(run, found, bench.case(), given.clock)
    if given.output:
        given.output.write_text(json.dumps({"ratios": ratios, "run": run, "measured": found}, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(given, ratios, found, run), encoding="utf-8")
    print(json.dumps(ratios) if given.json else markdown(given, ratios, found, run))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="SmolLM2 with LoRA, two sets of rows, few of them")
    parser.add_argument("--json", action="store_true", help="print one line of ratios and nothing else")
    parser.add_argument("--shapes", nargs="+", help=f"of {', '.join(SHAPES)}, or model folders")
    parser.add_argument("--sets", nargs="+", choices=SETS)
    parser.add_argument("--weights", nargs="+", choices=("lora", "full"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=int, help="of a set with short answers; of one with long answers a third")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens of the longest row")
    parser.add_argument("--run-rows", type=int, help="training rows of each of the run's five tasks")
    parser.add_argument("--run-tests", type=int, help="test rows of each")
    parser.add_argument("--no-run", action="store_true", help="leave out the whole seekr run")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of this library's side")
    parser.add_argument("--source", type=Path, help="src folder of another checkout to measure in place of this one")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="what the ratios are of")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process (default: all cores)")
    parser.add_argument("--record-before", action="store_true", help=f"write {BEFORE.name}; of an unchanged commit")
    parser.add_argument("--work", type=Path, help="folder for models and rows meanwhile (default: the system's)")
    parser.add_argument("--output", type=Path, help="JSON file for every measurement")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    given = parser.parse_args()
    quick = given.quick or given.record_before
    whole = {"shapes": list(SHAPES), "sets": list(SETS), "weights": ["lora", "full"], "rounds": 3}
    for key, value in (QUICK if quick else whole).items():
        setattr(given, key, getattr(given, key) or value)
    given.variants = given.variants or (["trl", "seqft", "seekr"] if quick else list(VARIANTS))
    given.rows = given.rows or (24 if quick else 64)
    given.run_rows, given.run_tests = given.run_rows or (8 if quick else 64), given.run_tests or (4 if quick else 16)
    return given


class Bench:
    """The measurements that were asked for, in a folder that goes afterwards."""

    def __init__(self, given: argparse.Namespace, work: Path) -> None:
        from transformers import AutoTokenizer, logging

        # Rows are cut here; a tokenizer would warn of every one that is longer than its model.
        logging.set_verbosity_error()
        self.given, self.work = given, work
        self.models = {shape: model_folder(shape, work) for shape in given.shapes}
        self._tokenizer = AutoTokenizer.from_pretrained(self.models[given.shapes[0]])
        self.rows = {name: self._rows(name) for name in given.sets}
        self._number = 0

    def case(self) -> dict[str, Any]:
        """What must be the same for two timings of the whole run to be comparable."""
        keys = ("batch", "length", "precision", "run_rows", "run_tests", "threads", "rows")
        return {key: getattr(self.given, key) for key in keys} | {"shape": str(self.given.shapes[0])}

    def measure(self) -> list[dict[str, Any]]:
        """Every case's variants in turn; which one is first rotates."""
        found = []
        for shape, model in self.models.items():
            for weights in self.given.weights:
                start, memory = self._earlier(model, weights)
                for name in self.given.sets:
                    variants = self._variants(name)
                    for number in range(self.given.rounds):
                        shift = number % len(variants)
                        for variant in variants[shift:] + variants[:shift]:
                            one = self._train(variant, weights, name, model, start, memory)
                            about = {"shape": shape, "weights": weights, "set": name, "variant": variant}
                            found.append({**about, "round": number, **self.rows[name], **one})
        return found

    def yardstick(self) -> dict[str, Any]:
        """TRL on short answers: how fast the machine is at the moment."""
        shape = self.given.shapes[0]
        return self._train("trl", "lora", next(iter(self.rows)), self.models[shape], None, None)

    def whole_run(self) -> dict[str, Any]:
        """``seekr run`` of five tasks, training and evaluation, on the first shape with LoRA."""
        given, model = self.given, self.models[self.given.shapes[0]]
        stream = write_stream(model, given.run_rows, given.run_tests, self._tokenizer, given.length, self.work)
        words = ["run", str(stream), "--output", str(self._new("run")), *self._settings("seekr", "lora"), *given.set]
        return self._measured("run", {"command": words})

    def _variants(self, name: str) -> list[str]:
        """With ``--quick`` replay is timed on short answers only."""
        if self.given.quick and SETS[name][0] == "long":
            return [variant for variant in self.given.variants if variant in ("trl", "seqft")]
        return self.given.variants

    def _rows(self, name: str) -> dict[str, Any]:
        kind, data = SETS[name]
        count = self.given.rows if kind == "short" else max(self.given.batch, self.given.rows // 3)
        file = self.work / f"{name}.jsonl"
        tokens = write_rows(SHARED / "data" / data, count, self._tokenizer, self.given.length, file)
        return {"kind": kind, "rows": count, "tokens": tokens, "file": str(file)}

    def _earlier(self, model: Path, weights: str) -> tuple[Path, Path | None]:
        """The model after earlier tasks and their memory: 1% of five tasks as long as the one that is timed."""
        if not {"derpp", "seekr"} & set(self.given.variants):
            return model, None
        count = max(1, round(0.01 * EARLIER_TASKS * self.given.rows))
        file, output, memory = self.work / "earlier.jsonl", self._new("earlier"), self._new("memory")
        data = SHARED / "data" / "long_sequence" / "agnews"
        write_rows(data, max(count, self.given.batch), self._tokenizer, self.given.length, file)
        words = ["learn", "--model", str(model), "--task", str(file), "--memory", str(memory), "--output", str(output)]
        words += self._settings("seekr", weights, f"replay.samples={count}")
        self._measured("earlier task", {"command": words})
        return output, memory

    def _train(
        self, variant: str, weights: str, name: str, model: Path, start: Path | None, memory: Path | None
    ) -> dict[str, Any]:
        output, file = self._new(variant), self.rows[name]["file"]
        if variant.startswith("trl"):
            job = {"trl": self._trl(variant, weights, name, model, output)}
        else:
            copy = self._new("memory")
            if memory is not None and variant != "seqft":
                shutil.copytree(memory, copy)
            words = ["learn", "--model", str(start), "--task", file, "--memory", str(copy), "--output", str(output)]
            words += [*self._settings(variant, weights if start == model else ""), *self.given.set]
            job = {"command": words}
        one = self._measured(f"{variant} {weights} {name}", job)
        shutil.rmtree(output, ignore_errors=True)
        return one

    def _settings(self, method: str, weights: str, kept: str = "replay.ratio=0.01") -> list[str]:
        words = [f"method={method}", "progress=none", "num_train_epochs=1", "max_grad_norm=1", "learning_rate=1e-4"]
        words += [f"per_device_train_batch_size={self.given.batch}", f"max_length={self.given.length}"]
        words += ["use_cpu=true"] * (not _on_gpu()) + ["bf16=true"] * (self.given.precision == "bf16")
        if method in ("derpp", "seekr"):
            words.append(kept)
        if weights == "lora":
            words += ["peft.peft_type=LORA", *(f"peft.{key}={value}" for key, value in LORA.items())]
        return words

    def _trl(self, variant: str, weights: str, name: str, model: Path, output: Path) -> dict[str, Any]:
        """Its settings where they must be equal; a packed batch holds as many rows as a padded one."""
        given, rows = self.given, self.rows[name]
        packed = variant == "trl-packed"
        batch = max(1, round(given.batch * rows["tokens"] / rows["rows"] / given.length)) if packed else given.batch
        settings = {
            "per_device_train_batch_size": batch, "num_train_epochs": 1, "learning_rate": 1e-4, "max_grad_norm": 1.0,
            "lr_scheduler_type": "cosine", "adam_beta2": 0.95, "weight_decay": 0.0, "seed": 42, "save_strategy": "no",
            "bf16": given.precision == "bf16", "use_cpu": not _on_gpu(), "gradient_checkpointing": False,
            "report_to": "none", "disable_tqdm": True, "packing": packed, "max_length": given.length,
        }  # fmt: skip
        lora = LORA | {"task_type": "CAUSAL_LM"} if weights == "lora" else None
        return {"model": str(model), "rows": rows["file"], "output": str(output), "settings": settings, "lora": lora}

    def _new(self, name: str) -> Path:
        self._number += 1
        return self.work / f"{name}-{self._number}"

    def _measured(self, title: str, job: dict[str, Any]) -> dict[str, Any]:
        file = self._new("job").with_suffix(".json")
        file.write_text(json.dumps(job), encoding="utf-8")
        source = self.given.source or Path(__file__).resolve().parents[1] / "src"
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


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
