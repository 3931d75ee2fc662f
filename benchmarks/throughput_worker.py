"""One measured training, in a process of its own: reads a job from a JSON file and prints what it took as one line.

    python benchmarks/throughput_worker.py JOB.json

``{"command": [words of seekr]}`` runs a command of this library; ``{"trl": {...}}`` trains with TRL's SFTTrainer.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from throughput_phases import Phases, watch


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    work = _seekr if "command" in job else _trl
    with redirect_stdout(sys.stderr):
        found = work(job.get("command") or job["trl"])
    print(json.dumps(found))


def _seekr(words: list[str]) -> dict[str, Any]:
    from seekr_cl.cli import commands  # noqa: F401 - its imports are no part of what is timed
    from seekr_cl.cli.main import main as seekr

    phases = Phases()
    watch(phases)
    code = seekr(words)
    if code:
        raise SystemExit(code)
    return phases.finish()


def _trl(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    phases = Phases()
    watch(phases)
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="float32")
    trainer = SFTTrainer(
        model,
        # Its loss is made in chunks without whole logits (up to 1.15 under the name chunked_nll).
        SFTConfig(job["output"], completion_only_loss=True, **job["settings"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(**job["lora"]) if job["lora"] else None,
    )
    trainer.train()
    trainer.save_model(job["output"])
    return phases.finish()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
