"""What the pages of docs/ show to be typed runs, a page's blocks in their order."""

import re
from pathlib import Path

import pytest
from desk import make_desk, run_block

DOCS = Path(__file__).parents[2] / "docs"
# The blocks of adding_a_method.md are tested as a method, in test_adding_a_method.py.
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if re.search(r"```(bash|python)\n", page.read_text()) and page.name != "adding_a_method.md"
]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    desk = make_desk(tmp_path)
    for kind, text in re.findall(r"^```(bash|python)\n(.*?)```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        code, err = run_block(kind, text, desk)
        assert code == 0, err
        assert "Traceback" not in err
