"""``seekr gate``: exit code 0 if a model lost nothing, 1 if it surely did, 3 if the data cannot say."""

import json
import math
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out
from seekr_cl.cli.verdict_output import print_verdict
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation.statistics import RESAMPLES
from seekr_cl.report.evaluation_verdict import of_evaluations
from seekr_cl.report.gate import decide, decision, junit, to_json
from seekr_cl.report.verdict import Verdict
from seekr_cl.report.verdicts import of_run
from seekr_cl.system.files import write_bytes

_TAIL = 50
"""Replicates that are to lie beyond each end of an interval."""


def gate_command(given: Any) -> int:
    """Prints the verdict and the decision; returns the exit code."""
    verdict = _verdict(given)
    code = decide(verdict)
    if given.junit:
        write_bytes(Path(given.junit), junit(verdict))
    if given.json:
        print(json.dumps(to_json(verdict), indent=2, ensure_ascii=False))
        return code
    print_verdict(verdict)
    out().print(decision(verdict), soft_wrap=True)
    return code


def _verdict(given: Any) -> Verdict:
    for option, number in (("--max-drop", given.max_drop), ("--general", given.general)):
        if number is not None and not (math.isfinite(number) and 0 <= number <= 100):
            raise ConfigError(f"{option}: {number:g} must lie between 0 and 100 points")
    if not 0.5 <= given.confidence < 1:
        raise ConfigError(f"--confidence: {given.confidence:g} must be at least 0.5 and below 1, such as 0.95")
    drops = dict(_drop(word) for word in given.task or [])
    common: dict[str, Any] = {
        "max_drop": given.max_drop,
        "drops": drops,
        "confidence": given.confidence,
        "resamples": min(200_000, max(RESAMPLES, math.ceil(2 * _TAIL / (1 - given.confidence)))),
    }
    if given.run is not None:
        if given.before or given.after:
            raise ConfigError("gate: name a run, or --before and --after, not both")
        if given.general is not None:
            raise ConfigError("--general: a run scores no general benchmarks; use --before and --after")
        return of_run(Path(given.run), since=given.since or "learned", **common)
    if not (given.before and given.after):
        raise ConfigError("gate: name the folder of a run, or --before and --after two folders of seekr evaluate")
    if given.since:
        raise ConfigError("--since: is about a run; leave it out with --before and --after")
    return of_evaluations(Path(given.before), Path(given.after), general_drop=given.general, complete=True, **common)


def _drop(word: str) -> tuple[str, float]:
    task, sign, text = word.rpartition("=")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (sign and task and 0 <= number <= 100):
        raise ConfigError(f"--task {word}: must be TASK=POINTS with 0 to 100 points, such as yahoo=5")
    return task, number
