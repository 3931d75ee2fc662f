"""``--launch`` with real processes: two are as one, signals reach all of them, and whoever fails is named once."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
import zygote
from cli_world import World, write
from deep import SETTING, needs_deepspeed, with_deepspeed
from killing import fingerprint
from safetensors.torch import load_file
from tinylm import assert_same, differs, memory_tensors

TWO = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "use_cpu": True,
    "num_machines": 1,
    "num_processes": 2,
    "main_process_port": 0,
}
OF_THIS_MACHINE = ("use_cpu", "num_processes", "main_process_port")
SAVED = "stopped, and the state is saved; continue with the same command and --resume"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "accelerate"


def words_of(world: World, folder: Path, batch: int) -> list[str]:
    """A run that learns enough for its scores to say something, by plain gradient descent."""
    stream = world.stream_with(
        folder / f"of{batch}",
        per_device_train_batch_size=batch,
        replay={"ratio": 0.5, "batch_size": batch},
        num_train_epochs=12,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        weight_decay=0,
        logging_steps=1,
        progress="lines",
    )
    return ["run", str(stream)]


class Launched:
    """``seekr run --launch`` in two processes, read as it goes.

    All of them are forked: what the launcher starts are stand-ins, which hand signals on.

    Args:
        words: of the command.
        output: of the run.
        more: words behind these.
        config: of the launcher.
        call: of each process with its words.
        setting: of their zygote.
        environment: of the launcher.
    """

    def __init__(
        self,
        words: list[str],
        output: Path,
        *more: str,
        config: dict[str, object] = TWO,
        call: str = "zygote:command",
        setting: dict[str, str] | None = None,
        **environment: str,
    ) -> None:
        file = write(output.parent / "two.yaml", config)
        self.python = zygote.shim(output.parent / "python", call, setting)
        environment = {"PYTHON_EXEC": str(self.python), "OMP_NUM_THREADS": "1"} | environment
        words = [*words, "--output", str(output), "--launch", str(file), *more]
        with open(os.devnull, "w") as nothing:
            files = {"stdout": nothing, "stderr": zygote.PIPE}
            self.process = zygote.start("zygote:command", words, environment=environment, **files)

    def at(self, start: str) -> "Launched":
        """Once it has printed a line that begins so."""
        assert self.process.stderr is not None
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            if line.startswith(start):
                return self
        raise AssertionError(f"it ended before '{start}': {seen}")

    def processes(self) -> dict[str, int]:
        """The launched processes by their rank."""
        return {rank: int(Path(f"{self.python}.{rank}").read_text()) for rank in ("0", "1")}

    def environment(self) -> dict[str, str]:
        """What the launcher gave the first of them."""
        for number in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            found = dict(line.split("=", 1) for line in Path(f"/proc/{number}/environ").read_text().split("\0") if line)
            if found.get("RANK") == "0":
                return found
        raise AssertionError("it has not launched it")

    def end(self, code: int) -> list[str]:
        """The lines on stderr from here to the end, which must be this."""
        assert self.process.stderr is not None
        err = self.process.stderr.read()
        assert self.process.wait() == code, err
        assert "Traceback" not in err
        for file in self.python.parent.glob(f"{self.python.name}.*"):
            file.unlink()
        # A model of this size goes on to the end of what it may write, which is said.
        said = ("first:", "second:", "seekr:", "warning: task 'first'", "warning: task 'second'")
        return [line for line in err.splitlines() if not line.startswith(said)]


def is_signalled(number: int) -> bool:
    """Whether a process that is held still has a signal waiting for it."""
    status = Path(f"/proc/{number}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in status if line.startswith(("SigPnd:", "ShdPnd:")))


def step_of(run: Path) -> int:
    """The step of the newest checkpoint."""
    return json.loads((max(run.glob("checkpoints/0*")) / "trainer_state.json").read_text())["global_step"]


@pytest.fixture(scope="module")
def whole(made_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes gave undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert Launched(words_of(made_world, folder, 1), folder / "run").end(0) == []
    return folder / "run"


def test_two_processes_are_one(world: World, seekr, whole: Path, tmp_path: Path) -> None:
    done = seekr(*words_of(world, tmp_path, 2), "--output", tmp_path / "run")
    assert done.code == 0, done.err
    models = ("models/01-first", "models/02-second")
    one, other = (
        [load_file(run / model / "model.safetensors") for model in models] for run in (tmp_path / "run", whole)
    )
    assert differs(one[0], load_file(world.base / "model.safetensors"))
    for left, right in zip(one, other):
        assert_same(left, right, 5e-5)
    # Signals are kept in 8 bits, whose last may fall the other way.
    assert_same(memory_tensors(tmp_path / "run" / "memory"), memory_tensors(whole / "memory"), 5e-3)
    scores = [json.loads((run / "scores.json").read_text()) for run in (tmp_path / "run", whole)]
    assert scores[0]["matrix"] == scores[1]["matrix"]
    assert scores[0]["op"] > 0, "nothing was learnt"


@needs_deepspeed
def test_two_processes_of_zero_are_one(world: World, whole: Path, tmp_path: Path) -> None:
    """The example's config, but for what is of this machine; evaluation is not sharded, and so starts the same way."""
    config = yaml.safe_load((EXAMPLES / "zero3.yaml").read_text()) | {key: TWO[key] for key in OF_THIS_MACHINE}
    run, words = tmp_path / "run", words_of(world, tmp_path, 1)
    launched = Launched(words, run, config=config, call="deep:command", setting=SETTING, PYTHONPATH=with_deepspeed())
    lines = launched.end(0)
    assert [line for line in lines if "untested optimizer" not in line] == []
    for model in ("models/01-first", "models/02-second"):
        assert_same(*(load_file(each / model / "model.safetensors") for each in (run, whole)), 5e-5)
    assert_same(memory_tensors(run / "memory"), memory_tensors(whole / "memory"), 5e-3)
    assert len({json.dumps(json.loads((each / "scores.json").read_text())["matrix"]) for each in (run, whole)}) == 1


