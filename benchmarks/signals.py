"""What small teacher signals cost: bytes a sample against the change of loss and gradient, on real rows.

    python benchmarks/signals.py [--quick] [--markdown FILE --plot FILE]

stories260K learns a TRACE task (the teacher) and then another one (the student, moved by real training). On rows of the
first task the losses and gradients under each stored form are compared with those under whole float32 rows and
full-vocabulary float32 logits, all heads and 100 queries a sample. Nothing is fitted to these rows.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timing import machine
from torch import Tensor

from seekr_cl.attention import AttentionCall, AttentionTap, DistillRows, RecordRows, RowIndex
from seekr_cl.attention.stored import StoredDense, StoredFactors, StoredRows, StoredTopK, join_layers
from seekr_cl.heads import draw_queries
from seekr_cl.memory import AttentionSignal, LogitSignal, MemoryTask, ReplaySample
from seekr_cl.memory import sample_codec as records
from seekr_cl.methods import Layout
from seekr_cl.methods.common.logit_distillation import LogitSettings, distil_logits, pad_logits, take_logits
from seekr_cl.methods.common.teachers import row_targets
from seekr_cl.models.loading import load_model
from seekr_cl.tasks import Task
from seekr_cl.training import config_from, learn
from seekr_cl.training.fitting import make_encoder
from seekr_cl.training.sample_selection import as_sample

SHARED = Path(os.environ.get("SEEKR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PAIRS = [("MeetingBank", "Py150"), ("ScienceQA", "20Minuten"), ("20Minuten", "NumGLUE-ds")]
QUERIES = 100
LAYOUT = Layout(pad_id=0)


@dataclass(frozen=True)
class Form:
    """One way to store the signals of a sample."""

    rows: str
    top_k: int
    dtype: str
    logits_top_k: int | None
    logits_tail: str = "sampled"

    @property
    def name(self) -> str:
        rows = f"{self.rows} {self.top_k}" if self.top_k else self.rows
        tail = f" {self.logits_tail}" if self.logits_top_k else ""
        return f"{rows}, logits {self.logits_top_k or 'all'}{tail}, {self.dtype}"

    def encode(self, call: AttentionCall, index: RowIndex, rows_HRL: Tensor) -> StoredRows:
        if self.rows == "factors":
            return StoredFactors.encode(call, index, self.dtype)
        if self.rows == "dense":
            return StoredDense.encode(rows_HRL, self.dtype)
        return StoredTopK.encode(rows_HRL, self.top_k, self.dtype, self.rows)


WHOLE = Form("dense", 0, "float32", None)
DEFAULT = Form("sampled", 32, "int8", 64)
FORMS = [
    *(Form("bucket", k, "int8", 64, "bucket") for k in (16, 32, 64, 128, 256)),
    *(Form("sampled", k, dtype, 64) for k in (8, 16, 32, 64) for dtype in ("int8", "float16")),
    *(Form("factors", 0, dtype, 64) for dtype in ("int8", "float16")),
    Form("dense", 0, "int8", 64),
    Form("sampled", 32, "int8", 16),
    Form("sampled", 32, "int8", 256),
]


@dataclass
class Pair:
    """A teacher, a student and rows of the teacher's task."""

    name: str
    teacher: Any
    student: Any
    samples: list[ReplaySample]


def train_pair(first: str, second: str, length: int, examples: int, count: int, seed: int, work: Path) -> Pair:
    """Learns two tasks in a row with plain fine-tuning and takes ``count`` rows of the first."""
    base = work / "base"
    if not base.exists():
        shutil.copytree(SHARED / "data" / "tiny_lm" / "stories260K", base)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").chmod(0o644)
        (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": max(512, length)}))
    settings = {
        "use_cpu": True, "progress": "none", "method": "seqft", "learning_rate": 1e-3, "num_train_epochs": 1,
        "per_device_train_batch_size": 4, "max_length": length, "long_completions": "skip", "seed": seed,
    }  # fmt: skip
    config, current, tasks = config_from(settings, str(work / "trainer")), base, []
    for name in (first, second):
        task = Task.load(SHARED / "data" / "trace" / name)
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed)).tolist()
        tasks.append(replace(task, train=[task.train[i] for i in order[:examples]]))
        output = work / f"{seed}-{first}-{name}"
        learn(current, tasks[-1], work / f"memory-{seed}-{first}-{name}", output, config)
        current = output
    teacher, tokenizer = load_model(work / f"{seed}-{first}-{first}")
    student, _ = load_model(current)
    encoder, samples = make_encoder(config, teacher, tokenizer), []
    for example in tasks[0].train:
        try:
            samples.append(as_sample(example, encoder.encode(example), encoder))
        except ValueError:
            continue
        if len(samples) == count:
            break
    return Pair(f"{first} to {second}, seed {seed}", teacher.eval(), student.eval(), samples)


