"""What a run and a learning write down and show while they go; TensorBoard and trackio with their own readers."""

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zygote
from tinylm import config_for, constant_task, reverse_task

from seekr_cl.errors import TrainingError
from seekr_cl.runs.stream_run import run
from seekr_cl.system.run_record import RECORD, beside, read_events
from seekr_cl.system.run_state import RunState
from seekr_cl.training import learn
from seekr_cl.training.tracker import Tracker


@pytest.fixture(scope="module")
def learned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    config = config_for("seekr", folder, report_to="tensorboard", measure_every=1, retention={})
    run(base, [reverse_task(), constant_task("no", "no")], folder / "run", config)
    return folder / "run"


def test_a_run_is_followed(learned: Path) -> None:
    events, damaged = read_events(learned / RECORD)
    assert damaged == 0
    assert [one["time"] for one in events] == sorted(one["time"] for one in events)
    phases = [(one["number"], one["phase"]) for one in events if one["event"] == "phase"]
    each = ["load", "prepare", "train", "score", "write", "evaluate"]
    assert phases == [(0, "evaluate"), *((1, name) for name in each), *((2, name) for name in each)]
    logs = json.loads((learned / "models/02-no/training_log.json").read_text())
    second = [one["values"] for one in events if one["event"] == "log"][3:]
    for line, log in zip(second, (one for one in logs if "loss" in one), strict=True):
        assert {key: line[key] for key in log if key.startswith(("loss", "share"))} == {
            key: log[key] for key in log if key.startswith(("loss", "share"))
        }
    training = [one for one in events if one["event"] == "training"]
    assert [(one["steps"], sum(one["replayed"])) for one in training] == [(3, 0), (6, 3)]
    state = RunState.of(events)
    assert state.ended == "done"
    scores = json.loads((learned / "scores.json").read_text())
    assert [list(state.rows[n].values()) for n in range(3)] == [row["scores"] for row in scores["matrix"]]
    assert "tokens_per_second" in [one for one in events if one["event"] == "progress" and one["total"] == 6][-1]


def test_tensorboard_reads_each_task(learned: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    for name, steps in (("01-reverse", [1, 2, 3]), ("02-no", [1, 2, 3, 4, 5, 6])):
        [file] = (learned / "logs" / name).rglob("events.out.tfevents.*")
        found = accumulator.EventAccumulator(str(file.parent)).Reload()
        logs = json.loads((learned / "models" / name / "training_log.json").read_text())
        [tag] = [one for one in found.Tags()["scalars"] if one.endswith("loss_task")]
        shown = {one.step: one.value for one in found.Scalars(tag)}
        assert shown == {one["step"]: pytest.approx(one["loss_task"]) for one in logs if "loss_task" in one}
        assert set(shown) <= set(steps)
        assert [one for one in found.Tags()["scalars"] if one.endswith("share_task")]


TRACKIO = """
import json, sqlite3, sys
from pathlib import Path
sys.path[:0] = [{helpers!r}]
from tinylm import config_for, constant_task, reverse_task
from seekr_cl.runs.stream_run import run
folder = Path({folder!r})
config = config_for("replay", folder, report_to="trackio", project="learning")
run({base!r}, [reverse_task()], folder / "run", config)
from trackio.sqlite_storage import SQLiteStorage
for name in sorted(SQLiteStorage.get_runs("learning")):
    logs = SQLiteStorage.get_logs("learning", name)
    print(json.dumps([name, [one["train/loss_task"] for one in logs if "train/loss_task" in one]]))
"""


def test_trackio_reads_a_task(base: Path, tmp_path: Path) -> None:
    """With its own store on this disk; in a folder of its own, since it wants an older pillow than matplotlib has."""
    place = Path(os.environ.get("SEEKR_TRACKIO", Path(__file__).resolve().parents[2] / ".venv" / "trackio"))
    if not place.is_dir():
        pytest.skip(f"{place} is absent; make test installs trackio there, or set SEEKR_TRACKIO to a folder with it")
    helpers = str(Path(__file__).resolve().parents[1] / "helpers")
    program = TRACKIO.format(helpers=helpers, folder=str(tmp_path), base=str(base))
    paths = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(place)])
    environment = os.environ | {"PYTHONPATH": paths, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    assert list(found) == ["run-01-reverse"]
    for name, values in found.items():
        logs = json.loads((tmp_path / "run/models" / name.removeprefix("run-") / "training_log.json").read_text())
        assert values == pytest.approx([one["loss_task"] for one in logs if "loss_task" in one])


def test_a_learning_takes_its_record_along(base: Path, tmp_path: Path) -> None:
    learn(base, reverse_task(), tmp_path / "memory", tmp_path / "m1", config_for("replay", tmp_path))
    events, _ = read_events(tmp_path / "m1" / RECORD)
    begin = events[0]
    assert (begin["kind"], begin["tasks"], begin["method"]) == ("learning", ["reverse"], "replay")
    assert (tmp_path / "m1" / begin["memory"][0]).resolve() == (tmp_path / "memory").resolve()
    assert RunState.of(events).ended == "done"
    assert not beside(tmp_path / "m1").exists()


def test_a_learning_that_fails_leaves_no_record(base: Path, tmp_path: Path) -> None:
    config = config_for("seqft", tmp_path, learning_rate=1e6, max_grad_norm=0.0, optim="sgd", num_train_epochs=9)
    with pytest.raises(TrainingError):
        learn(base, reverse_task(), tmp_path / "memory", tmp_path / "m1", config)
    assert not (tmp_path / "m1").exists()
    left = beside(tmp_path / "m1")
    # With a checkpoint to go on from it stays, and says what went wrong.
    assert left.exists() == (tmp_path / "m1.checkpoints").exists()
    if left.exists():
        state = RunState.of(read_events(left)[0])
        assert (state.ended, "nothing was replaced" in state.message) == ("failed", True)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_alone_waits_for_nobody(tmp_path: Path, failing: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipes = {"stdin": zygote.PIPE, "stdout": zygote.PIPE}
    both = [
        zygote.start("alone:fail", str(tmp_path), failing, environment=shared | {"RANK": str(rank)}, **pipes)
        for rank in range(2)
    ]
    try:
        said = both[failing].stdout
        assert said is not None
        assert select.select([said], [], [], 30)[0], "it waits for the other"
        assert said.readline() == "alone False\n"
    finally:
        for process in both:
            process.close()


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    tracker = Tracker()
    tracker.begin("run", tasks=["a"], work=[1.0], tests=0)
    with pytest.warns(UserWarning, match="seekr watch and report will miss it"):
        tracker.write_to(tmp_path / "missing" / RECORD)
    tracker.phase("train")
    assert tracker.state.phase == "train"


def test_plain_lines(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_for("seekr", tmp_path, progress="lines", measure_every=1)
    run(base, [reverse_task(), constant_task("no", "no")], tmp_path / "run", config)
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("no: step ")]
    assert len(told) == 6
    assert told[-1].startswith("no: step 6/6 ")
    assert "; task 2 of 2, share task" in told[-1]
    assert "tokens/s" in told[-1]
    assert told[-1].endswith(" left")
