"""A study's plan: streams, rows and stages; a stage is one question and what would settle it, said before the runs.

A stage with ``sweep: {learning_rate: [1.0e-5, 3.0e-5]}`` has one row, which it makes at each rate (``ROW@RATE``), and a
row of a later stage may say ``learning_rate: best of STAGE``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

STAGE = {"question", "sees", "settled", "stream", "rows", "seeds", "against"}
BEST = "best of "
"""What a row's learning rate begins with that a sweep decides."""


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
        against: the row that the others are compared with in pairs; of a sweep its first rate.
        rates: of a sweep, the learning rate of each row.
    """

    name: str
    question: str
    sees: str
    settled: str
    stream: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    against: str
    rates: Mapping[str, float] = field(default_factory=dict)

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

    def sweep_of(self, row: str) -> Stage | None:
        """The stage that decides a row's learning rate, if one does."""
        rate = self.rows[row].get("learning_rate")
        if not isinstance(rate, str) or not rate.startswith(BEST):
            return None
        return next(stage for stage in self.stages if stage.name == rate.removeprefix(BEST))


def read_plan(path: Path) -> Plan:
    """Reads and checks a plan.

    Raises:
        SystemExit: naming what is missing or points nowhere.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    streams, rows = content["streams"], dict(content["rows"])
    stages: list[Stage] = []
    for name, stage in content["stages"].items():
        where, sweep = f"error: {path}: stage {name}", stage.pop("sweep", None)
        if missing := STAGE ^ {*stage}:
            raise SystemExit(f"{where}: {', '.join(sorted(missing))}: a stage has {sorted(STAGE)}, and may have sweep")
        for row in [*stage["rows"], stage["against"]]:
            if row not in rows or "method" not in rows[row]:
                raise SystemExit(f"{where}: row {row!r} is not among the rows, or has no method")
            rate = rows[row].get("learning_rate")
            earlier = {BEST + one.name for one in stages if one.rates}
            if isinstance(rate, str) and rate not in earlier:
                raise SystemExit(f"{where}: row {row!r}: learning_rate: {rate!r} names no earlier stage with a sweep")
        if stage["stream"] not in streams or stage["against"] not in stage["rows"]:
            raise SystemExit(f"{where}: unknown stream, or 'against' is none of its rows")
        if sweep is not None:
            rates = _swept(sweep, stage["rows"], rows, where)
            rows |= {made: rows[stage["against"]] | {"learning_rate": rate} for made, rate in rates.items()}
            stage |= {"rows": list(rates), "against": next(iter(rates)), "rates": rates}
        lists = {"rows": tuple(stage["rows"]), "seeds": tuple(stage["seeds"])}
        stages.append(Stage(name=name, **stage | lists))
    return Plan(streams, rows, tuple(stages))


def _swept(sweep: Any, names: list[str], rows: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, float]:
    """The rows of a sweep, each with its rate."""
    rates = sweep.get("learning_rate") if isinstance(sweep, Mapping) and len(sweep) == 1 else None
    if not isinstance(rates, list) or not all(isinstance(rate, float) and rate > 0 for rate in rates):
        raise SystemExit(f"{where}: sweep: must be like {{learning_rate: [1.0e-5, 3.0e-5]}}")
    if len(rates) < 2 or len({*rates}) < len(rates):
        raise SystemExit(f"{where}: sweep: needs two different rates at least, each once")
    if len(names) != 1 or "learning_rate" in rows[names[0]]:
        raise SystemExit(f"{where}: sweep: is of one row that does not set learning_rate itself")
    return {f"{names[0]}@{rate:g}": rate for rate in rates}
