"""Everything a user may get wrong: one line that names the place and the fix, exit code 2, nothing touched.

And what is strange but allowed: it runs, and says in one line what will have no effect.
"""

import subprocess
import sys

import bad_checks
import bad_inputs
import bad_settings
import pytest
from cli_world import fingerprint

CASES = [pytest.param(case, id=case.name) for case in [*bad_inputs.CASES, *bad_settings.CASES, *bad_checks.CASES]]


@pytest.mark.parametrize("case", CASES)
def test_what_a_user_may_get_wrong(case, world, seekr, tmp_path):
    arguments = [str(word) for word in case.arguments(world, tmp_path)]
    before = fingerprint(tmp_path)
    if case.whole:
        command = [sys.executable, "-m", "seekr_cl", *arguments]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        code, out, err = process.returncode, process.stdout, process.stderr
    else:
        done = seekr(*arguments)
        code, out, err = done.code, done.out, done.err
    assert code == (0 if case.runs else 2), err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("warning: ") or not case.runs]
    assert len(lines) == bool(case.says), err
    for line in lines:
        assert line.startswith("warning: " if case.runs else "error: ")
        assert all(word in line for word in case.says), line
    after = fingerprint(tmp_path)
    if not case.runs:
        assert out == ""
        assert after == before
    else:
        assert {"model/config.json", "memory/manifest.json"} <= after.keys()
        assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("setting", ["method.head_budget=0", "method.layer_budget=0", "method.head_budget=1000"])
def test_budgets_of_nothing_and_of_more_than_there_is_learn_a_second_task_too(setting, world, seekr, tmp_path):
    assert seekr(*world.learn(tmp_path, setting)).code == 0
    again = world.learn(tmp_path, setting, model=tmp_path / "model", task=world.second, output=tmp_path / "model2")
    done = seekr(*again)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    shown = seekr("memory", "show", tmp_path / "memory")
    heads = "8" if "1000" in setting else "0"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.out.splitlines()]
    assert [row[5] for row in rows if row and row[0] in ("first", "second")] == [heads, heads]
