"""Processes forked from one that has imported the library: as if started afresh, but for five seconds of imports each.

A zygote imports the library once, touches no tensor, and forks for whoever asks on its socket, with the arguments,
folder, environment and open files that the new process is to have. ``start`` and ``run`` ask from Python, the program
``shim`` from a shell. What a library reads from the environment while it is imported, and the seed of its hashes, a
child has from its zygote: there is one for each ``setting``.
"""

import ctypes
import fcntl
import gc
import hashlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import IO, Any

PIPE = subprocess.PIPE
ENVIRONMENT = dict(os.environ)
"""As no test has changed it."""
# Not ``cli.main``: it reads from the environment which of several processes it is.
PRELOADED = ["seekr_cl.cli.commands", "seekr_cl.report.plots", "seekr_cl.runs.stream_run", "tinylm"]
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    # Of ``python -u -m seekr_cl``, too, they are what comes behind.
    own = sys.argv[1 + 3 * (sys.argv[1:4] == ["-u", "-m", "seekr_cl"]) :]
    words = {{"call": {call!r}, "arguments": [own], "folder": os.getcwd()}}
    words["environment"] = dict(os.environ)
    socket.send_fds(asked, [json.dumps(words).encode() + b"\\n"], [0, 1, 2])
    answers = asked.makefile()
    process = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(process, number))
    if "RANK" in os.environ:
        with open(sys.argv[0] + "." + os.environ["RANK"], "w") as file:
            file.write(str(process))
    code = int(answers.readline())
if code < 0:
    # The end that it came to.
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
_SEED = "PYTHONHASHSEED"


@dataclass(frozen=True)
class Done:
    """What a process left behind."""

    code: int
    out: str
    err: str


class Process:
    """One forked process.

    Args:
        asked: the connection to its zygote, which says its number and, once it has ended, its exit code.
        pipes: our ends of what it has as stdin, stdout and stderr, where those are pipes.
    """

    def __init__(self, asked: socket.socket, pipes: dict[str, IO[str]]) -> None:
        self._answers, self._pipes = asked.makefile(), pipes
        asked.close()
        self.pid = int(self._answers.readline())
        self.stdin, self.stdout, self.stderr = (pipes.get(name) for name in ("stdin", "stdout", "stderr"))
        self.returncode: int | None = None

    def wait(self) -> int:
        """Its exit code; the negative number of the signal that ended it."""
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
            self._answers.close()
        return self.returncode

    def has_ended(self) -> bool:
        """Without waiting for it."""
        return self.returncode is not None or bool(select.select([self._answers], [], [], 0)[0])

    def send_signal(self, number: int) -> None:
        """To a process that has ended already none is sent."""
        if not self.has_ended():
            os.kill(self.pid, number)

    def close(self) -> int:
        """Kills it if it still runs."""
        self.send_signal(signal.SIGKILL)
        for pipe in self._pipes.values():
            pipe.close()
        return self.wait()


def start(
    call: str,
    *arguments: Any,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    setting: Mapping[str, str] | None = None,
    **files: Any,
) -> Process:
    """A process that calls a function and ends; what it returns is its exit code.

    Args:
        call: ``module:function``.
        arguments: of the function, as JSON carries them.
        folder: where it runs; ours if it is None.
        environment: beside and instead of ours.
        setting: what its zygote is started with beside ours.
        files: ``stdin``, ``stdout`` and ``stderr``, each an open file or ``PIPE``; ours if not given, and no stdin.
    """
    words = {"call": call, "arguments": arguments, "folder": str(folder or Path.cwd())}
    words |= {"environment": dict(os.environ) | dict(environment or {}), "path": sys.path}
    pipes: dict[str, IO[str]] = {}
    with ExitStack() as theirs:
        handles = []
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            given = files.get(name)
            if given is PIPE:
                ends = os.pipe()
                pipes[name] = os.fdopen(ends[number == 0], "r" if number else "w", encoding="utf-8")
                theirs.callback(os.close, ends[number > 0])
                handles.append(ends[number > 0])
            elif given is None and not number:
                handles.append(theirs.enter_context(open(os.devnull)).fileno())
            else:
                handles.append(number if given is None else given.fileno())
        asked = socket.socket(socket.AF_UNIX)
        asked.connect(address(setting))
        socket.send_fds(asked, [json.dumps(words).encode() + b"\n"], handles)
        return Process(asked, pipes)


def run_together(call: str, *arguments: Any, environments: Sequence[Mapping[str, str]], **more: Any) -> list[Done]:
    """The same once for each environment, all at once and to their end."""
    with ExitStack() as files:
        begun = []
        for environment in environments:
            out, err = (files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(2))
            begun.append((start(call, *arguments, environment=environment, stdout=out, stderr=err, **more), out, err))
        return [Done(process.wait(), *map(_text, written)) for process, *written in begun]


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def run(call: str, *arguments: Any, environment: Mapping[str, str] | None = None, **more: Any) -> Done:
    """One process to its end."""
    return run_together(call, *arguments, environments=[environment or {}], **more)[0]


def run_seekr(words: Sequence[object], folder: Path | None = None, **more: Any) -> Done:
    """The command ``seekr``, to its end."""
    return run("zygote:command", [str(word) for word in words], folder=folder, **more)


