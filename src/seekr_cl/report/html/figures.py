"""The charts of one run: each takes plain data and gives a picture, or nothing where there is nothing to show."""

from collections.abc import Sequence

from markupsafe import Markup

from seekr_cl.report.html import charts
from seekr_cl.report.html.charts import Axis, Series
from seekr_cl.report.html.data import Memory, RunData, Stage, TaskLog
from seekr_cl.report.html.training_logs import loss_terms, shares
from seekr_cl.system.visible import one_line

_WIDE = 860


def task_curve(data: RunData, task: str, metric: str, learnt_at: int | None) -> Markup:
    """One task's or probe's score at every stage, with its intervals."""
    stages = [stage for stage in data.stages if task in stage.scores]
    points = [(float(number), stage.scores[task]) for number, stage in enumerate(stages)]
    band = [stage.intervals.get(task) for stage in stages]
    width, height = 300, 172
    x = Axis(0, max(1, len(stages) - 1), 38, width - 14, ticks=_stage_ticks(stages, 240))
    y = charts.linear(0, 100, height - 34, 22, 4)
    parts = charts.frame(x, y, "", "", height, width)
    if learnt_at is not None and learnt_at < len(stages):
        parts.append(charts.line(x(learnt_at), y.begin, x(learnt_at), y.end, "mark"))
        anchor = "end" if learnt_at > len(stages) / 2 else "start"
        parts.append(charts.text(x(learnt_at) + (-4 if anchor == "end" else 4), y.end - 2, "learned", "note", anchor))
    parts += charts.curve(Series(task, points, band), 0, x, y, True)
    told = ", ".join(f"{stage.name} {stage.scores[task]:.1f}" for stage in stages)
    return charts.svg(width, height, f"{task}: {metric} over the stream", f"After each stage: {told}.", parts)


def _stage_ticks(stages: Sequence[Stage], room: float) -> list[tuple[float, str]]:
    """Numbers of stages; the base model is a "B"."""
    every = 1
    while len(stages) / every * 22 > room:
        every += 1
    return [(float(n), "B" if stage.name == "base" else str(n)) for n, stage in enumerate(stages) if n % every == 0]


def retention_curve(data: RunData) -> Markup:
    """The mean over probes at every stage: what is left of the base model's skills."""
    assert data.matrix is not None
    probes = {name: scores for name, scores in data.matrix.extra.items() if scores}
    length = min(map(len, probes.values()))
    means = [sum(scores[n] for scores in probes.values()) / len(probes) for n in range(length)]
    series = [Series("mean of all probes", [(float(n), mean) for n, mean in enumerate(means)])]
    series += [
        Series(name, [(float(n), score) for n, score in enumerate(scores[:length])])
        for name, scores in (probes.items() if len(probes) <= charts.CLASSES else ())
    ]
    width, height = 620, 240
    x = Axis(0, max(1, length - 1), 44, width - 14, ticks=_stage_ticks(data.stages[:length], width - 60))
    y = charts.linear(0, 100, height - 38, 22)
    parts = charts.frame(x, y, "stage (B: base model; numbers: tasks learned)", "score, %", height, width)
    # The mean comes last, so that no single probe hides it.
    for number, one in [*[*enumerate(series)][1:], (0, series[0])]:
        parts += charts.curve(one, number, x, y, True)
    told = ", ".join(f"{mean:.1f}" for mean in means)
    drawn = charts.svg(
        width, height, "Probes over the stream", f"Mean of {len(probes)} probes by stage: {told}.", parts
    )
    return drawn + charts.legend([one.name for one in series])


def _offsets(logs: Sequence[TaskLog]) -> tuple[list[int], int]:
    begins, total = [], 0
    for log in logs:
        begins.append(total)
        total += max(log.steps, int(log.lines[-1]["step"]) if log.lines else 0)
    return begins, total


def _borders(logs: Sequence[TaskLog], begins: Sequence[int], x: Axis, y: Axis) -> list[Markup]:
    parts = []
    for number, (log, begin) in enumerate(zip(logs, begins)):
        if begin:
            parts.append(charts.line(x(begin), y.begin, x(begin), y.end, "mark"))
        end = begins[number + 1] if number + 1 < len(begins) else x.high
        room = int((x(end) - x(begin)) / 7)
        if room >= 3:
            parts.append(charts.text(x(begin) + 4, y.end - 6, one_line(log.task, room), "note"))
    return parts


