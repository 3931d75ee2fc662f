"""Answers on disk as they come, so that a killed evaluation goes on in the middle of a task.

A journal is one file a process, only ever added to: a header that says what is being answered, then a line an answer.
Shards go to processes by the number of a prompt alone, so who has answered what never has to be agreed on.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError, DataError, OutputError
from seekr_cl.os_errors import reason_of
from seekr_cl.system import reading
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.modes import file_mode, make_private
from seekr_cl.system.removal import remove_file

_START = 4096

_ADVICE = "the answers so far are kept; fix it and continue with --resume"


def shard(lengths: Sequence[int], rank: int, world: int) -> list[int]:
    """The prompts that one of several processes answers: every ``world``-th of all, longest first.

    Dealt out like cards, so that every process gets as many long prompts as the others.

    Args:
        lengths: tokens of every prompt.
        rank: this process, from 0.
        world: processes.

    Raises:
        ConfigError: if there is no such process.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} of {world}: ranks go from 0 to world - 1")
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))[rank::world]


def answering(model: str, prompts: Sequence[Sequence[int]], settings: dict[str, Any]) -> str:
    """A hash of what is being answered: with another model, prompt or setting the answers would be others."""
    content = json.dumps([model, [list(prompt) for prompt in prompts], settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Journal:
    """One process's answers to one task.

    Args:
        folder: where the task's predictions will be.
        slug: the task's name as a file name.
        identity: ``answering``; a journal of anything else is begun anew.
        rank: this process.
        world: processes.

    Attributes:
        answers: what is known so far, by the prompt's number; of journals of another number of processes too.
    """

    def __init__(self, folder: Path, slug: str, identity: str, rank: int = 0, world: int = 1) -> None:
        self._folder, self._slug, self._identity = folder, slug, identity
        self._path = folder / f"{slug}.answers-{rank}-{world}.jsonl"
        own, kept = _read(self._path, identity)
        self.answers = _gather(folder, slug, identity) | own
        try:
            make_private(folder)
            if os.path.lexists(self._path) and not is_journal(self._path):
                raise OutputError(f"{self._path}: is not a journal of answers; move it elsewhere")
            if kept:
                # A line that was cut off by the crash would swallow the next one.
                os.truncate(self._path, kept)
                self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
                if os.pread(self._file, 1, kept - 1) != b"\n":
                    self._write(b"\n")
            else:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
                self._write(json.dumps({"answering": identity}).encode() + b"\n")
            os.fchmod(self._file, file_mode())
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({reason_of(error)}); {_ADVICE}") from error

    def add(self, indices: Sequence[int], texts: Sequence[str]) -> None:
        """Writes answers down at once.

        Raises:
            OutputError: if the disk is full.
        """
        lines = [json.dumps({"index": index, "answer": text}) for index, text in zip(indices, texts, strict=True)]
        try:
            self._write("".join(f"{line}\n" for line in lines).encode())
            os.fsync(self._file)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({reason_of(error)}); {_ADVICE}") from error
        self.answers.update(zip(indices, texts))
        fault_point("evaluation.answered")

    def close(self) -> None:
        """Closes the file; what is in it stays."""
        # What is in it has been synced, or its failure been told: a close that fails has nothing to add.
        with suppress(OSError):
            os.close(self._file)

    def _write(self, content: bytes) -> None:
        # Past Python's buffers, which would try again to write what did not fit when the file is closed.
        while content:
            content = content[os.write(self._file, content) :]


def merged(folder: Path, slug: str, identity: str, count: int) -> list[str]:
    """All answers of all processes, in the prompts' order.

    Raises:
        DataError: if some are missing; it says how many.
    """
    answers = _gather(folder, slug, identity)
    missing = [index for index in range(count) if index not in answers]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {count} answers to '{slug}' are missing (the first is number {missing[0]}); "
            "let every process finish its share first"
        )
    return [answers[index] for index in range(count)]


def discard(folder: Path, slug: str) -> None:
    """Removes a task's journals, once its predictions are written.

    Raises:
        OutputError: if one cannot be removed; the same command with ``--resume`` tries again.
    """
    for path in journals(folder, slug):
        try:
            remove_file(path, is_journal)
        except OSError as error:
            raise OutputError(f"{path}: cannot be removed ({reason_of(error)}); {_ADVICE}") from error


def journals(folder: Path, slug: str) -> list[Path]:
    """The journals of a task, by their names."""
    name = re.compile(rf"{re.escape(slug)}\.answers-\d+-\d+\.jsonl")
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name)) if folder.is_dir() else []


def is_journal(path: Path) -> bool:
    """Whether it begins as a journal does, or holds nothing: zeros after a power cut are nothing too."""
    if path.is_symlink() or not path.is_file():
        return False
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(_START)
        return not start.strip(b"\0") or start.startswith(b'{"answering":')
    return False


def _gather(folder: Path, slug: str, identity: str) -> dict[int, str]:
    answers: dict[int, str] = {}
    for path in journals(folder, slug):
        answers |= _read(path, identity)[0]
    return answers


def _read(path: Path, identity: str) -> tuple[dict[int, str], int]:
    """Answers of a journal of this identity, and how many bytes of it are whole lines; none of any other."""
    try:
        content = reading.read_bytes(path, limit=None)
    except OSError:
        return {}, 0
    answers: dict[int, str] = {}
    kept = 0
    for line in reading.json_lines(content):
        try:
            entry = json.loads(line)
            if kept == 0:
                if entry["answering"] != identity:
                    return {}, 0
            else:
                index, answer = entry["index"], entry["answer"]
                if type(index) is not int or type(answer) is not str:
                    break
                answers[index] = answer
        except (ValueError, KeyError, TypeError):
            # Zeros after a power cut; everything before them is good.
            break
        kept += len(line) + 1
    return answers, min(kept, len(content))
