"""What a report is made of, as plain data: nothing here reads a file or writes HTML."""

from dataclasses import dataclass, field
from typing import Any

from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.report.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Change:
    """An answer that was gained or lost.

    Attributes:
        task: whose.
        gained: gained, or else lost.
        prompt: shown part, and characters left out of it.
        expected: the same of the first accepted answer.
        before: the same of the answer before.
        after: the same of the answer after.
        scores: of both answers, 0 to 100.
    """

    task: str
    gained: bool
    prompt: tuple[str, int]
    expected: tuple[str, int]
    before: tuple[str, int]
    after: tuple[str, int]
    scores: tuple[float, float]


@dataclass(slots=True)
class Changes:
    """Answers gained and lost.

    Attributes:
        shown: those on the page.
        counts: by task, how many were gained, lost, and compared at all.
        about: what "before" and "after" are.
    """

    shown: list[Change] = field(default_factory=list)
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One evaluation of a run.

    Attributes:
        name: of the task learned before it; "base" for the first.
        scores: by task and probe.
        intervals: 95% intervals by task and probe, where known.
        seconds: of training before it.
    """

    name: str
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Heads:
    """What one task said of the heads, and which were chosen for its samples.

    Attributes:
        task: its name.
        layers: the model's layer index of each row.
        maps: by measure, values [layers][heads].
        chosen: ``{layer: heads}``.
    """

    task: str
    layers: tuple[int, ...]
    maps: dict[str, list[list[float]]]
    chosen: dict[int, list[int]]


@dataclass(slots=True)
class TaskLog:
    """The training of one task.

    Attributes:
        task: its name.
        lines: the Trainer's log lines, each with a ``step``.
        steps: optimizer steps in all.
        replayed: which steps held replay: micro-batches with replay in each bin of ``bin_steps`` steps.
        bin_steps: steps of a bin.
        actions: what a retention probe said and did, a line each.
    """

    task: str
    lines: list[dict[str, Any]]
    steps: int = 0
    replayed: list[int] = field(default_factory=list)
    bin_steps: int = 1
    actions: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory's bytes and generations.

    Attributes:
        tasks: ``{task: {kind: bytes}}``.
        shared: bytes that are no task's: importance, a method's state, manifests.
        samples: by task, how many.
        lineage: generations in order: label, learned, written, samples, bytes, model, method.
        total: bytes of the current generation.
    """

    tasks: dict[str, dict[str, int]]
    shared: dict[str, int]
    samples: dict[str, int]
    lineage: list[dict[str, Any]]
    total: int


@dataclass(slots=True)
class RunData:
    """Everything a report says of one folder.

    Attributes:
        name: the folder as it was named.
        kind: ``run``, ``evaluation`` or ``learning``.
        title: what it is, in a few words.
        done: whether it is complete; otherwise ``state`` says how far it is.
        state: a few words.
        going: of one that is not done, what goes on, in one line.
        notes: what is missing or damaged, a line each.
        verdict: what was learned, kept and lost.
        matrix: the scores.
        stages: the evaluations behind them.
        changes: answers gained and lost.
        general: ``general.json`` of an evaluation.
        scored: ``scores.json`` of an evaluation.
        heads: by task.
        logs: trainings in order.
        phases: seconds by task and phase.
        memory: bytes and lineage.
        settings: name and value.
        versions: of what it was made with.
        command: to repeat it.
        folder: where it was given, if that is known.
        facts: short facts for the head of the page.
    """

    name: str
    kind: str
    title: str = ""
    done: bool = True
    state: str = ""
    going: str = ""
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    matrix: ScoreMatrix | None = None
    stages: list[Stage] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    general: dict[str, Any] = field(default_factory=dict)
    scored: dict[str, Any] = field(default_factory=dict)
    heads: list[Heads] = field(default_factory=list)
    logs: list[TaskLog] = field(default_factory=list)
    phases: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    memory: Memory | None = None
    settings: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    folder: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
