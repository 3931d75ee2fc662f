"""The gate: whether a model may replace the one in use, as an exit code, as JSON and as JUnit XML.

A task fell if its whole interval lies below the allowed drop, and is kept if its whole interval lies above it; between
the two, the data cannot say.
"""

from typing import Any
from xml.etree import ElementTree

from seekr_cl.errors import DataError
from seekr_cl.report.verdict import KINDS, Line, Verdict, moved, points
from seekr_cl.report.verdict_table import outcome_of
from seekr_cl.system.visible import one_line

PASSED, FELL, UNSURE = 0, 1, 3
"""Exit codes; 2 is for bad input, as everywhere."""
_GUARDED = ("old", "skill", "general")


def guarded(verdict: Verdict) -> list[Line]:
    """The lines that decide: everything but what is new."""
    return verdict.of_kind(*_GUARDED)


def decide(verdict: Verdict) -> int:
    """The exit code: 0 if nothing fell, 1 if something surely did, 3 if the data cannot say.

    Raises:
        DataError: if there is nothing to decide by.
    """
    lines = guarded(verdict)
    if not lines:
        raise DataError("gate: no old task, base skill or general benchmark was measured before and after; add tests")
    outcomes = {line.outcome for line in lines}
    return FELL if "lost" in outcomes else UNSURE if "unsure" in outcomes else PASSED


def decision(verdict: Verdict) -> str:
    """The decision in one line, with how many examples would be needed where the data cannot say."""
    code, lines = decide(verdict), guarded(verdict)
    lost = [line for line in lines if line.outcome == "lost"]
    unsure = [line for line in lines if line.outcome == "unsure"]
    if code == FELL:
        told = ", ".join(
            f"{one_line(line.task, None)} {moved(line)}, allowed -{points(line.max_drop)}" for line in lost
        )
        return f"gate: FAILED: {told}"
    if code == UNSURE:
        told = ", ".join(f"{one_line(line.task, None)} {_moved_on(line)}" for line in unsure)
        needed = [line.needed for line in unsure]
        counts = [count for count in needed if count is not None]
        more = f"; about {max(counts):,} examples a task would tell" if len(counts) == len(needed) else ""
        return f"gate: CANNOT SAY: {told}{more}"
    return f"gate: PASSED: {len(lines)} of {len(lines)} within what each may lose"


def _moved_on(line: Line) -> str:
    if line.interval is None:
        return f"{moved(line)} (no answers to compare)".strip()
    return f"{moved(line)} on {line.examples} examples"


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict with ``exit_code`` and ``decision``."""
    return {"exit_code": decide(verdict), "decision": decision(verdict)} | verdict.to_json()


def junit(verdict: Verdict) -> bytes:
    """JUnit XML: a test case a task; a failure where it fell, an error where the data cannot say."""
    lines = guarded(verdict)
    counts = {name: sum(line.outcome == outcome for line in lines) for name, outcome in _COUNTED.items()}
    attributes = {"name": "seekr gate", "tests": str(len(lines))} | {name: str(n) for name, n in counts.items()}
    suite = ElementTree.Element("testsuite", attributes)
    for line in lines:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"seekr.gate.{KINDS[line.kind].replace(' ', '_')}", name=_plain(line.task)
        )
        told = f"{moved(line) or 'no interval'} on {line.examples} examples, allowed -{points(line.max_drop)}"
        if line.outcome == "lost":
            ElementTree.SubElement(case, "failure", message=_plain(f"fell: {told}"))
        elif line.outcome == "unsure":
            ElementTree.SubElement(case, "error", message=_plain(f"{outcome_of(line)}: {told}"))
        else:
            ElementTree.SubElement(case, "system-out").text = _plain(told)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


_COUNTED = {"failures": "lost", "errors": "unsure"}


def _plain(text: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return "".join(sign if sign.isprintable() else "�" for sign in text)
