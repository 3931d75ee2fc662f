"""Commands whose system calls fail: at the n-th call that writes, renames or removes something below a folder.

The calls are caught within the process, by a library that is compiled here and loaded before libc, so that Python's
calls, those of safetensors' and tokenizers' Rust and those of PyTorch are met alike and no call elsewhere is.
"""

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zygote
from cli_world import FAST, save_model, write_stream, write_task
from killing import fingerprint

HERE = Path(__file__).parent
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EIO")}
WRITING = ("open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir", "chmod")
KINDS = {"ENOSPC": ("open", "write", "fsync", "rename", "mkdir"), "EDQUOT": ("open", "write", "fsync", "mkdir")}
"""Which calls can fail so; EIO can come from all of them, and from opening a file to read it."""


def compiled(place: Path) -> Path:
    """The library that fails calls.

    Raises:
        OSError: if there is no compiler, or it cannot.
    """
    library = place / "syscall_shim.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "syscall_shim.c"), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr)
    return library


def command(words: list[str], how: list[Any]) -> int:
    """``seekr`` in a process of this library, which fails ``how`` the fault says; nothing fails if it is empty."""
    if how:
        below, number, code, for_good, kinds, log = how
        texts = (below.encode(), ctypes.c_long(number), ctypes.c_int(code), ctypes.c_int(for_good))
        ctypes.CDLL(None).fault_arm(*texts, kinds.encode(), log.encode())
    return zygote.command(words)


def command_of_a_broken_disk(words: list[str]) -> int:
    """``seekr`` of several processes, of which the second's node cannot read the memory."""
    opened = os.open

    def failing(path: Any, *more: Any, **named: Any) -> int:
        if str(path).endswith("manifest.json"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *more, **named)

    if os.environ["RANK"] == "1":
        os.open = failing
    return zygote.command(words)