def _over_steps(logs: Sequence[TaskLog], key: str) -> list[tuple[float, float | None]]:
    begins, _ = _offsets(logs)
    points: list[tuple[float, float | None]] = []
    for log, begin in zip(logs, begins):
        own: list[tuple[float, float | None]] = [
            (begin + line["step"], line[key]) for line in log.lines if key in line and "step" in line
        ]
        points += [*charts.decimate(own, max(20, 600 // len(logs))), *([(float(begin), None)] if own else [])]
    return points


def loss_chart(logs: Sequence[TaskLog]) -> Markup | None:
    """Loss terms over all steps of the stream on a logarithmic scale, and below them when replay came."""
    names = loss_terms(list(logs))
    curves = [Series(name.removeprefix("loss_"), _over_steps(logs, name)) for name in names]
    values = [value for one in curves for _, value in one.points if value is not None and value > 0]
    if not values:
        return None
    begins, total = _offsets(logs)
    width, height = _WIDE, 330
    x = charts.linear(0, max(1, total), 54, width - 12, 8)
    y = charts.logarithmic(max(min(values), max(values) / 1e6), max(values), height - 62, 22)
    parts = charts.frame(x, y, "optimizer step, over all tasks", "", height, width)
    parts += _borders(logs, begins, x, y)
    for number, one in enumerate(curves):
        parts += charts.curve(one, number, x, y, False)
    marks, count = _replay_marks(logs, begins, x, height - 42)
    parts += marks
    about = "Terms: " + "; ".join(f"{one.name} ends at {_last(one)}" for one in curves) + f". {count}"
    return charts.svg(width, height, "Loss terms over steps", about, parts) + charts.legend(
        [one.name for one in curves]
    )


def _last(series: Series) -> str:
    known = [value for _, value in series.points if value is not None]
    return charts.short(known[-1]) if known else "-"


def _replay_marks(logs: Sequence[TaskLog], begins: Sequence[int], x: Axis, top: float) -> tuple[list[Markup], str]:
    """A tick where a step, or a stretch of steps, held replay; from the log lines where nothing else is known."""
    ticks, steps = [], 0
    for log, begin in zip(logs, begins):
        if log.replayed:
            places = [(number * log.bin_steps, log.bin_steps, n) for number, n in enumerate(log.replayed) if n]
        else:
            places, former = [], 0
            for one in log.lines:
                step = int(one.get("step", 0))
                if "loss_replay_total" in one:
                    places.append((former, max(1, step - former), 1))
                former = step
        steps += len(places)
        ticks += [(x(begin + at), max(0.6, x(begin + at + size) - x(begin + at)) * 0.6) for at, size, _ in places]
    if not ticks:
        return [], "No replay."
    drawn = "".join(f"M{at} {top}h{wide:.1f}v6h-{wide:.1f}z" for at, wide in ticks)
    return [
        Markup('<path d="{}" class="replay"/>').format(drawn),
        charts.text(x.begin - 6, top + 7, "replay", "tick", "end"),
    ], f"{steps} marks below the axis show when replay came."


def probe_chart(logs: Sequence[TaskLog]) -> Markup | None:
    """What retention probes gave over the steps: mean probability of the stored answers of each old task."""
    # Earlier versions wrote an underscore.
    begin = ("retention/", "retention_")
    names = [key for log in logs for line in log.lines for key in line if key.startswith(begin)]
    curves = [Series(name[len(begin[0]) :], _over_steps(logs, name)) for name in dict.fromkeys(names)]
    if not curves:
        return None
    begins, total = _offsets(logs)
    width, height = _WIDE, 240
    x, y = charts.linear(0, max(1, total), 54, width - 12, 8), charts.linear(0, 100, height - 40, 22, 4)
    parts = charts.frame(x, y, "optimizer step, over all tasks", "", height, width)
    parts += _borders(logs, begins, x, y)
    for number, one in enumerate(curves):
        parts += charts.curve(one, number, x, y, len(one.points) < 40)
    about = "; ".join(f"{one.name} ends at {_last(one)}" for one in curves) + "."
    drawn = charts.svg(width, height, "Retention probes over steps", about, parts)
    return drawn + charts.legend([one.name for one in curves])


def share_chart(logs: Sequence[TaskLog]) -> Markup | None:
    """Each term's share of the summed gradient norms, stacked to one."""
    names = shares(list(logs))
    if len(names) < 2:
        # One term alone has all of it.
        return None
    begins, total = _offsets(logs)
    width, height = _WIDE, 230
    x, y = charts.linear(0, max(1, total), 54, width - 12, 8), charts.linear(0, 100, height - 40, 22, 4)
    parts: list[Markup] = []
    last: dict[str, float] = {}
    for log, begin in zip(logs, begins):
        lines = [line for line in log.lines if any(name in line for name in names)]
        every = max(1, len(lines) // max(20, 300 // len(logs)))
        lines = lines[::every]
        floor = [0.0] * len(lines)
        for number, name in enumerate(names):
            upper = [low + 100 * line.get(name, 0.0) for low, line in zip(floor, lines)]
            if lines and upper != floor:
                there = [f"{x(begin + one['step'])} {y(value)}" for one, value in zip(lines, upper)]
                back = [f"{x(begin + one['step'])} {y(value)}" for one, value in zip(lines, floor)][::-1]
                parts.append(
                    Markup('<path d="M{}Z" class="area c{}"/>').format("L".join(there + back), number % charts.CLASSES)
                )
            floor = upper
        last = {name: lines[-1].get(name, 0.0) for name in names} if lines else last
    shown = charts.frame(x, y, "optimizer step, over all tasks", "", height, width)
    told = ", ".join(f"{name.removeprefix('share_')} {100 * share:.0f}%" for name, share in last.items())
    drawn = charts.svg(
        width,
        height,
        "Gradient shares over steps",
        f"At the end: {told}.",
        [*parts, *shown, *_borders(logs, begins, x, y)],
    )
    return drawn + charts.legend([name.removeprefix("share_") for name in names], "fill")


def stacked_bars(rows: Sequence[tuple[str, dict[str, float]]], unit: str, title: str, say: object) -> Markup | None:
    """A bar a row, made of parts.

    Args:
        rows: label and parts.
        unit: of the numbers, for the axis.
        title: of the chart.
        say: turns a number into words.
    """
    assert callable(say)
    rows = [(name, parts) for name, parts in rows if sum(parts.values()) > 0]
    if not rows:
        return None
    kinds = list(dict.fromkeys(kind for _, parts in rows for kind in parts))
    width, step = 700, 26
    height = 24 + step * len(rows) + 40
    most = max(sum(parts.values()) for _, parts in rows)
    x = charts.linear(0, most, 150, width - 70, 5)
    drawn: list[Markup] = []
    for value, label in x.ticks:
        drawn += [charts.line(x(value), 16, x(value), height - 36, "grid")]
        drawn.append(charts.text(x(value), height - 22, label, "tick", "middle"))
    for number, (name, parts) in enumerate(rows):
        at, top = 0.0, 20 + step * number
        drawn.append(charts.text(142, top + 13, one_line(name, 20), "tick", "end"))
        for kind, value in parts.items():
            color = f"fill c{kinds.index(kind) % charts.CLASSES}"
            drawn.append(charts.rect(x(at), top, x(at + value) - x(at), 18, color, f"{name}, {kind}: {say(value)}"))
            at += value
        drawn.append(charts.text(x(at) + 6, top + 13, say(at), "tick"))
    drawn.append(charts.text((x.begin + x.end) / 2, height - 5, unit, "label", "middle"))
    about = "; ".join(f"{name}: {say(sum(parts.values()))}" for name, parts in rows) + "."
    return charts.svg(width, height, title, about, drawn) + charts.legend(kinds, "fill")


def memory_rows(memory: Memory) -> list[tuple[str, dict[str, float]]]:
    """Bytes for ``stacked_bars``: a row a task, and one for what all share."""
    rows = [(task, {kind: float(n) for kind, n in kinds.items()}) for task, kinds in memory.tasks.items()]
    return [*rows, ("all tasks", {kind: float(n) for kind, n in memory.shared.items()})]
