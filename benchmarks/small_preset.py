"""How true ``preset: small`` stays to whole signals on a real model that has drifted.

    python benchmarks/small_preset.py --model .venv/smollm2 --seeds 0 1 [--raw benchmarks/results/small_preset.json]

SmolLM2-135M learns a few ScienceQA rows under SEEKR, three times over with the same seed and so the same weights: once
with whole float32 rows of all queries and whole logits kept at the chosen heads, once with the default, once with
``small``. It then goes on with plain fine-tuning on 20Minuten. On the drifted model the two terms of distillation and
their gradients over all weights are compared with those under whole signals, on the kept samples.
"""

import argparse
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from signals import SHARED, Pair, losses_and_gradient, sample_bytes

from seekr_cl.memory import ReplayMemory
from seekr_cl.models.loading import load_model
from seekr_cl.tasks import Task
from seekr_cl.training import config_from, learn

FIRST, SECOND = "ScienceQA", "20Minuten"
TRAIN, KEPT, DRIFT = 6, 3, 12
SETTINGS: dict[str, Any] = {
    "use_cpu": True, "progress": "none", "dtype": "float32", "num_train_epochs": 1, "per_device_train_batch_size": 2,
    "learning_rate": 5e-5, "max_length": 224, "long_completions": "skip",
    "lr_scheduler_type": "constant",
}  # fmt: skip
WHOLE = {"query_budget": None, "attention_signal": "dense", "logits_top_k": None}
FORMS: dict[str, dict[str, Any]] = {
    "whole": {"method": {"name": "seekr", **WHOLE}, "signal_dtype": "float32"},
    "default": {"method": {"name": "seekr"}},
    "small": {"method": {"name": "seekr"}, "preset": "small"},
}


def measure(model: str, seed: int, work: Path) -> dict[str, dict[str, float]]:
    """The forms against whole signals, of one seed."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (_rows(name, generator) for name in (FIRST, SECOND))
    for form, settings in FORMS.items():
        config = config_from(SETTINGS | settings | {"seed": seed, "replay": {"samples": KEPT}}, str(work / "trainer"))
        learn(model, replace(first, train=first.train[:TRAIN]), work / form, work / f"{form}-model", config)
    config = config_from(SETTINGS | {"method": "seqft", "seed": seed}, str(work / "trainer"))
    learn(work / "whole-model", replace(second, train=second.train[:DRIFT]), work / "none", work / "drifted", config)
    student, _ = load_model(work / "drifted")
    pair, found, base = Pair("", None, student.eval(), []), dict[str, dict[str, float]](), None
    heads, texts = list[set[tuple[int, int]]](), list[list[list[int]]]()
    for form in FORMS:
        kept = ReplayMemory.open(work / form).tasks[0]
        heads.append({(layer, head) for layer, chosen in kept.heads.items() for head in chosen})
        texts.append([sample.ids_L.tolist() for sample in kept.samples])
        attention, logits, *gradients = losses_and_gradient(pair, kept)
        base = base or (attention, logits, gradients)
        found[form] = {"bytes": sample_bytes(kept), "attention": attention, "logits": logits}
        for place, name in enumerate(("attention", "logits")):
            whole = base[2][place]
            found[form][f"{name}_change"] = (attention, logits)[place] / base[place] - 1
            found[form][f"{name}_cosine"] = float(torch.cosine_similarity(gradients[place], whole, 0))
            found[form][f"{name}_error"] = float((gradients[place] - whole).norm() / whole.norm())
        # The few queries of a small sample may choose other heads than all of them.
        found[form]["same_heads"] = len(heads[0] & heads[-1]) / len(heads[0])
    # Otherwise it would not be the forms that differ.
    assert texts[0] == texts[1] == texts[2]
    found["about"] = {"heads": float(len(heads[0])), "tokens": sum(map(len, texts[0])) / KEPT}
    return found


def _rows(name: str, generator: torch.Generator) -> Task:
    task = Task.load(SHARED / "data" / "trace" / name)
    order = torch.randperm(len(task.train), generator=generator).tolist()
    # Their answers are some tens of tokens at least, and nothing is cut off.
    whole = [one for place in order if 200 <= len((one := task.train[place]).prompt) + len(one.completion) <= 700]
    return replace(task, train=[one for one in whole if len(one.completion) >= 120])


def main() -> None:
    """Measures, prints, and writes the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--raw", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    raw = json.loads(given.raw.read_text(encoding="utf-8")) if given.raw and given.raw.exists() else {}
    for seed in given.seeds:
        if str(seed) not in raw:
            with tempfile.TemporaryDirectory() as folder:
                raw[str(seed)] = measure(given.model, seed, Path(folder))
            if given.raw:
                given.raw.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        for form, values in raw[str(seed)].items():
            print(seed, form, ", ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
