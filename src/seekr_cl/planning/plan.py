"""The plan: the chosen settings' costs, those of alternatives, and the official code's."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from seekr_cl.config.general import SAMPLES, SelfWritten
from seekr_cl.config.presets import PRESETS
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.methods.common.adapter_teacher import HELD
from seekr_cl.methods.common.logit_distillation import LogitSettings
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.methods.task_loss import BeforeWeights
from seekr_cl.models.trained_part import chosen as trained_part
from seekr_cl.planning.official import OfficialCost, official_cost
from seekr_cl.planning.overheads import FLOAT, FORWARD, FORWARD_FROZEN, Overhead, Scale, costs_of, written_positions
from seekr_cl.planning.passes import asks_adapters, looking_passes, sample_passes
from seekr_cl.planning.shape import ModelShape
from seekr_cl.planning.signal_costs import SampleCost, choose_heads, keeps_outputs, num_queries, sample_cost, tiles_size
from seekr_cl.planning.workload import Steps, Workload, count_steps, steps_of_tasks
from seekr_cl.system.sizes import size

FORMS = ("top_k", "factors", "dense")
PRECISIONS = ("int8", "float16")
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
"""Bytes of a weight by ``dtype``."""
UNKNOWN = "what {name} itself takes is not known and counts as nothing; put it into seekr_cl.planning.overheads.COSTS"
AS_GOOD = "measured with one-label answers: method=derpp kept as much, a sample {size} (docs/what_helps.md)"
"""Three seeds of SmolLM2-135M each, benchmarks/results/study/forgetting_lora.md and forgetting_full.md."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store signals, and what it costs.

    Attributes:
        form: of attention rows; ``-`` stores none.
        dtype: precision.
        layers: with chosen heads.
        heads: chosen.
        queries: of a sample.
        sample: bytes of one sample.
        total: bytes of all samples after the last task, without a budget in bytes.
        held: RAM for all heads' rows of a task's samples while it is trained.
        vram: what a replay step adds on the device: teachers, student logits, tiles.
        times: how many times smaller than the official code's sample at its 100 queries.
    """

    form: str
    dtype: str
    layers: int
    heads: int
    queries: int
    sample: SampleCost
    total: int
    held: int
    vram: int
    times: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything ``seekr plan`` prints.

    Attributes:
        shape: the model.
        method: its name.
        work: what is learned.
        kept: samples kept of each task.
        limit: ``memory.max_bytes``.
        fit: samples a task that the limit leaves after the last task, if it is reached.
        chosen: the settings as given.
        others: alternatives.
        steps: what replay adds to training.
        official: the official code's bytes.
        overhead: what the method needs beside model, optimizer and samples.
        teachers: bytes of all that the memory holds under each ``method.teacher``, where adapters are trained.
        small: under ``preset: small``, where that takes less.
        notes: what the plan does not know, and what was measured of settings like these.
    """

    shape: ModelShape
    method: str
    work: Workload
    kept: list[int]
    limit: int | None
    fit: int | None
    chosen: Option
    others: list[Option]
    steps: Steps
    official: OfficialCost
    overhead: Overhead
    teachers: dict[str, int] | None = None
    small: Option | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON; all sizes in bytes."""
        return {
            "model": {
                "type": self.shape.name,
                "parameters": self.shape.parameters,
                "layers": len(self.shape.layers),
                "heads": sum(self.shape.heads.values()),
                "vocabulary": self.shape.vocabulary,
            },
            "method": self.method,
            "workload": asdict(self.work),
            "kept": self.kept,
            "max_bytes": self.limit,
            "samples_a_task_within_max_bytes": self.fit,
            "chosen": _option_json(self.chosen),
            "alternatives": [_option_json(option) for option in self.others],
            "teachers": self.teachers,
            "preset_small": None if self.small is None else _option_json(self.small),
            "steps": asdict(self.steps) | {"time_share": round(self.steps.time_share, 4)},
            "official": asdict(self.official),
            "overhead": asdict(self.overhead),
            "notes": list(self.notes),
        }


def make_plan(shape: ModelShape, config: SeekrConfig, work: Workload, adapter: int | None = None) -> Plan:
    """What learning ``work`` with these settings costs.

    Args:
        shape: the model.
        config: all settings.
        work: tasks, examples, lengths.
        adapter: bytes of the adapter that is trained, if one is.
    """
    kept = [config.replay.count(examples) if config.method.kind.keeps else 0 for examples in work.examples]
    dtype, settings = config.signal_dtype or "int8", config.method.settings
    official = official_cost(shape, work.tokens)

    replayed = sum(bool(count) for count in kept)

    def asked(settings: Any) -> int:
        return (adapter or 0) * replayed if asks_adapters(settings) else 0

    def option(settings: Any, dtype: str) -> Option:
        made = _option(shape, settings, dtype, work, kept, config, official)
        return replace(made, total=made.total + asked(settings))

    chosen, others, small = option(settings, dtype), [], None
    if isinstance(settings, SeekrSettings):
        forms = (settings.attention_signal,) if keeps_outputs(settings) else FORMS
        ways = [(settings.replaced(attention_signal=form), number) for form in forms for number in PRECISIONS]
        if settings.teacher == "adapter":
            # Nothing is stored in any form.
            ways = [(settings.replaced(teacher="stored"), dtype)]
        budgets: list[dict[str, Any]] = [{"query_budget": 32}, {"query_budget": None}, {"head_budget": 0.125}]
        ways += [(settings.replaced(**change), dtype) for change in [*budgets, {"heads": "all"}]]
        others = [made for made in (option(*way) for way in ways) if made != chosen]
        if settings.attention_signal == "top_k" and settings.teacher == "stored":
            found = option(settings.replaced(**PRESETS["small"]["seekr"]), dtype)
            small = found if found.sample.stored < chosen.sample.stored else None
    teachers = None
    if adapter is not None and isinstance(settings, LogitSettings):
        teachers = {way: option(settings.replaced(teacher=way), dtype).total for way in ("stored", "adapter")}
    limit = config.memory.limit()
    each = chosen.sample.stored * replayed
    fit = max(0, limit - asked(settings)) // each if limit is not None and each and chosen.total > limit else None
    frozen = adapter is not None or config.method.kind.adapters
    steps = count_steps(work, config, kept)
    forward = FORWARD_FROZEN if frozen else FORWARD
    overhead = _overhead(shape, config, work, adapter, kept, steps, forward)
    steps = replace(
        steps,
        scored=looking_passes(shape, config, work, kept, steps.replayed, frozen),
        own=overhead.passes,
        written=forward * overhead.positions / work.tokens,
        scoring=sample_passes(shape, settings, work, frozen),
    )
    name = config.method.name
    if config.replay.clock == "updates" and len(kept) > 1:
        # The clock compares the weights with a copy from before the step.
        trained = shape.parameters * WIDTHS[config.dtype] if adapter is None else adapter
        overhead = replace(overhead, device=overhead.device + trained)
    notes: tuple[str, ...] = () if costs_of(config.method.kind) else (UNKNOWN.format(name=name),)
    if chosen.sample.attention:
        notes += (AS_GOOD.format(size=size(chosen.sample.ids + chosen.sample.logits)),)
    return Plan(shape, name, work, kept, limit, fit, chosen, others, steps, official, overhead, teachers, small, notes)


def _overhead(
    shape: ModelShape,
    config: SeekrConfig,
    work: Workload,
    adapter: int | None,
    kept: list[int],
    steps: Steps,
    forward: float,
) -> Overhead:
    dtype, parameters = config.signal_dtype or "int8", shape.parameters
    if config.train is not None:
        parameters = sum(weight.numel() for weight in trained_part(shape.build(), config.train).values())
    chosen = choose_heads(shape, config.method.settings) if isinstance(config.method.settings, SeekrSettings) else None
    scale = Scale(
        # PEFT keeps adapters in single precision on whatever base.
        weights=parameters if adapter is None else adapter // FLOAT,
        width=WIDTHS[config.dtype] if adapter is None else FLOAT,
        hidden=shape.hidden,
        examples=work.examples,
        kept=kept,
        steps=steps_of_tasks(work, config),
        trained=[round(count * epochs) for count, epochs in zip(work.examples, work.epochs)],
        replayed=steps.replayed,
        tokens=work.tokens,
        answer=work.answer,
        context=shape.context,
        forward=forward,
        outputs=sample_cost(shape, LogitSettings(logits_top_k=None), dtype, work.tokens, work.answer).logits,
        build=shape.build,
        heads=chosen.heads if chosen else 0,
        size=chosen.size if chosen else 0,
    )
    costs = costs_of(config.method.kind)
    own = Overhead() if costs is None else costs.overhead(config.method.settings, scale)
    if isinstance(config.task_loss, BeforeWeights):
        # Every new example is asked once, before its task.
        own = replace(own, passes=own.passes + forward * sum(work.examples))
    if isinstance(config.general, SelfWritten):
        # At most, and of a prompt as long as the examples'; a chat model writes as many questions before.
        texts = (config.general_samples or SAMPLES) * config.general.tries
        prompt = work.tokens - work.answer
        own = replace(
            own,
            texts=own.texts + texts,
            positions=own.positions + texts * written_positions(scale, prompt, config.general.max_new_tokens),
        )
    if config.average is not None:
        # A copy of the trained weights, in single precision if it is to follow them.
        width = FLOAT if config.average.kind == "ema" else scale.width
        own = replace(own, device=own.device + width * scale.weights)
    if asks_adapters(config.method.settings):
        own = replace(own, device=own.device + (adapter or 0) * min(HELD, sum(map(bool, kept[:-1]))))
    return own


def _option(
    shape: ModelShape,
    settings: Any,
    dtype: str,
    work: Workload,
    kept: list[int],
    config: SeekrConfig,
    official: OfficialCost,
) -> Option:
    sample = sample_cost(shape, settings, dtype, work.tokens, work.answer)
    batch = config.replay.batch_size or config.per_device_train_batch_size
    form, layers, heads, queries = "-", 0, 0, 0
    if isinstance(settings, SeekrSettings):
        chosen = choose_heads(shape, settings)
        form = "outputs" if keeps_outputs(settings) else settings.attention_signal
        layers, heads = chosen.layers, chosen.heads
        queries = num_queries(settings, work.tokens, work.answer)
    replays = config.method.kind.replays
    vram = batch * sample.step + tiles_size(shape, settings, batch, work.tokens, work.answer) if replays else 0
    times = (official.logits + official.attention) / sample.stored
    total, held = sample.stored * sum(kept), sample.held * max(kept, default=0)
    return Option(form, dtype, layers, heads, queries, sample, total, held, vram, times)


def _option_json(option: Option) -> dict[str, Any]:
    return asdict(option) | {"sample": asdict(option.sample) | {"stored": option.sample.stored}}
