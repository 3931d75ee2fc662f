"""The first commands of a new user: a settings file, its check, the doctor, completion, examples in every help."""

import json
import re
import shlex
import shutil
import subprocess
import warnings
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from cli_world import World, fingerprint, write
from zygote import run_seekr

from seekr_cl.cli.choices import fitted
from seekr_cl.cli.examples import EXAMPLES
from seekr_cl.cli.main import _parse, build_parser, main
from seekr_cl.config.seekr_config import config_from
from seekr_cl.planning.first_settings import scalar
from seekr_cl.planning.fit import advice, choose, need
from seekr_cl.planning.shape import read_shape
from seekr_cl.system.machine import Machine

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GPU = Machine("cuda", "a GPU", 80 * 10**9, 80 * 10**9, True)


def written(world: World, folder: Path, *more: object) -> Path:
    file = folder / "seekr.yaml"
    words = ["init", file, "--model", world.base, "--data", world.first, world.second, "--use-cpu", *more]
    assert main([str(word) for word in words]) == 0
    return file


def test_init_writes_what_validate_takes_and_run_runs(world, seekr, tmp_path, capsys):
    file = written(world, tmp_path)
    assert "next: seekr validate" in capsys.readouterr().out
    settings = yaml.safe_load(file.read_text())
    assert settings["learning_rate"] == 5e-5
    assert [one["max_new_tokens"] for one in settings["tasks"]] == [16, 16]
    before = fingerprint(tmp_path)
    assert main(["validate", str(file), "--output", str(tmp_path / "run"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert {one["state"] for one in said["checks"]} == {"ok"}
    assert {"model", "examples", "method", "one step", "disk"} <= {one["name"] for one in said["checks"]}
    assert fingerprint(tmp_path) == before, "validate writes nothing"
    done = seekr(*shlex.split(said["command"])[1:], "num_train_epochs=1", "progress=none")
    assert done.code == 0, done.err


def test_validate_says_the_tasks_own_epochs(world, tmp_path, capsys):
    file = written(world, tmp_path)
    content = yaml.safe_load(file.read_text())
    content["tasks"][0]["epochs"] = 7
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    capsys.readouterr()
    assert main(["validate", str(file), "--output", str(tmp_path / "run"), "--json"]) == 0
    names = [one["name"] for one in content["tasks"]]
    epochs = json.loads(capsys.readouterr().out)["settings"]["epochs"]
    assert epochs == f"7 of {names[0]}, {content['num_train_epochs']} of {names[1]}"


def test_init_without_tests_is_for_learn(world, tmp_path, capsys):
    data = write(tmp_path / "one's own.jsonl", '{"prompt": "a=", "completion": "aa"}\n' * 8)
    file = tmp_path / "settings.yaml"
    words = ["init", file, "--model", world.base, "--data", data, "--adapter", "--keep", "2", "--use-cpu"]
    assert main([str(word) for word in words]) == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("next: "))
    assert yaml.safe_load(file.read_text())["peft"] == "lora"
    assert "'derpp' kept as much" in file.read_text().replace("\n# ", " ")
    assert main(shlex.split(line)[2:]) == 0
    assert "kept: 2 of" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["ewc", "olora", "multitask"])
def test_init_writes_only_what_the_method_takes(world, tmp_path, method):
    file = written(world, tmp_path, "--method", method)
    settings = yaml.safe_load(file.read_text())
    assert ("replay" in settings) is False
    for key in ("model", "tasks"):
        settings.pop(key)
    config_from(settings, str(tmp_path))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--data", "none.jsonl"], "none.jsonl"),
        (["--data", "{first}", "--test", "a", "b"], "--test: 2 files for 1"),
        (["--data", "{first}", "--keep", "1.5"], "--keep"),
        (["--data", "{first}", "{first}"], "two tasks are called"),
        (["--data", "{first}", "--adapter", "--method", "olora"], "adapters of its own"),
        ([], "--data: missing"),
    ],
)
def test_init_refuses_in_one_line_and_writes_nothing(world, tmp_path, capsys, words, part):
    words = [word.format(first=world.first) for word in words]
    assert main(["init", str(tmp_path / "s.yaml"), "--model", str(world.base), "--use-cpu", *words]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_init_never_writes_over_a_file(world, tmp_path, capsys):
    file = write(tmp_path / "s.yaml", "mine")
    assert main(["init", str(file), "--model", str(world.base), "--data", str(world.first)]) == 2
    assert file.read_text() == "mine"


@pytest.mark.parametrize("text", ["a: b", "- x", "# no", "'", '"', "null", "1e3", "é 中", " ends ", "a\tb", "x" * 300])
def test_any_text_is_a_value_of_the_file(text):
    assert "\n" not in scalar(text)
    assert yaml.safe_load(f"key: {scalar(text)}") == {"key": text}


def test_validate_names_all_that_is_wrong(world, tmp_path, capsys):
    write(tmp_path / "bad.jsonl", '{"prompt": "a="}\n')
    write(tmp_path / "long.jsonl", json.dumps({"prompt": "a=", "completion": "a" * 90}) + "\n")
    write(tmp_path / "full" / "file", "x")
    common = ["validate", "--model", str(world.base), "--output", str(tmp_path / "full"), "use_cpu=true"]
    assert main([*common, "--task", str(tmp_path / "bad.jsonl"), "--memory", str(tmp_path / "m")]) == 2
    shown = capsys.readouterr()
    assert re.search(r"FAIL task bad.jsonl: .*no 'completion'", shown.out)
    assert re.search(r"FAIL folders: .*not empty", shown.out)
    assert "2 of" in shown.err
    assert main([*common, "--task", str(tmp_path / "long.jsonl"), "--memory", str(world.memory)]) == 2
    shown = capsys.readouterr().out
    assert re.search(r"FAIL model: .*another model", shown), "the memory belongs to the model that was learned"


def test_the_doctor_says_what_a_model_supports(world, capsys):
    assert main(["doctor", "--model", str(world.base), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = {(one["group"], one["name"]): one for one in said["findings"]}
    assert said["problems"] == 0
    assert found["model", "attention"]["detail"].startswith("tapped: 8 heads in 2 layers")
    assert found["model", "chat template"]["state"] == "no"
    assert found["versions", "torch"]["state"] == "ok"
    assert main(["doctor", "--model", "nowhere"]) == 2


def test_precision_and_batch_fit_the_gpu(world, tmp_path):
    shape = read_shape(world.base)
    config = config_from({"use_cpu": True}, str(tmp_path))
    assert {one.key: one.value for one in choose({}, config, GPU, shape, None)} == {"bf16": True}
    assert choose({"bf16": False, "per_device_train_batch_size": 8}, config, GPU, shape, None) == []
    small = Machine("cuda", "small", int(need(shape, config, None, 3, 48, True).total / 0.9), 0, True)
    chosen = {one.key: one.value for one in choose({}, config, small, shape, None)}
    assert chosen == {"bf16": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert choose({}, config, Machine("cpu", "CPU", 10**9, 10**9, False), shape, None) == []
    whole = need(shape, config, None, 8, 48, True)
    assert advice(whole, GPU, config, None) is None
    assert "peft=lora" in (advice(whole, Machine("cuda", "tiny", 1000, 0, True), config, None) or "")


def test_what_the_machine_chose_is_kept_when_resumed_on_another(world, tmp_path):
    """A run begun on one GPU is not refused on another over settings that its user never set; a warning comes once."""
    settings = {"method": "agem"}

    def choose_on(machine: Machine, begun: dict[str, object] | None, **more: object) -> tuple[bool, int, int, int]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            make = partial(config_from, output_dir=str(tmp_path))
            config, choices = fitted(settings | more, make, str(world.base), begun, machine)
        assert sum("agem: optim" in str(one.message) for one in said) == 1
        assert {one.key for one in choices} <= {"bf16", "per_device_train_batch_size", "gradient_accumulation_steps"}
        return config.bf16, config.per_device_train_batch_size, config.gradient_accumulation_steps, len(choices)

    assert choose_on(GPU, None) == (True, 8, 1, 1)
    begun = {"bf16": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "optim": "sgd"}
    cpu = Machine("cpu", "CPU", 10**9, 10**9, False)
    assert choose_on(GPU, begun) == choose_on(cpu, begun) == (True, 2, 4, 3)
    assert choose_on(GPU, begun | {"bf16": False}) == (False, 2, 4, 2)
    assert choose_on(GPU, begun, per_device_train_batch_size=3, bf16=False) == (False, 3, 4, 1)
    assert choose_on(cpu, None) == (False, 8, 1, 0)


def test_a_resumed_command_takes_the_batch_it_was_begun_with(world, seekr, tmp_path):
    left_open = json.loads(world.stream.read_text())
    del left_open["per_device_train_batch_size"]
    run = shutil.copytree(world.run, tmp_path / "run")
    again = ["run", write(tmp_path / "stream.yaml", left_open), "--output", run, "--resume"]
    assert main([str(word) for word in again]) == 0
    other = seekr(*again, "learning_rate=0.5")
    assert other.code == 2
    assert "another 'training': default_learning_rate (" in other.err

    words = world.learn(tmp_path)
    assert run_seekr(words, tmp_path, environment={"SEEKR_FAULT": "learn.model_saved:1"}).code == -9
    words.remove("per_device_train_batch_size=4")
    done = seekr(*words, "--resume")
    assert done.code == 0, done.err
    assert "per_device_train_batch_size=4: what is resumed was begun with it" in done.out + done.err


def leaves(parser: ArgumentParser, name: str = "") -> Iterator[tuple[str, ArgumentParser]]:
    inner = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    for action in inner:
        for word, one in action.choices.items():
            yield from leaves(one, f"{name} {word}".strip())
    if not inner:
        yield name, parser


def test_every_help_has_an_example_that_can_be_typed():
    for name, parser in leaves(build_parser()):
        shown = parser.format_help()
        assert "example" in shown, name
        for line in EXAMPLES.get(name, ()):
            assert f"  {line}" in shown, name
            words = shlex.split(line.split(" > ")[0], comments=True)
            assert words[: 1 + len(name.split())] == ["seekr", *name.split()]
            _parse(words[1:])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_knows_the_commands(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("validate", "onpolicy_replay", "max-new-tokens"):
        assert word in script, word
    if shell == "bash":
        file = write(tmp_path / "script", script)
        ask = f"source {file}; COMP_WORDS=(seekr val); COMP_CWORD=1; _shtab_seekr; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
        assert done.stdout.split() == ["validate"], done.stderr