def remembered(pair: Pair, form: Form) -> MemoryTask:
    """The samples with the teacher's signals in that form, all heads."""
    kept = []
    with AttentionTap(pair.teacher) as tap, torch.no_grad():
        heads = {layer: list(range(count)) for layer, count in tap.heads.items()}
        for number, sample in enumerate(pair.samples):
            query_R = draw_queries(len(sample.ids_L), QUERIES, torch.Generator().manual_seed(number))
            wanted = {}
            for layer, chosen in heads.items():
                head_P = torch.tensor(chosen)
                wanted[layer] = RowIndex(torch.zeros_like(head_P), head_P, query_R.expand(len(chosen), -1))
            record = RecordRows(wanted, form.encode)
            with tap.use(record):
                logits_NV = pair.teacher(input_ids=sample.ids_L[None], use_cache=False).logits[0]
            settings = LogitSettings(logits_top_k=form.logits_top_k, logits_tail=form.logits_tail)
            first = max(0, sample.completion_start - 1)
            logits: LogitSignal = take_logits(logits_NV[first:], sample, settings, form.dtype)
            rows = AttentionSignal(query_R, join_layers([record.rows[layer] for layer in sorted(record.rows)]))
            kept.append(replace(sample, logits=logits, attention=rows))
    return MemoryTask("task", kept, heads)


def losses_and_gradient(pair: Pair, task: MemoryTask) -> tuple[float, float, Tensor, Tensor]:
    """Mean attention term, mean logit term, and the gradient of each over all student parameters."""
    values, gradients = [0.0, 0.0], []
    for which in (0, 1):
        pair.student.zero_grad()
        with AttentionTap(pair.student) as tap:
            for sample in task.samples:
                picked, length = [(task, sample)], len(sample.ids_L)
                distil = DistillRows(row_targets(picked, LAYOUT, length, "sample_mean"))
                tap.action = distil
                output = pair.student(input_ids=sample.ids_L[None], use_cache=False).logits
                attention = torch.stack(list(distil.losses().values())).sum()
                logits = distil_logits(output, pad_logits([sample], LAYOUT, length), LogitSettings())
                terms = (attention, logits)
                values[which] += terms[which].item() / len(task.samples)
                # The attention term's gradient flows in where the output's passes, so zero times that drives it.
                (terms[which] + 0 * terms[1 - which] + 0 * output.sum()).backward()
        grads = [p.grad.flatten() for p in pair.student.parameters() if p.grad is not None]
        gradients.append(torch.cat(grads).clone())
    return values[0], values[1], gradients[0], gradients[1]


def sample_bytes(task: MemoryTask) -> float:
    """Bytes a sample in the memory's file, token ids included, its text and 50 bytes of tables not."""
    return sum(len(records.encode(sample).content) for sample in task.samples) / len(task.samples)


def measure(pair: Pair, forms: list[Form]) -> dict[str, dict[str, float]]:
    """Every form against whole signals."""
    whole = remembered(pair, WHOLE)
    attention, logits, attention_grad, logits_grad = losses_and_gradient(pair, whole)
    found = {"whole": {"bytes": sample_bytes(whole), "attention": attention, "logits": logits}}
    for form in forms:
        task = remembered(pair, form)
        values = losses_and_gradient(pair, task)
        found[form.name] = {
            "bytes": sample_bytes(task),
            "attention_change": values[0] / attention - 1,
            "logits_change": values[1] / logits - 1,
            "attention_gradient": float((values[2] - attention_grad).norm() / attention_grad.norm()),
            "attention_cosine": float(torch.cosine_similarity(values[2], attention_grad, 0)),
            "logits_gradient": float((values[3] - logits_grad).norm() / logits_grad.norm()),
        }
    return found


