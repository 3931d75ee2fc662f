"""Times the row divergence's kernels on a GPU against materialising the probability maps with plain autograd.

    python benchmarks/row_kl_gpu.py [--json] [--sweep]

Causal attention, one sample, bfloat16. Teachers: factors (its q and k), the top 32 of each row, whole rows. Rows: all
of them, or 100. Times are medians of runs in which the two ways take turns; memory is the peak beyond the inputs, the
gradients included. At the shortest length values and gradients are compared with the library's PyTorch tiles.

``--interpret`` runs the same code without a GPU on a toy size, to see that it works; its times mean nothing.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from seekr_cl.attention import AttentionCall, DenseRows, FactorRows, RowIndex, RowTarget, TopKRows, row_kl
from seekr_cl.attention.kernels import blocks
from seekr_cl.attention.kernels.routing import route

KEPT = 32
HEADINGS = ("forward", "maps", "", "+ backward", "maps", "", "MiB", "maps")
SPARE = 0.45
"""Share of the free memory that whole teacher rows may take: the rest is the measurement's."""


@dataclass
class Setting:
    """One shape of the problem."""

    length: int
    rows: int
    heads: int
    kv_heads: int
    size: int
    device: str
    dtype: torch.dtype

    def draw(self, heads: int, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (1, heads, self.length, self.size)
        return torch.randn(shape, device=self.device, generator=generator).to(self.dtype)

    def problem(self) -> tuple[AttentionCall, RowIndex, Tensor, FactorRows]:
        q = self.draw(self.heads, 0).requires_grad_()
        k = self.draw(self.kv_heads, 1).requires_grad_()
        call = AttentionCall(0, q, k, k.detach(), None, self.size**-0.5)
        query_R = torch.linspace(0, self.length - 1, self.rows, device=self.device).long()
        head_P = torch.arange(self.heads, device=self.device)
        index = RowIndex(torch.zeros_like(head_P), head_P, query_R.expand(self.heads, -1).contiguous())
        weight_PR = torch.full(index.query_PR.shape, 1 / index.query_PR.numel(), device=self.device)
        # A teacher near the student, as in training.
        q_teacher = (q.detach() + 0.3 * self.draw(self.heads, 2))[0][:, query_R].contiguous()
        k_teacher = (k.detach() + 0.3 * self.draw(self.kv_heads, 3))[0]
        return call, index, weight_PR, FactorRows(q_teacher, k_teacher, head_P // call.group)


def probabilities(q_RD: Tensor, k_LD: Tensor, query_R: Tensor, scaling: float) -> Tensor:
    """Rows of causal attention, float32."""
    hidden_RL = torch.arange(len(k_LD), device=k_LD.device) > query_R[:, None]
    return (q_RD.float() @ k_LD.float().T * scaling).masked_fill_(hidden_RL, -torch.inf).softmax(-1)


def store(kind: str, factors: FactorRows, index: RowIndex, setting: Setting) -> TopKRows | DenseRows | None:
    """The rows that factors stand for, stored, made a few at a time; ``None`` if they would not fit."""
    pairs, rows = index.query_PR.shape
    if kind == "whole":
        needed = pairs * rows * setting.length * 2
        if setting.device == "cuda" and needed > SPARE * torch.cuda.mem_get_info()[0]:
            return None
        prob_PRL = torch.empty((pairs, rows, setting.length), dtype=setting.dtype, device=setting.device)
    kept = min(KEPT, setting.length // 4)
    prob_PRK = torch.empty((pairs, rows, kept), device=setting.device)
    key_PRK = torch.empty((pairs, rows, kept), dtype=torch.long, device=setting.device)
    for pair, start in product(range(pairs), range(0, rows, 1024)):
        part = slice(start, start + 1024)
        k_LD = factors.k_GLD[factors.group_P[pair]]
        p = probabilities(factors.q_PRD[pair, part], k_LD, index.query_PR[pair, part], setting.size**-0.5)
        if kind == "whole":
            prob_PRL[pair, part] = p.to(setting.dtype)
        else:
            prob_PRK[pair, part], key_PRK[pair, part] = p.topk(kept, -1)
    if kind == "whole":
        return DenseRows(prob_PRL)
    return TopKRows(prob_PRK, key_PRK, (1 - prob_PRK.sum(-1)).clamp_min(0))


def materialised(call: AttentionCall, target: RowTarget) -> Tensor:
    """The same sum from whole maps, as one writes it with autograd: the student's, and the teacher's by factors."""
    index, teacher = target.index, target.teacher
    q_PRD = call.q_BHLD[index.sample_P[:, None], index.head_P[:, None], index.query_PR]
    k_PLD = call.k_BKLD[index.sample_P, index.head_P // call.group]
    hidden_RL = torch.arange(k_PLD.shape[1], device=k_PLD.device) > index.query_PR[0, :, None]

    def log_map(q_PRD: Tensor, k_PLD: Tensor) -> Tensor:
        lowest = torch.finfo(torch.float32).min
        return (q_PRD @ k_PLD.mT).float().mul(call.scaling).masked_fill(hidden_RL, lowest).log_softmax(-1)

    logp_PRL = log_map(q_PRD, k_PLD)
    if isinstance(teacher, TopKRows):
        logp_PRK = logp_PRL.gather(-1, teacher.key_PRK)
        rest_PR = (1 - logp_PRK.exp().sum(-1)).clamp_min(1e-7)
        kl_PR = (torch.special.xlogy(teacher.prob_PRK, teacher.prob_PRK) - teacher.prob_PRK * logp_PRK).sum(-1)
        kl_PR = kl_PR + torch.special.xlogy(teacher.tail_PR, teacher.tail_PR / rest_PR)
    else:
        with torch.no_grad():
            if isinstance(teacher, FactorRows):
                T_PRL = log_map(teacher.q_PRD, teacher.k_GLD[teacher.group_P]).exp()
            else:
                T_PRL = teacher.prob_PRL.float()
        kl_PR = (torch.special.xlogy(T_PRL, T_PRL) - T_PRL * logp_PRL).sum(-1)
    return (target.weight_PR * kl_PR).sum()


def kernels(call: AttentionCall, target: RowTarget) -> Tensor:
    """The library's way."""
    with route("kernels"):
        return row_kl(call, target)


Way = Callable[[AttentionCall, RowTarget], Tensor]


def once(way: Way, call: AttentionCall, target: RowTarget, backward: bool) -> list[Tensor]:
    value = way(call, target)
    return [value.detach(), *(torch.autograd.grad(value, (call.q_BHLD, call.k_BKLD)) if backward else ())]


def clock(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one run."""
    if device != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak(run: Callable[[], object], device: str) -> float | None:
    """MiB allocated at most beyond what was there."""
    if device != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(setting: Setting, call: AttentionCall, target: RowTarget, repeats: int) -> dict[str, object]:
    """Times and memory of both ways."""
    found: dict[str, object] = {}
    ways = {"kernels": kernels, "materialised": materialised}
    for name, way in list(ways.items()):
        try:
            found[f"{name} MiB"] = peak(partial(once, way, call, target, True), setting.device)
        except torch.cuda.OutOfMemoryError:
            found[f"{name} MiB"] = "out of memory"
            del ways[name]
            torch.cuda.empty_cache()
    for backward in (False, True):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                times[name].append(clock(partial(once, way, call, target, backward), setting.device))
        label = "forward and backward" if backward else "forward"
        found |= {f"{name} {label} ms": statistics.median(taken) for name, taken in times.items()}
    return found


def differences(call: AttentionCall, target: RowTarget) -> list[float]:
    """Value and gradients against the PyTorch tiles, of the largest number."""
    with route("tiles"):
        expected = once(row_kl, call, target, True)
    pairs = zip(once(kernels, call, target, True), expected)
    return [float((mine.float() - theirs.float()).abs().max() / theirs.float().abs().max()) for mine, theirs in pairs]


def sweep(setting: Setting, call: AttentionCall, target: RowTarget, repeats: int) -> list[str]:
    """Other block sizes than the rule's, one kernel at a time; forward and backward together."""
    lines = []
    for kernel in ("forward", "queries", "keys"):
        for rows, keys, warps, stages in product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3)):
            blocks.override = {kernel: {"BM": rows, "BN": keys, "num_warps": warps, "num_stages": stages}}
            name = f"{kernel:<8} {rows}x{keys} warps {warps} stages {stages}"
            try:
                once(kernels, call, target, True)
                taken = [clock(partial(once, kernels, call, target, True), setting.device) for _ in range(repeats)]
                lines.append(f"{name} {statistics.median(taken):9.3f} ms")
            except Exception as error:
                lines.append(f"{name} {type(error).__name__}")
    blocks.override = {}
    return lines


def show(entry: dict[str, object]) -> str:
    def number(key: str) -> str:
        value = entry.get(key)
        return f"{value:10.2f}" if isinstance(value, float) else f"{value or '-':>10.10}"

    def ratio(label: str) -> str:
        mine, theirs = (entry.get(f"{way} {label} ms") for way in ("kernels", "materialised"))
        return f"{theirs / mine:9.1f}x" if isinstance(mine, float) and isinstance(theirs, float) else f"{'-':>10}"

    parts = [f"{entry['length']:>6} {entry['rows']:>6} {entry['teacher']:<8}"]
    for label in ("forward", "forward and backward"):
        parts += [number(f"kernels {label} ms"), number(f"materialised {label} ms"), ratio(label)]
    parts += [number("kernels MiB"), number("materialised MiB")]
    if "differences" in entry:
        parts.append(" ".join(f"{value:.0e}" for value in entry["differences"]))
    return " ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--rows", type=int, default=100, help="rows of the short problem")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    parser.add_argument("--sweep", action="store_true", help="try other block sizes, at the first length only")
    parser.add_argument("--interpret", action="store_true", help="a toy size through Triton's interpreter")
    options = parser.parse_args()
    device, dtype = "cuda", torch.bfloat16
    if options.interpret:
        device, dtype = "cpu", torch.float32
        options.lengths, options.rows, options.heads, options.kv_heads = [24], 3, 2, 1
        options.size, options.repeats = 16, 1
    elif not torch.cuda.is_available():
        print("row_kl_gpu.py needs a GPU that torch can use", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter"
    entries = []
    if not options.json:
        heads = f"{options.heads} heads, {options.kv_heads} key heads of {options.size}"
        print(f"{name}, {heads}, {dtype}, causal; milliseconds, MiB, differences of value, dq, dk")
        print(f"{'keys':>6} {'rows':>6} {'teacher':<8}", *(f"{head:>10}" for head in HEADINGS))
    for length, few in product(options.lengths, (False, True)):
        rows = min(options.rows, length) if few else length
        setting = Setting(length, rows, options.heads, options.kv_heads, options.size, device, dtype)
        call, index, weight_PR, factors = setting.problem()
        for kind in ("factors", "top-k", "whole"):
            teacher = factors if kind == "factors" else store(kind, factors, index, setting)
            entry: dict[str, object] = {"length": length, "rows": rows, "teacher": kind}
            if teacher is not None:
                target = RowTarget(index, teacher, weight_PR)
                if options.sweep:
                    print(f"{length} keys, {rows} rows, {kind}", *sweep(setting, call, target, 3), sep="\n")
                    continue
                if length == options.lengths[0]:
                    entry["differences"] = differences(call, target)
                entry |= measure(setting, call, target, options.repeats)
            entries.append(entry)
            if not options.json:
                print(show(entry), flush=True)
            # Before the next teacher is made: this one may fill the memory.
            teacher = target = None
        if options.sweep and few:
            break
    if options.json:
        print(json.dumps({"device": name, "torch": torch.__version__, **vars(options), "entries": entries}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
