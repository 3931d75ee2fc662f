"""The attention engine's price: SEEKR's replay step, scoring pass and stage against what they are compared with.

    python benchmarks/attention.py [--quick] [--json] [--markdown FILE --plot FILE]

Everything is timed side by side in one process on one thread: CPU seconds of alternated runs, medians of the rounds'
own ratios. CPU seconds equal wall seconds on an idle machine and stay comparable on a busy one. Peak memory is measured
in a process of its own for each variant. ``--json`` prints one line:

    step_vs_derpp          SEEKR replay step / DER++ replay step, L = 1024
    step_vs_materialising  step with whole probability matrices in the graph / SEEKR replay step, L = 2048
    peak_vs_derpp          peak memory over the model, SEEKR / DER++, L = 1024
    scoring_vs_plain       all passes over a kept sample around its task / plain forward and backward, L = 1024
    scoring_growth         exponent of L of the scoring pass over 512 ... 4096
    plain_growth           the same of plain forward and backward: the model's own attention kernel is quadratic
    bytes_ratio            the official code's bytes a sample / ours, at Llama-2-7B's size
    loss_change            largest relative change of the attention and logit losses under the default's small signals
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench_model import (
    bare_scoring,
    make_method,
    make_model,
    make_sample,
    materialising_step,
    move,
    plain_pass,
    remember,
    replay_step,
    scoring_pass,
    whole_rows,
)
from signals import DEFAULT, PAIRS, llama2_bytes, measure, train_pair
from stage import stage_ratio
from timing import alternate, in_own_process, machine, peak_of, ratio, spread

from seekr_cl.methods.derpp import DERpp
from seekr_cl.methods.seekr.method import Seekr

LENGTHS = (512, 1024, 2048, 4096)
STEPS = ("derpp", "seekr", "materialising")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def make_step(kind: str, length: int) -> Any:
    """A replay step of one kind on a model that has moved since the sample was kept."""
    model = make_model()
    task = remember(model, make_sample(length))
    if kind == "materialising":
        return materialising_step(model, task, whole_rows(model, task))
    move(model)
    return replay_step(make_method(Seekr if kind == "seekr" else DERpp, model), task)


def steps(length: int, rounds: int, kinds: tuple[str, ...] = STEPS, warm: bool = True) -> dict[str, list[float]]:
    """CPU seconds of the replay steps, all on one model."""
    model = make_model()
    task = remember(model, make_sample(length))
    rows = whole_rows(model, task)
    move(model)
    variants = {}
    if "derpp" in kinds:
        variants["derpp"] = replay_step(make_method(DERpp, model), task)
    if "seekr" in kinds:
        variants["seekr"] = replay_step(make_method(Seekr, model), task)
    if "materialising" in kinds:
        variants["materialising"] = materialising_step(model, task, rows)
    return alternate(variants, rounds, warm)


def scoring(lengths: tuple[int, ...], rounds: dict[int, int], quick: bool) -> dict[int, dict[str, list[float]]]:
    """CPU seconds of the scoring pass, the same passes without looking on, and plain forward and backward."""
    found = {}
    for length in lengths:
        model, sample = make_model(), make_sample(length)
        variants = {
            "scoring": scoring_pass(model, sample),
            "passes alone": bare_scoring(model, sample),
            "plain": plain_pass(model, sample),
        }
        if quick:
            del variants["passes alone"]
        found[length] = alternate(variants, rounds[length], warm=not quick or length < 2048)
        say(f"scoring at L = {length}: {ratio(found[length]['scoring'], found[length]['plain']):.3f} of plain")
    return found


def growth(seconds: dict[int, float]) -> float:
    """Exponent of L in a least-squares fit of log seconds on log L."""
    logs = torch.tensor([[float(length), value] for length, value in seconds.items()]).log()
    centred = logs - logs.mean(0)
    return float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())


def peaks(length: int, kinds: tuple[str, ...]) -> dict[str, int]:
    """Peak bytes over the model's own, each in a process of its own."""
    with ThreadPoolExecutor(2) as pool:
        runs = {kind: pool.submit(in_own_process, __file__, "--peak", kind, str(length), threads=1) for kind in kinds}
        return {kind: run.result() for kind, run in runs.items()}


