"""Answers from a file, whoever made them: a server, another library, or ``seekr evaluate`` itself."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError, nearest
from seekr_cl.evaluation.metrics import Metric
from seekr_cl.evaluation.statistics import Tally

_KEYS = ("prediction", "reference", "references", "prompt")
_KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(slots=True)
class Answers:
    """A file's rows, as metrics take them.

    Attributes:
        predictions: what is scored of each row.
        references: what is accepted; at least one text a row.
        prompts: empty where a row has none.
    """

    predictions: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def tally(self, metric: Metric) -> Tally:
        """The rows' scores, ready to be summed up."""
        scores = metric.score(self.predictions, self.references, self.prompts)
        return metric.tally(self.predictions, self.references, scores)


def read_answers(path: Path, metric: Metric, extract: Callable[[str], str] | None = None) -> Answers:
    """Read ``{"prediction", "reference" or "references", "prompt"}``, one object a line, or a JSON list of them.

    Args:
        path: the file. Other keys are left alone, so that prediction files of ``seekr evaluate`` and ``seekr run`` can
            be read; of these, what was scored then (``scored``) is scored now.
        metric: says whether a prompt is needed.
        extract: takes the answer out of each prediction; ``scored`` is not looked at.

    Raises:
        DataError: naming file, row and key.
    """
    answers = Answers()
    for number, row in _rows(path):
        where = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: must be an object with 'prediction' and 'reference', not {_kind(row)}")
        prediction = _text(row, "prediction", where)
        if extract is not None:
            prediction = extract(prediction)
        elif "scored" in row:
            prediction = _text(row, "scored", where)
        answers.predictions.append(prediction)
        answers.references.append(_references(row, where))
        if metric.reads_prompt and "prompt" not in row:
            raise DataError(f"{where}: no 'prompt'; {metric.name} compares the answer with it{_meant(row, 'prompt')}")
        answers.prompts.append(_text(row, "prompt", where) if "prompt" in row else "")
    if not answers.predictions:
        raise DataError(f"{path}: holds no rows; write one object with 'prediction' and 'reference' a line")
    return answers


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; name a predictions file in it") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{_beside(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    # Split before decoding, and at newlines alone: a text may hold every other line separator there is.
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        rows = _decoded(b"\n".join(lines), str(path))
        yield from enumerate(rows, 1)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _decoded(line, f"{path}: row {number}")


def _decoded(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise DataError(f"{where}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: invalid JSON ({error.msg}, character {error.pos + 1}); fix that line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON ({error or type(error).__name__}); fix that line") from None


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise DataError(f"{where}: no '{key}'{_meant(row, key)}")
    if not isinstance(row[key], str):
        raise DataError(f"{where}: '{key}' must be a string, not {_kind(row[key])}")
    return str(row[key])


def _references(row: dict[str, Any], where: str) -> list[str]:
    given = [key for key in ("reference", "references") if key in row]
    if len(given) != 1:
        problem = "both 'reference' and 'references'; keep one" if given else "no 'reference' or 'references'"
        raise DataError(f"{where}: {problem}{'' if given else _meant(row, 'reference')}")
    if given == ["reference"]:
        return [_text(row, "reference", where)]
    several = row["references"]
    if not isinstance(several, list) or not several:
        what = "an empty list" if several == [] else _kind(several)
        raise DataError(f"{where}: 'references' must be a list of at least one string, not {what}")
    for one in several:
        if not isinstance(one, str):
            raise DataError(f"{where}: 'references' must hold strings, not {_kind(one)}")
    return several


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _meant(row: dict[str, Any], key: str) -> str:
    """A hint at the key that was meant, or what keys there are."""
    others = [name for name in row if name not in _KEYS]
    hint = nearest(key, others)
    return hint.replace("did you mean", "rename") if hint else f"; keys here: {', '.join(map(str, row)) or 'none'}"


def _beside(path: Path) -> str:
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        return "; check the path"
    return nearest(path.name, names) or "; check the path"
