"""What each command does when all is well."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from cli_world import World, write, write_stream, write_task
from zygote import run_seekr


def rows(printed: str) -> list[list[str]]:
    """The cells of every printed table row."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]


def generation(memory):
    """The current generation of a memory."""
    name = json.loads((memory / "manifest.json").read_text(encoding="utf-8"))["current"]
    return json.loads((memory / "generations" / name).read_text(encoding="utf-8"))


def test_two_tasks_on_two_days(world, seekr, tmp_path):
    """The next task goes on with the model and memory that the first left, and the memory grows by a generation."""
    first = seekr(*world.learn(tmp_path))
    assert first.code == 0, first.err
    assert "learned first in 2 steps" in first.out
    assert "generation 1, 3 samples" in first.out
    second = seekr(
        *world.learn(tmp_path, model=tmp_path / "model", task=world.second, output=tmp_path / "model2"),
        "replay.every=1",
        "logging_steps=1",
    )
    assert second.code == 0, second.err
    assert "generation 2, 6 samples" in second.out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(tmp_path / "model2"))
    assert [task["name"] for task in generation(tmp_path / "memory")["tasks"]] == ["first", "second"]
    assert generation(tmp_path / "memory")["model_folder"] == str(tmp_path / "model2")
    log = (tmp_path / "model2" / "training_log.json").read_text(encoding="utf-8")
    assert "loss_attention" in log  # the old task was replayed
    # Going on from the base model instead is refused: this memory has come further.
    assert seekr(*world.learn(tmp_path, task=world.second, output=tmp_path / "model3")).code == 2


def test_a_memory_is_shown(world, seekr):
    done = seekr("memory", "show", world.memory)
    assert done.code == 0
    assert done.err == ""
    assert "generation 1" in done.out
    assert "method seekr (preset default)" in done.out
    content = generation(world.memory)
    assert content["model_sha256"] in done.out
    size = sum(file["bytes"] for file in content["tasks"][0]["files"])
    # Three samples of a letter, =, two letters and EOS; three answer positions each; all five queries each.
    assert rows(done.out) == [["first", "3", "6", "15", "9", "4", "2", "15", f"{size / 1000:.1f} kB"]]


def test_a_run_leaves_scores_models_memory_and_predictions(world, seekr):
    files = {str(path.relative_to(world.run)) for path in world.run.rglob("*") if path.is_file()}
    assert {"run.json", "scores.json", "scores.png", "memory/manifest.json"} <= files
    stages = ("00-base", "01-first", "02-second")
    assert {f"evaluations/{stage}/{task}.jsonl" for stage in stages for task in ("first", "second")} <= files
    assert {f"models/{stage}/model.safetensors" for stage in stages[1:]} <= files
    scores = json.loads((world.run / "scores.json").read_text(encoding="utf-8"))
    assert scores["tasks"] == ["first", "second"]
    assert scores["metrics"] == ["exact_match"] * 2
    assert [row["after"] for row in scores["matrix"]] == ["base", "first", "second"]
    assert {"op", "bwt", "bwt_over_n", "forgetting", "fwt", "seconds", "memory_bytes", "seed"} <= scores.keys()
    assert not any(name.startswith(".") or "partial" in name for name in os.listdir(world.run / "models"))


def test_a_finished_run_is_not_trained_again(world, seekr, tmp_path):
    models = {path: path.stat().st_mtime_ns for path in (world.run / "models").rglob("*")}
    copy = write_stream(tmp_path / "stream.yaml", world.base, [world.first, world.second])
    scores = (world.run / "scores.json").read_text(encoding="utf-8")
    # Its score file and plot are written anew, so this works on a copy.
    shutil.copytree(world.run, tmp_path / "run")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    done = seekr("run", copy, "--output", tmp_path / "run", "--resume")
    assert done.code == 0, done.err
    assert "step" not in done.err
    assert "after" not in done.err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert (tmp_path / "run" / "scores.json").read_text(encoding="utf-8") == scores
    assert {path: path.stat().st_mtime_ns for path in models} == models
    base = json.loads(scores)["base"]
    assert ["base", *[f"{score:.1f}" for score in base]] in rows(done.out)


def test_resuming_where_there_is_nothing_starts(world, seekr, tmp_path):
    done = seekr("run", world.stream, "--output", tmp_path / "run", "--resume", "method.heads=all")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "scores.json").is_file()
    ledger = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert ledger["method"]["settings"]["heads"] == "all"