def shim(path: Path, call: str = "zygote:command", setting: Mapping[str, str] | None = None) -> Path:
    """Writes a program that is ``seekr``, and ``python`` to a launcher that starts it as a module.

    It hands Ctrl-C and SIGTERM on to the process that it stands for, takes it along if it dies, and ends as it ends. Of
    a launched one the number of that process is in a file beside the program, with the rank behind its name.

    Args:
        path: of the program.
        call: what it calls with its words; see ``start``.
        setting: of its zygote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SHIM.format(python=sys.executable, address=address(setting), call=call))
    path.chmod(0o755)
    return path


_started: dict[tuple[tuple[str, str], ...], str] = {}
_own: list[subprocess.Popen[str]] = []
"""Zygotes that this process has started, so that nobody is told that they are left behind."""


def address(setting: Mapping[str, str] | None = None) -> str:
    """Of the zygote with that setting, which is started with the first question for it.

    Several workers of one test run ask the same ones; they end with the process that started the workers. One that
    is asked for no seed of its hashes has the first of the two that ``pair`` asks for.
    """
    chosen = {_SEED: ENVIRONMENT.get(_SEED, "1")} | dict(setting or {})
    key = tuple(sorted(chosen.items()))
    if key not in _started:
        run = ENVIRONMENT.get("PYTEST_XDIST_TESTRUNUID")
        if run is None:
            place = Path(tempfile.mkdtemp(prefix="zygote-"))
            _start(chosen, place, os.getpid())
        else:
            name = hashlib.sha256(json.dumps([run, key]).encode()).hexdigest()[:16]
            place = Path(tempfile.gettempdir()) / f"zygote-{name}"
            place.mkdir(exist_ok=True)
            with open(place / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (place / "socket").exists():
                    _start(chosen, place, os.getppid())
        _started[key] = f"{place}/socket"
    return _started[key]


def _start(setting: dict[str, str], place: Path, owner: int) -> None:
    environment = ENVIRONMENT | setting
    paths = [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), f"{place}/socket", str(owner)],
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    _own.append(process)


def command(words: list[str]) -> int:
    """``seekr`` with these words."""
    # Only now: see PRELOADED.
    from seekr_cl.cli.main import main

    sys.argv = ["seekr", *words]
    return main(words)


def impatient_command(words: list[str]) -> int:
    """The same of one of several processes, which does not wait long for what the others may have to say."""
    import_module("seekr_cl.distributed.collectives")._PATIENCE = timedelta(seconds=1)
    return command(words)


def command_without_rights(words: list[str]) -> int:
    """The same where permissions count for root too: without capabilities it is its files' owner and no more."""
    version, none = 0x20080522, 0
    if os.geteuid() == 0 and ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)(none)):
        raise OSError("capabilities cannot be given up")
    return command(words)


def code(text: str, words: list[str] | None = None) -> int:
    """``python -c`` with that text."""
    sys.argv = ["-c", *(words or [])]
    sys.path.insert(0, "")
    exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
    return 0


def _child(request: dict[str, Any], handles: list[int]) -> None:
    status = 1
    try:
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        tempfile.tempdir = None
        # What a shell starts in the background ignores it, and so would all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # An interpreter's own is drawn when it is imported; processes with the same would agree too easily.
        import_module("numpy").random.seed()
        paths = [*request["environment"].get("PYTHONPATH", "").split(os.pathsep), *request.get("path", ())]
        sys.path += [path for path in paths if path and path not in sys.path]
        module, _, function = request["call"].partition(":")
        status = getattr(import_module(module), function)(*request["arguments"])
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def serve(place: str, owner: int) -> None:
    """Forks for whoever connects, until its owner has ended."""
    owned = os.pidfd_open(owner)
    for name in PRELOADED:
        import_module(name)
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        import_module("deepspeed.ops")
    import_module("repeated").remember()
    # What the first model to be loaded would build: a tenth of a second for each child.
    import_module("transformers.models.llama.modeling_llama")
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    # Nothing that is tested sees a power cut, which is all that it is for; what counts the calls counts its own.
    if "LD_PRELOAD" not in os.environ:
        os.fsync = lambda file: None
    # The children inherit it: the collector need not walk what was imported.
    gc.collect()
    gc.freeze()
    # What forks is the module that children find under its name, not this script a second time.
    sys.modules["zygote"] = sys.modules["__main__"]
    waiting = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(owned, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fileobj == owned:
                for child in {other.data[0] for other in waiting.get_map().values() if other.data}:
                    os.kill(child, signal.SIGKILL)
                shutil.rmtree(os.path.dirname(place))
                return
            if key.fileobj is listener:
                _fork(waiting, listener)
                continue
            process, asked = key.data
            if key.fileobj is asked:
                # Nothing more is said on it: whoever asked has died.
                waiting.unregister(asked)
                os.kill(process, signal.SIGKILL)
                continue
            waiting.unregister(key.fileobj)
            os.close(key.fd)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            if asked in waiting.get_map():
                waiting.unregister(asked)
            with asked:
                _tell(asked, status)


def _fork(waiting: selectors.BaseSelector, listener: socket.socket) -> None:
    asked = listener.accept()[0]
    text, handles, _, _ = socket.recv_fds(asked, 1 << 16, 3)
    while not text.endswith(b"\n"):
        text += asked.recv(1 << 16)
    process = os.fork()
    if process == 0:
        for other in list(waiting.get_map().values()):
            if isinstance(other.fileobj, socket.socket):
                other.fileobj.close()
            else:
                os.close(other.fd)
        waiting.close()
        asked.close()
        _child(json.loads(text), handles)
    for handle in handles:
        os.close(handle)
    for ended in (os.pidfd_open(process), asked):
        waiting.register(ended, selectors.EVENT_READ, (process, asked))
    _tell(asked, process)


def _tell(asked: socket.socket, number: int) -> None:
    # Whoever asked may have gone.
    with suppress(BrokenPipeError):
        asked.sendall(f"{number}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
