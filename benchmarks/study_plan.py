"""A study's plan: streams, rows and stages; a stage is one question and what would settle it, said before the runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STAGE = {"question", "sees", "settled", "stream", "rows", "seeds", "against"}


@dataclass(frozen=True, slots=True)
class Run:
    """One training over a stream.

    Attributes:
        stream: the stream's name in the plan.
        row: the row's name: a method with its settings.
        seed: of everything that is drawn.
    """

    stream: str
    row: str
    seed: int

    def folder(self, runs: Path) -> Path:
        """Where it is: a run that several stages name is made once."""
        return runs / self.stream / f"{self.row}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Stage:
    """One question.

    Attributes:
        name: of its table and picture.
        question: what it answers.
        sees: the smallest difference it can see, and from what that follows.
        settled: what result would settle the question, said beforehand.
        stream: where its runs learn.
        rows: what is compared, in the table's order.
        seeds: of each row.
        against: the row that the others are compared with in pairs.
    """

    name: str
    question: str
    sees: str
    settled: str
    stream: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    against: str

    def runs(self) -> list[Run]:
        """Seed by seed, so that an interrupted stage has whole seeds."""
        return [Run(self.stream, row, seed) for seed in self.seeds for row in self.rows]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything of a study.

    Attributes:
        streams: the content of each stream file.
        rows: the ``KEY=VALUE`` settings of each row, ``method`` among them.
        stages: in the order in which they are run, cheapest first.
    """

    streams: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, Any]]
    stages: tuple[Stage, ...]

    def chosen(self, names: list[str] | None) -> list[Stage]:
        """Some stages, or all.

        Raises:
            SystemExit: for a name the plan does not have.
        """
        known = {stage.name: stage for stage in self.stages}
        for name in names or []:
            if name not in known:
                raise SystemExit(f"error: no stage {name!r}; the plan has {', '.join(known)}")
        return [known[name] for name in names] if names else list(self.stages)


def read_plan(path: Path) -> Plan:
    """Reads and checks a plan.

    Raises:
        SystemExit: naming what is missing or points nowhere.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    streams, rows = content["streams"], content["rows"]
    stages = []
    for name, stage in content["stages"].items():
        if missing := STAGE ^ {*stage}:
            raise SystemExit(f"error: {path}: stage {name}: {', '.join(sorted(missing))}: a stage has {sorted(STAGE)}")
        for row in [*stage["rows"], stage["against"]]:
            if row not in rows or "method" not in rows[row]:
                raise SystemExit(f"error: {path}: stage {name}: row {row!r} is not among the rows, or has no method")
        if stage["stream"] not in streams or stage["against"] not in stage["rows"]:
            raise SystemExit(f"error: {path}: stage {name}: unknown stream, or 'against' is none of its rows")
        lists = {"rows": tuple(stage["rows"]), "seeds": tuple(stage["seeds"])}
        stages.append(Stage(name=name, **stage | lists))
    return Plan(streams, rows, tuple(stages))