@dataclass(frozen=True)
class Fault:
    """One failure.

    Attributes:
        number: which of the calls fails, from 1; 0 for none.
        name: a key of ``ERRORS``.
        for_good: whether all later ones fail too.
    """

    number: int = 0
    name: str = "EIO"
    for_good: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The calls that are counted."""
        return KINDS.get(self.name, (*WRITING, "read"))


@dataclass(frozen=True)
class Ended:
    """What one command did.

    Attributes:
        code: exit code.
        err: what it said on stderr.
        calls: the counted calls, ``kind path``, up to its end.
    """

    code: int
    err: str
    calls: list[str]


@dataclass
class Faulty:
    """Commands with a model, tasks and what each case begins with.

    Attributes:
        place: for everything.
        library: what fails their calls.
    """

    place: Path
    library: Path
    _whole: dict[str, Any] = field(default_factory=dict)
    _calls: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _made: int = 0

    def ask(self, arguments: list[object], folder: Path, fault: Fault | None = None) -> Ended:
        """Runs one command; its calls below ``folder`` are counted, and one or more of them fail."""
        log = self.place / "log"
        log.unlink(missing_ok=True)
        how: list[Any] = []
        if fault is not None:
            how = [str(folder), fault.number, ERRORS[fault.name], fault.for_good, " ".join(fault.kinds), str(log)]
        words = [str(word) for word in arguments]
        done = zygote.run("faulty:command", words, how, folder=self.place, setting={"LD_PRELOAD": str(self.library)})
        calls = log.read_text(errors="replace").splitlines() if log.exists() else []
        return Ended(done.code, done.err, calls)

    def fresh(self, case: str) -> Path:
        """A folder as the case begins."""
        self._made += 1
        folder = self.place / f"{case}-{self._made:05d}"
        start = self.place / f"start-{case}"
        if start.exists():
            shutil.copytree(start, folder)
        else:
            folder.mkdir()
        return folder

    def command(self, case: str, folder: Path, resume: bool) -> list[object]:
        """What is run, or run again."""
        more: list[object] = ["--resume"] if resume else []
        if case == "run":
            return ["run", self.place / "stream.yaml", "--output", folder / "run", "checkpoint_every=2", *more]
        if case == "learn":
            given = ["--model", self.place / "learnt", "--task", self.place / "second", "--memory", folder / "memory"]
            return ["learn", *given, "--output", folder / "model", *FAST, "checkpoint_every=2", *more]
        return {
            "gc": ["memory", "gc", folder / "memory", "--keep", "1"],
            "rollback": ["memory", "rollback", folder / "memory", "--to", "first"],
            "export": ["memory", "export", folder / "memory", folder / "memory.tar"],
        }[case]

    def whole(self, case: str) -> dict[str, str]:
        """What the command leaves that nothing fails of."""
        if case not in self._whole:
            folder = self.fresh(case)
            done = self.ask(self.command(case, folder, resume=False), folder)
            assert done.code == 0, done.err
            self._whole[case] = left(folder)
        return self._whole[case]

    def calls(self, case: str, name: str) -> list[str]:
        """All calls that may fail in this way, in order."""
        if (case, name) not in self._calls:
            self._calls[case, name] = self._count(case, name)
        return self._calls[case, name]

    def _count(self, case: str, name: str) -> list[str]:
        folder = self.fresh(case)
        done = self.ask(self.command(case, folder, resume=False), folder, Fault(0, name))
        assert done.code == 0, done.err
        shutil.rmtree(folder)
        return done.calls

    def attempt(self, case: str, fault: Fault) -> list[str]:
        """One command that a fault meets, and the same again without.

        Returns:
            What is wrong with how it ended, what it said or what is there in the end; nothing if all is well.
        """
        whole, folder = self.whole(case), self.fresh(case)
        done = self.ask(self.command(case, folder, resume=False), folder, fault)
        met = done.calls[fault.number - 1] if len(done.calls) >= fault.number else "never met"
        wrong = told(done)
        again = self.ask(self.command(case, folder, resume=True), folder)
        # What is done already need not be done twice: an archive that is there is refused.
        if again.code and not (done.code == 0 and case == "export"):
            wrong.append(f"again: exit {again.code}: {again.err.strip()[-400:]}")
        now = left(folder)
        differ = sorted(name for name in now.keys() | whole.keys() if now.get(name) != whole.get(name))
        wrong += [f"differs: {differ[:4]}"] if differ else []
        if not wrong:
            shutil.rmtree(folder)
        return [f"{case} {fault} at {met.replace(str(folder), '')}: {one}" for one in wrong]


def told(done: Ended) -> list[str]:
    """What is wrong with a command's exit code and last words."""
    wrong = []
    lines = [line for line in done.err.splitlines() if line.strip()]
    if done.code not in (0, 2):
        wrong.append(f"exit {done.code}: {done.err.strip()[-400:]}")
    elif "Traceback" in done.err:
        wrong.append(f"traceback: {done.err.strip()[-400:]}")
    elif done.code == 2 and sum(line.startswith("error: ") for line in lines) != 1:
        wrong.append(f"not one line: {done.err.strip()[-400:]}")
    elif done.code == 2 and not lines[-1].startswith("error: /"):
        wrong.append(f"no path: {lines[-1]}")
    return wrong


def left(folder: Path) -> dict[str, str]:
    """Files by their content, and folders."""
    folders = {str(path.relative_to(folder)): "folder" for path in folder.rglob("*") if path.is_dir()}
    found = fingerprint(folder)
    return {name: value for name, value in found.items() if not name.endswith(".tar")} | folders


@contextmanager
def faulty(place: Path) -> Iterator[Faulty]:
    """A world of its own, as long as the block lasts."""
    made = Faulty(place, compiled(place))
    _make_world(made)
    yield made


def _make_world(made: Faulty) -> None:
    place = made.place
    base, first, second = save_model(place / "base"), write_task(place / "first"), write_task(place / "second", 3)
    write_stream(place / "stream.yaml", base, [first, second])
    for model, task, memory, output in ((base, first, "one", "learnt"), (place / "learnt", second, "two", "twice")):
        if memory == "two":
            shutil.copytree(place / "one", place / "two")
        given = ["--model", model, "--task", task, "--memory", place / memory, "--output", place / output, *FAST]
        done = made.ask(["learn", *given], place)
        assert done.code == 0, done.err
    for case, memory in (("learn", "one"), ("gc", "two"), ("rollback", "two"), ("export", "two")):
        shutil.copytree(place / memory, place / f"start-{case}" / "memory")