def test_evaluation_of_folder_file_and_stream(world, seekr, tmp_path):
    folder = write_task(tmp_path / "data" / "odd [red] name")
    file = write(tmp_path / "data" / "file.json", [{"prompt": "a=", "answer": "zz"}])
    done = seekr(
        "evaluate", "--model", world.learnt, "--task", folder, file, "--output", tmp_path / "scores",
        "--max-new-tokens", 3, "--metric", "edit_similarity", "--batch-size", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert set(content["tasks"]) == {"odd [red] name", "file"}
    assert {task["metric"] for task in content["tasks"].values()} == {"edit_similarity"}
    for name, count in (("odd [red] name", 3), ("file", 1)):
        scored = content["tasks"][name]
        assert [name, "edit_similarity", f"{scored['score']:.1f}", str(count)] in [row[:4] for row in rows(done.out)]
    predictions = [json.loads(line) for line in (tmp_path / "scores" / "file.jsonl").read_text("utf-8").splitlines()]
    assert [p["references"] for p in predictions] == [["zz"]]
    again = seekr("evaluate", "--model", world.learnt, "--task", world.stream, "--output", tmp_path / "stream")
    assert again.code == 0, again.err
    of_run = json.loads((world.run / "scores.json").read_text(encoding="utf-8"))["matrix"][1]["scores"]
    # The model after the first task by the command and by the run are one, so their scores are too.
    assert [row[2] for row in rows(again.out)] == [f"{score:.1f}" for score in of_run]


def test_an_evaluation_says_how_it_was_made_and_goes_on(world, seekr, tmp_path):
    words = ["evaluate", "--model", world.learnt, "--task", world.first, world.second, "--output", tmp_path / "scores"]
    words += ["--max-new-tokens", 4, "--batch-size", 2]
    assert seekr(*words).code == 0
    content = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    made = content["evaluation"]
    assert (made["engine"], made["dtype"], made["batch_size"]) == ("transformers", "float32", 2)
    assert made["decoding"] == {"strategy": "greedy", "stop": ["</s>"]}
    keys = {"interval", "format", "examples", "max_new_tokens", "sha256", "metric", "score"}
    assert keys == set(content["tasks"]["first"])
    of_run = json.loads((world.run / "scores.json").read_text(encoding="utf-8"))
    assert of_run["evaluation"] == {key: made[key] for key in made if key != "prompts_cut"} | {
        key: of_run["evaluation"][key] for key in ("batch_size", "max_length")
    }
    assert of_run["tests"]["first"] == {
        "examples": 3,
        "max_new_tokens": 4,
        "metric": "exact_match",
        "sha256": content["tasks"]["first"]["sha256"],
    }
    low, high = of_run["intervals"]["tasks"]["first"]
    assert low <= of_run["matrix"][-1]["scores"][0] <= high
    assert of_run["intervals"]["op"] is not None
    assert of_run["broken_off"]["first"].keys() == {"answers", "references_longer"}
    # Killed after the first batch of the second task.
    again = [str(word) for word in words[:-1]] + ["1"]
    again[again.index(str(tmp_path / "scores"))] = str(tmp_path / "killed")
    assert run_seekr(again, tmp_path, environment={"SEEKR_FAULT": "evaluation.answered:3"}).code == -9
    other = seekr(*[word if word != str(world.learnt) else world.base for word in again], "--resume")
    assert other.code == 2
    assert "another model" in other.err
    assert "killed: already exists" in seekr(*again).err
    done = seekr(*again, "--resume")
    assert done.code == 0, done.err
    resumed = json.loads((tmp_path / "killed" / "scores.json").read_text(encoding="utf-8"))
    assert resumed["tasks"] == content["tasks"]
    assert sorted(os.listdir(tmp_path / "killed")) == ["first.jsonl", "scores.json", "second.jsonl"]
    assert seekr(*again, "--resume").code == 0  # a finished one is shown again


def test_runs_are_compared(world, seekr, tmp_path):
    assert seekr("run", world.stream, "--output", tmp_path / "derpp", "--method", "derpp").code == 0
    done = seekr("compare", tmp_path / "derpp", world.run, "--output", tmp_path / "comparison")
    assert done.code == 0, done.err
    assert [row[0] for row in rows(done.out)][:2] == ["derpp", "seekr"]
    assert "seekr against derpp: OP" in done.out
    assert "NOT COMPARABLE" not in done.out
    assert sorted(os.listdir(tmp_path / "comparison")) == [
        f"comparison.{kind}" for kind in ("html", "json", "md", "png")
    ]
    content = json.loads(seekr("compare", tmp_path / "derpp", world.run, "--json").out)
    assert content == json.loads((tmp_path / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    assert seekr("compare", world.run, "--markdown").out.startswith("| method | seeds | OP |")


def test_settings_from_a_file_and_from_the_command_line(world, seekr, tmp_path):
    config = write(tmp_path / "c.yaml", "learning_rate: 1e-3\nmethod: {name: seekr, head_budget: 3}\nseed: 5\n")
    done = seekr(*world.learn(tmp_path, "method.head_budget=2", "replay.samples=null", config=config))
    assert done.code == 0, done.err
    method = generation(tmp_path / "memory")["method"]
    assert method["settings"]["head_budget"] == 2
    assert method["replay"]["ratio"] == 0.5
    assert [row[5] for row in rows(seekr("memory", "show", tmp_path / "memory").out)] == ["2"]


def test_settings_may_stand_anywhere(world, seekr, tmp_path):
    words = world.learn(tmp_path)
    pairs = [word for word in words if "=" in str(word)]
    done = seekr(words[0], *pairs, "seed=3", *[word for word in words[1:] if word not in pairs])
    assert done.code == 0, done.err


def test_another_method_on_the_command_line_drops_the_files_settings(world, seekr, tmp_path):
    stream = world.stream_with(tmp_path, method={"name": "seekr", "head_budget": 3})
    done = seekr("run", stream, "--output", tmp_path / "run", "--method", "derpp")
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text(encoding="utf-8"))
    assert scores["method"]["name"] == "derpp"


def test_a_plan_needs_a_config_and_no_weights(world, seekr, tmp_path):
    config = write(tmp_path / "config.json", (world.base / "config.json").read_text(encoding="utf-8"))
    done = seekr("plan", "--model", config, world.stream, "method.head_budget=2", "method.layer_budget=null")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "2 attention layers, 8 heads" in done.out
    assert "2 tasks of 6 examples, 3 kept of each" in done.out
    assert "after budgets: 2 heads in 2 layers" in done.out
    assert {row[0] for row in rows(done.out)} >= {"top_k (chosen)", "dense", "factors"}
    asked = ("plan", "--json", "--model", world.base, "--tasks", 3, "--examples", 200, "--method", "derpp")
    numbers = json.loads(seekr(*asked, "--tokens", 20, "--answer-tokens", 5, "replay.samples=4").out)
    assert numbers["kept"] == [4, 4, 4]
    assert numbers["chosen"]["sample"]["attention"] == 0 < numbers["chosen"]["sample"]["logits"]
    assert "texts" not in done.out
    written = seekr("plan", "--model", config, "--tasks", 2, "--examples", 30, "--tokens", 20, "--method", "lfpt5").out
    assert "the model itself writes 18 texts, for which at most 360 tokens go forward: 6 passes" in written
    assert numbers["chosen"]["total"] == 12 * numbers["chosen"]["sample"]["stored"]
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    "words",
    [[], ["learn"], ["run"], ["evaluate"], ["compare"], ["demo"], ["plan"], ["memory", "show"], ["memory", "forget"]],
)
def test_help_is_there_at_once(words, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-X", "importtime", "-m", "seekr_cl", *words, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.stdout.startswith("usage: seekr")
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "datasets", "matplotlib", "numpy"}
    # Time of the processor, which a busy machine does not stretch as it does the clock's.
    assert seconds < 2


@pytest.mark.parametrize(
    "words",
    [
        ["lern"],
        ["learn"],
        ["learn", "--modle", "x"],
        ["evaluate", "--batch-size", "x"],
        [],
        ["memory"],
        ["memory", "forget", "m"],
        ["memory", "forget", "m", "--task", "a", "--sample", "b"],
        ["memory", "rollback", "m"],
        ["memory", "gc", "m", "--keep", "x"],
        ["memory", "show", "m", "x=1"],
    ],
)
def test_a_slip_in_the_options_is_one_line(words, seekr):
    done = seekr(*words)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "--help" in done.err


def test_the_module_is_the_command(world: World, tmp_path):
    command = [sys.executable, "-m", "seekr_cl", "memory", "show", str(world.memory)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)[0][0] == "first"
    assert os.listdir(tmp_path) == []


def test_results_for_a_program(world, seekr, tmp_path):
    """One JSON on standard output, and nothing else there."""
    done = seekr(*world.learn(tmp_path), "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["task"], told["steps"], told["samples"]) == ("first", 2, 3)
    assert told["verdict"] == json.loads((tmp_path / "model" / "verdict.json").read_text())
    common = ["--task", world.first, "--max-new-tokens", 4]
    before = seekr("evaluate", "--model", world.base, "--output", tmp_path / "a", *common)
    assert "nothing to compare with: --before" in before.out
    after = seekr(
        "evaluate", "--model", world.learnt, "--output", tmp_path / "b", "--before", tmp_path / "a", "--json", *common
    )
    assert after.code == 0, after.err
    told = json.loads(after.out)
    assert told == {"output": str(tmp_path / "b")} | json.loads((tmp_path / "b" / "scores.json").read_text())
    assert told["verdict"]["lines"][0]["task"] == "first"
    assert told["tasks"]["first"]["format"]["answers"] == 3


def test_a_run_ends_with_its_verdict(world):
    verdict = json.loads((world.run / "verdict.json").read_text())
    assert [(line["task"], line["kind"]) for line in verdict["lines"]] == [("first", "old"), ("second", "new")]
    assert verdict["cost"]["memory_bytes"] == json.loads((world.run / "scores.json").read_text())["memory_bytes"]
    assert verdict["cost"]["more_steps"] is not None
