"""A plan as text for a person."""

from rich.console import Console
from rich.table import Table

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.planning.nodes import Cluster, crossing, terms
from seekr_cl.planning.plan import Option, Plan
from seekr_cl.system.sizes import size


def show_plan(plan: Plan, out: Console) -> None:
    """Prints a plan."""
    shape, work, chosen, steps, official = plan.shape, plan.work, plan.chosen, plan.steps, plan.official

    most = max(plan.kept, default=0)

    def say(line: str) -> None:
        out.print(line, soft_wrap=True)

    say(
        f"{shape.name}: {shape.parameters / 1e9:.2f}G weights, {len(shape.layers)} attention layers, "
        f"{sum(shape.heads.values())} heads, vocabulary {shape.vocabulary}"
    )
    say(
        f"method {plan.method}; {len(work.examples)} tasks of {_span(work.examples)} examples, {_span(plan.kept)} kept "
        f"of each, {work.tokens} tokens a sample, {work.answer} of them answer"
    )
    if chosen.form != "-":
        say(f"after budgets: {chosen.heads} heads in {chosen.layers} layers, {chosen.queries} queries a sample")
    parts = chosen.sample
    say(
        f"a sample: {size(parts.stored)} = ids {size(parts.ids)} + logits {size(parts.logits)} + "
        f"attention {size(parts.attention)}; all {sum(plan.kept)} samples: {size(chosen.total)}"
    )
    if plan.small is not None:
        small = plan.small
        say(f"preset: small, {small.queries} queries and fewer entries a row: a sample {size(small.sample.stored)}")
    if plan.teachers is not None:
        smaller = min(plan.teachers, key=lambda way: plan.teachers[way])  # type: ignore[index]
        each = ", ".join(f"{way} {size(taken)}" for way, taken in plan.teachers.items())
        say(f"method.teacher, all samples and adapters: {each}; {smaller} is smaller")
    if plan.fit is not None:
        say(f"memory.max_bytes {size(plan.limit or 0)} leaves {plan.fit} samples a task after the last one")
    for line in [*_beside(plan), *plan.notes]:
        say(line)
    say(f"RAM held while a task is trained (all heads' rows from before): {size(chosen.held)}")
    say(f"VRAM that a replay step adds (teachers, student logits, row tiles): {size(chosen.vram)}")
    say(
        f"optimizer steps: {steps.steps} + {steps.extra} for replay; {_beside_training(plan)} of the time"
        f"{f'; looking at a kept sample takes {steps.scoring:.2f} passes' if steps.scoring else ''}"
    )
    say(
        f"official code: a sample {size(official.logits + official.attention)} = logits {size(official.logits)} + "
        f"attention {size(official.attention)} at 100 queries ({size(official.attention_all)} at all); "
        f"RAM held {size(official.held * most)} ({size(official.held_all * most)})"
    )
    if plan.others:
        columns = ("attention", "dtype", "heads", "queries", "logits", "attention", "a sample", "in all", "RAM", "VRAM")
        table = Table(*columns, "official / this")
        for option in [chosen, *plan.others]:
            table.add_row(*_row(option, option is chosen))
        out.print(table)


def show_terms(plan: Plan, config: SeekrConfig, cluster: Cluster, out: Console) -> None:
    """Prints what grows with machines and tasks, and the first task whose replay is as much work as itself."""
    out.print(
        f"{cluster.nodes} nodes of {cluster.gpus} GPUs with {size(cluster.memory)}, FSDP2 with AdamW, "
        "activations not counted",
        soft_wrap=True,
    )
    table = Table("term", "value", "measured by", "small", "what the code does, or what to set")
    for term in terms(plan, config, cluster):
        values = [size(n) if term.kind == "bytes" else f"{n:.0f} passes" for n in (term.value, term.room)]
        verdict = "yes" if term.small else "no" if term.value <= term.room else "NO: does not fit"
        if term.kind == "passes" and term.value > term.room:
            verdict = "NO: more than the task"
        table.add_row(term.name, *values, verdict, term.answer)
    out.print(table)
    number = crossing(plan)
    if number is not None:
        out.print(f"without a cadence, replay is as much work as the task itself from task {number} on", soft_wrap=True)


def _beside(plan: Plan) -> list[str]:
    """What the method needs beside model, optimizer and samples."""
    own, context, tokens = plan.overhead, plan.shape.context, plan.work.tokens
    lines = []
    parts = (
        (own.device, "on the device in a step of the last task"),
        (own.ram, "in RAM meanwhile"),
        (own.carried, "in the memory after it"),
        (own.written, "of adapter written in place of a model"),
    )
    said = [f"{size(value)} {what}" for value, what in parts if value]
    if said:
        lines.append(f"{plan.method} itself takes {', '.join(said)}")
    if own.texts:
        lines.append(
            f"the model itself writes {own.texts} texts, for which at most {own.positions} tokens go forward: "
            f"{plan.steps.written:.0f} passes of an example"
        )
    if own.virtual:
        lines.append(f"{own.virtual} virtual tokens stand before the {tokens} of an example of the last task")
        if context is not None and own.virtual + tokens > context:
            left = max(context - own.virtual, 0)
            lines.append(f"NO ROOM: the model's context is {context}, so that only {left} are left for an example")
    return lines


def _beside_training(plan: Plan) -> str:
    """What is done beside training on new examples, and its share."""
    steps = plan.steps
    parts = ["replay"]
    parts += ["looking at samples"] * bool(steps.scored) + ["writing"] * bool(steps.written)
    parts += [f"what {plan.method} does beside"] * bool(steps.own)
    first, last = ", ".join(parts[:-1]), parts[-1]
    return f"{f'{first} and ' if first else ''}{last} take{'s' * (not first)} {100 * steps.time_share:.1f}%"


def _row(option: Option, chosen: bool) -> tuple[str, ...]:
    parts = option.sample
    sizes = (parts.logits, parts.attention, parts.stored, option.total, option.held, option.vram)
    name = option.form + (" (chosen)" if chosen else "")
    return (name, option.dtype, str(option.heads), str(option.queries), *map(size, sizes), f"{option.times:.1f}")


def _span(counts: list[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"
