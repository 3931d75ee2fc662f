"""Pages and rules that a script can check."""

import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import grimp

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_settings_page_is_up_to_date():
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        import settings_page
    finally:
        sys.path.pop(0)
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), "run recipes/settings_page.py"


def test_paths_that_are_named_are_there():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks" / "results").rglob("*.md")]
    texts = [*pages, *SOURCES, *(ROOT / "tests").rglob("*.py")]
    made = {"src/seekr_cl/methods/fading.py", "benchmarks/results/small_preset.json"}
    named = {
        (text.relative_to(ROOT).as_posix(), path)
        for text in texts
        for path in re.findall(
            r"(?<![\w/.-])((?:src/seekr_cl|tests|docs|benchmarks|recipes|examples)/[\w/-]+(?:\.(?:py|md|sh|yaml|json|png))?)",
            text.read_text(encoding="utf-8"),
        )
    }
    assert len(named) > 50
    assert {(text, path) for text, path in named if path not in made and not (ROOT / path).exists()} == set()


def test_files_stay_small():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not [path for path, length in lengths.items() if length > 500]
    assert median(lengths.values()) <= 200


def test_nothing_is_unpickled():
    # torch.load is a pickle unless it says weights_only.
    found = [
        path for path in SOURCES if re.search(r"\bimport (pickle|dill|cloudpickle)\b|torch\.load\(", path.read_text())
    ]
    assert found == []


def test_no_module_imports_the_package_it_lies_in():
    # `make lint` holds layers and finds circles among siblings, which a module and the __init__ above it are not:
    # importing that one is a circle as soon as it names the module.
    graph = grimp.build_graph("seekr_cl")
    upward = [
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if module.startswith(f"{imported}.")
    ]
    assert upward == []


def test_help_names_every_method():
    from seekr_cl.cli.main import build_parser
    from seekr_cl.methods import METHODS

    learn = next(action for action in build_parser()._actions if action.dest == "command").choices["learn"]
    text = next(action.help for action in learn._actions if action.dest == "method")
    assert text.removeprefix("one of ").removesuffix(" (see seekr methods)").split(", ") == [
        name for name, method in METHODS.items() if method.__module__.startswith("seekr_cl.")
    ]


def test_help_does_not_wait_for_torch():
    code = "import sys, seekr_cl.cli.main as m; m.build_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shared_data_stays_outside():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [name for name in tracked if "stories260K" in name or name.endswith((".npz", ".bin"))]


PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
OTHERS_FILES = {"re_eval.py", "my_method.py", "src/seekr_cl/methods/fading.py"}
"""Files of other projects, and of the reader's own, that the pages name."""


def test_pages_name_files_that_exist():
    places = [ROOT / name for name in ("src", "tests", "benchmarks", "recipes", "examples")]
    known = {f"/{path.relative_to(ROOT)}" for place in places for path in place.rglob("*.py")}
    named = [(page.name, name) for page in PAGES for name in re.findall(r"`([\w/]+\.py)\b", page.read_text())]
    gone = [one for one in named if not any(path.endswith(f"/{one[1]}") for path in known)]
    assert [one for one in gone if one[1] not in OTHERS_FILES] == []


def test_pages_link_to_what_exists():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text())]
    made = {"methods.md", "commands.md", "results.md"}  # by recipes/docs_site.py, in the site alone
    assert [(page.name, link) for page, link in links if link not in made and not (page.parent / link).exists()] == []