def test_stopped_by_signals_and_resumed(world: World, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """SIGTERM to one process, Ctrl-C to the launcher, SIGKILL to one: each time it goes on, to the same bytes."""
    # As long a name as the other's: paths are part of the memory's size.
    folder = tmp_path_factory.mktemp("again")
    run, words = folder / "run", words_of(world, folder, 1)
    first = Launched(words, run).at("first: step 1/")
    os.kill(first.processes()["1"], signal.SIGTERM)
    assert first.end(143) == [SAVED]
    assert 0 < step_of(run) < 36
    second = Launched(words, run, "--resume").at("second: step 1/")
    workers = second.processes()
    # Held still: the steps are shorter than the signal's way through the launcher.
    for number in workers.values():
        os.kill(number, signal.SIGSTOP)
    assert second.environment()["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "600", "a long step would be cut off"
    second.process.send_signal(signal.SIGINT)
    while not all(map(is_signalled, workers.values())):
        assert not second.process.has_ended()
        time.sleep(0.02)
    for number in workers.values():
        os.kill(number, signal.SIGCONT)
    assert second.end(130) == [SAVED]
    assert 0 < step_of(run) < 60
    third = Launched(words, run, "--resume").at("second: step")
    os.kill(third.processes()["1"], signal.SIGKILL)
    assert third.end(137) == [
        "error: process 1 was ended by SIGKILL; what it had saved is there, continue with --resume"
    ]
    assert Launched(words, run, "--resume").end(0) == []
    ours, theirs = fingerprint(folder), fingerprint(whole.parent)
    assert "run/models/02-second/model.safetensors" in ours
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []


def test_one_process_that_fails_alone_says_why(world: World, tmp_path: Path) -> None:
    words = words_of(world, tmp_path, 1)
    (line,) = Launched(words, tmp_path / "run", "num_train_epochs=1", call="faulty:command_of_a_broken_disk").end(2)
    assert line.startswith("error: ")
    assert "manifest.json" in line
    assert "Input/output error" in line
    assert list((tmp_path / "run" / "memory").iterdir()), "the other process had written its memory"
