"""The documentation builds as a site without a warning, and has a page for what the code has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_every_method_and_command_has_its_section(site: Path) -> None:
    from seekr_cl.cli.main import build_parser
    from seekr_cl.methods import METHODS

    methods = (site / "methods.html").read_text()
    for name, method in METHODS.items():
        if method.__module__.startswith("seekr_cl."):
            assert f'id="{name}"' in methods
    commands = (site / "commands.html").read_text()
    choices = next(action for action in build_parser()._actions if action.dest == "command").choices
    assert {*re.findall(r'id="seekr-([a-z]+)', commands)} == {*choices}


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert pages
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert not [address for address in loaded if "canonical" not in address], page