def loss_changes(quick: bool) -> list[dict[str, float]]:
    """The default's changes on real rows, one entry for each pair of tasks."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = PAIRS[:1] if quick else PAIRS
        length, examples, count = 512, 96 if quick else 240, 4
        return [
            measure(train_pair(first, second, length, examples, count, seed, Path(folder)), [DEFAULT])[DEFAULT.name]
            for seed, (first, second) in enumerate(pairs)
        ]


def main() -> None:
    """Runs it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no stage: under 5 minutes on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of the table")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--plot", type=Path, help="draw scoring against L here (PNG)")
    parser.add_argument("--peak", nargs=2, metavar=("STEP", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(peak_of(make_step(options.peak[0], int(options.peak[1])))))
        return
    quick = options.quick
    say("replay steps at L = 1024")
    short = steps(1024, 5 if quick else 9, STEPS[:2] if quick else STEPS)
    say("replay steps at L = 2048")
    long = steps(2048, 2 if quick else 5, STEPS[1:] if quick else STEPS, warm=not quick)
    rounds = {512: 2, 1024: 5, 2048: 1, 4096: 1} if quick else {512: 7, 1024: 9, 2048: 3, 4096: 2}
    scored = scoring(LENGTHS, rounds, quick)
    say("peak memory")
    memory = {1024: peaks(1024, STEPS[:2])} if quick else {L: peaks(L, STEPS) for L in (1024, 2048)}
    say("loss on small signals")
    changes = loss_changes(quick)
    medians = {name: {length: statistics.median(runs[name]) for length, runs in scored.items()} for name in scored[512]}
    size = llama2_bytes()
    numbers = {
        "step_vs_derpp": ratio(short["seekr"], short["derpp"]),
        "step_vs_materialising": ratio(long["materialising"], long["seekr"]),
        "peak_vs_derpp": memory[1024]["seekr"] / memory[1024]["derpp"],
        "scoring_vs_plain": ratio(scored[1024]["scoring"], scored[1024]["plain"]),
        "scoring_growth": growth(medians["scoring"]),
        "plain_growth": growth(medians["plain"]),
        "bytes_ratio": size["ratio"],
        "loss_change": max(abs(one[key]) for one in changes for key in ("attention_change", "logits_change")),
    }
    stage = None
    if not quick:
        say("a whole stage")
        stage = stage_ratio()
    if options.json:
        print(json.dumps({key: round(value, 4) for key, value in numbers.items()}))
    else:
        print(table(numbers, short, long, scored, medians, memory, stage))
    if options.markdown:
        text = table(numbers, short, long, scored, medians, memory, stage)
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.plot:
        draw(medians, options.plot)


def table(
    numbers: dict[str, float],
    short: dict[str, list[float]],
    long: dict[str, list[float]],
    scored: dict[int, dict[str, list[float]]],
    medians: dict[str, dict[int, float]],
    memory: dict[int, dict[str, int]],
    stage: dict[str, Any] | None,
) -> str:
    """Markdown."""
    lines = ["| what | number | lowest to highest | goal |", "|---|---|---|---|"]
    rows = [
        ("step_vs_derpp", spread(short["seekr"], short["derpp"]), "<= 1.03"),
        ("step_vs_materialising", spread(long["materialising"], long["seekr"]), ">= 1.7"),
        ("peak_vs_derpp", "", "<= 1.03"),
        ("scoring_vs_plain", spread(scored[1024]["scoring"], scored[1024]["plain"]), "<= 1.10"),
        ("scoring_growth", "", "1, or the model's own"),
        ("plain_growth", "", ""),
        ("bytes_ratio", "", ">= 100"),
        ("loss_change", "", "<= 0.01"),
    ]
    lines += [f"| `{key}` | {numbers[key]:.3f} | {range_} | {goal} |" for key, range_, goal in rows]
    if stage:
        lines.append(f"| whole stage / plain fine-tuning | {stage['ratio']:.3f} | {stage['spread']} | <= 1.10 |")
    lines += ["", "| replay step | L | CPU seconds (median) | peak MB over the model |", "|---|---|---|---|"]
    for length, runs in ((1024, short), (2048, long)):
        for kind, values in runs.items():
            peak = memory.get(length, {}).get(kind)
            shown = f"{peak / 2**20:.0f}" if peak else "-"
            lines.append(f"| {kind} | {length} | {statistics.median(values):.2f} | {shown} |")
    lines += [
        "",
        "| L | scoring pass | the same passes, nobody looking on | plain forward and backward | scoring / plain |",
        "|---|---|---|---|---|",
    ]
    for length in scored:
        names = ("scoring", "passes alone", "plain")
        shown = " | ".join(f"{medians[name][length]:.2f} s" if name in medians else "-" for name in names)
        lines.append(f"| {length} | {shown} | {ratio(scored[length]['scoring'], scored[length]['plain']):.3f} |")
    exponents = ", ".join(f"{name} {growth(values):.2f}" for name, values in medians.items())
    lines += ["", f"Exponents of L: {exponents}.", "", f"Machine: {machine()}."]
    return "\n".join(lines)


def draw(medians: dict[str, dict[int, float]], path: Path) -> None:
    """Seconds against L on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.2))
    names = {"scoring": "scoring pass", "passes alone": "the same passes, nobody looking on", "plain": "plain training"}
    for name, values in medians.items():
        axis.plot(list(values), list(values.values()), "o-", label=f"{names[name]}: L^{growth(values):.2f}")
    first = medians["scoring"]
    axis.plot(list(first), [first[LENGTHS[0]] * length / LENGTHS[0] for length in first], ":", label="linear")
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="CPU seconds a sample")
    axis.set_xticks(list(first), [str(length) for length in first])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_minor_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
