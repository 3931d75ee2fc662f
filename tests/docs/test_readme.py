"""Every command in the README runs, in order, as a new user would type it."""

import re
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from desk import make_desk, run_block

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return make_desk(tmp_path_factory.mktemp("desk"))


def test_the_readme_shows_its_commands():
    shown = "".join(text for _, text in BLOCKS)
    for command in ("make demo", "make test", "seekr learn", "seekr run", "seekr evaluate", "seekr memory show"):
        assert command in shown


def test_make_targets_exist():
    for target in re.findall(r"^make (\w+)", "".join(text for _, text in BLOCKS), flags=re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("number", [n for n, (_, text) in enumerate(BLOCKS) if "seekr" in text and "make" not in text])
def test_block_runs(number, desk):
    code, err = run_block(*BLOCKS[number], desk)
    assert code == 0, err
    assert "Traceback" not in err


def test_the_command_that_is_installed_is_the_one_that_the_blocks_run():
    (entry,) = [point for point in entry_points(group="console_scripts") if point.name == "seekr"]
    assert entry.value == "seekr_cl.cli.main:main"


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link