def llama2_bytes() -> dict[str, float]:
    """Bytes of one sample of Llama-2-7B's size, packed for real: 1,536 tokens, 512 of them the answer, 128 heads.

    ``official`` is arithmetic from official_code.md with 100 queries, the smaller of its two settings: full float32
    logits at every position and bfloat16 rows.
    """
    length, answer, heads, vocabulary = 1536, 512, 128, 32000
    generator = torch.Generator().manual_seed(0)
    rows_MRL = torch.rand(heads, QUERIES, length, generator=generator).softmax(-1)
    position_A = torch.arange(length - answer - 1, length - 1)
    logits = LogitSignal.encode(position_A, torch.randn(answer, vocabulary, generator=generator), 64, DEFAULT.dtype)
    attention = AttentionSignal(
        torch.arange(QUERIES), StoredTopK.encode(rows_MRL, DEFAULT.top_k, DEFAULT.dtype, DEFAULT.rows)
    )
    sample = ReplaySample("", "", torch.zeros(length, dtype=torch.long), length - answer, logits, attention)
    ours = sample_bytes(MemoryTask("task", [sample]))
    official = length * vocabulary * 4 + heads * QUERIES * length * 2
    return {"ours": ours, "official": official, "ratio": official / ours}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one pair of tasks at 512 tokens")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--plot", type=Path, help="draw the trade-off here (PNG)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed, (first, second) in enumerate(PAIRS[:1] if options.quick else PAIRS):
            print(f"training {first} to {second} ...", file=sys.stderr)
            length, examples = (512, 160) if options.quick else (1024, 400)
            pair = train_pair(first, second, length, examples, 6, seed, Path(folder))
            results.append((pair.name, measure(pair, FORMS)))
    text = table(results)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.plot:
        draw(results, options.plot)


def spread(values: list[float], form: str) -> str:
    """Median with lowest and highest of the pairs."""
    ordered = sorted(values)
    low, middle, high = (format(value, form) for value in (ordered[0], statistics.median(ordered), ordered[-1]))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def table(results: list[tuple[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown."""
    names = [name for name in results[0][1] if name != "whole"]
    whole = [found["whole"] for _, found in results]
    size = llama2_bytes()
    lines = [
        f"Pairs: {'; '.join(name for name, _ in results)}. Median (lowest to highest of the pairs). Whole float32 "
        f"signals: {spread([one['bytes'] for one in whole], ',.0f')} bytes a sample, attention term "
        f"{spread([one['attention'] for one in whole], '.3f')}, logit term "
        f"{spread([one['logits'] for one in whole], '.3f')}.",
        "",
        "| stored | bytes a sample | attention loss | its gradient (relative error) | cosine | logit loss "
        "| its gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        rows = [found[name] for _, found in results]
        shown = f"**{name}** (default)" if name == DEFAULT.name else name
        lines.append(
            f"| {shown} | {spread([row['bytes'] for row in rows], ',.0f')} "
            f"| {spread([row['attention_change'] for row in rows], '+.2%')} "
            f"| {spread([row['attention_gradient'] for row in rows], '.3f')} "
            f"| {spread([row['attention_cosine'] for row in rows], '.4f')} "
            f"| {spread([row['logits_change'] for row in rows], '+.2%')} "
            f"| {spread([row['logits_gradient'] for row in rows], '.3f')} |"
        )
    lines += [
        "",
        f"Llama-2-7B's size (1,536 tokens, 512 answer tokens, 128 heads, 100 queries), packed by the library with the "
        f"default: {size['ours'] / 1e6:.2f} MB a sample against {size['official'] / 1e6:.0f} MB of the official code, "
        f"{size['ratio']:.0f} times smaller.",
        "",
        f"Machine: {machine()}.",
    ]
    return "\n".join(lines)


def draw(results: list[tuple[str, dict[str, dict[str, float]]]], path: Path) -> None:
    """Bytes against the attention term's error, one line a form."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    for kind, label in (("bucket", "top-k, rest one bucket, int8"), ("sampled", "top-k, rest sampled, int8")):
        chosen = [form for form in FORMS if form.rows == kind and form.dtype == "int8" and form.logits_top_k == 64]
        rows = [[found[form.name] for _, found in results] for form in chosen]
        size = [statistics.median(one["bytes"] for one in row) / 1e3 for row in rows]
        for axis, key in zip(axes, ("attention_change", "attention_gradient")):
            every = [[abs(one[key]) for one in row] for row in rows]
            axis.plot(size, [statistics.median(one) for one in every], "o-", label=label)
            axis.fill_between(size, [min(one) for one in every], [max(one) for one in every], alpha=0.2)
    for form in FORMS:
        if form.rows in ("factors", "dense"):
            rows = [found[form.name] for _, found in results]
            for axis, key in zip(axes, ("attention_change", "attention_gradient")):
                axis.plot(
                    statistics.median(row["bytes"] for row in rows) / 1e3,
                    statistics.median(abs(row[key]) for row in rows),
                    "s",
                    label=f"{form.rows}, {form.dtype}",
                )
    for axis, title in zip(axes, ("relative change of the attention loss", "relative error of its gradient")):
        axis.set(xscale="log", yscale="log", xlabel="kilobytes a sample", title=title)
        axis.set_xticks([200, 500, 1000, 2000, 4000], ["200", "500", "1000", "2000", "4000"])
        axis.set_xticks([], minor=True)
        axis.axhline(1e-2, color="grey", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3, which="both")
    axes[1].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
