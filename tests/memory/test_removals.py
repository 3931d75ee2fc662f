"""Nothing is removed but what this program made and can show that it made."""

import ast
import os
from pathlib import Path

import pytest

import seekr_cl
from seekr_cl.system import removal

SOURCE = Path(seekr_cl.__file__).parent
REMOVES = {"unlink", "rmdir", "rmtree", "remove", "removedirs", "rename", "TemporaryDirectory", "move"}
OF_MODULES = {"os", "shutil", "tempfile"}


def removing_calls(text: str) -> list[str]:
    """Calls and references that take something from the disk, whoever they are called on."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in OF_MODULES:
            found += [alias.name for alias in node.names if alias.name in REMOVES]
        elif isinstance(node, ast.Attribute) and node.attr in REMOVES:
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            # ``remove`` is a list's too, and a hook's; ``rename`` and ``move`` only take somebody's name away.
            if node.attr in ("unlink", "rmdir", "rmtree", "removedirs", "TemporaryDirectory") or owner in OF_MODULES:
                found.append(ast.unparse(node))
    return found


def test_no_other_module_removes_anything() -> None:
    found = {
        str(path.relative_to(SOURCE)): calls
        for path in SOURCE.rglob("*.py")
        if path != Path(removal.__file__) and (calls := removing_calls(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    ["shutil.rmtree(x)", "partial(shutil.rmtree, x)", "Path(x).unlink()", "x.rmdir()", "os.remove(x)", "os.unlink(x)",
     "from os import remove", "from shutil import rmtree as gone", "os.removedirs(x)", "shutil.move(x, y)",
     "tempfile.TemporaryDirectory()", "(a / b).unlink(missing_ok=True)"],
)  # fmt: skip
def test_the_search_finds(text: str) -> None:
    assert removing_calls(text)


def made(folder: Path, *files: str) -> Path:
    removal.make_folder(folder)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_without_the_mark_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.tex").write_text("mine")
    assert not removal.remove_made(tmp_path / "thesis")
    (tmp_path / "thesis" / removal.MARKER).write_text("{}")
    assert not removal.remove_made(tmp_path / "thesis")
    assert below(tmp_path / "thesis") == [removal.MARKER, "a.tex"]


def test_a_folder_being_made_goes(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "a", "b/c")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a").write_text("mine")
    (folder / "link").symlink_to(tmp_path / "mine")
    assert removal.remove_made(folder)
    assert below(tmp_path) == ["mine", "mine/a"]


def test_of_a_folder_that_is_whole_the_listed_files_go(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "a", "b/c", "edited", "swapped", "d/e")
    removal.list_content(folder)
    (folder / "b/mine").write_text("mine")
    (folder / "edited").write_text("edited by me")
    (folder / "swapped").unlink()
    (tmp_path / "swapped").write_text("swapped")
    (folder / "swapped").symlink_to(tmp_path / "swapped")
    (folder / "d/e").unlink()
    (folder / "d").rmdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/e").write_text("d/e")
    (folder / "d").symlink_to(tmp_path / "other")
    assert not removal.remove_made(folder)
    assert below(folder) == ["b", "b/mine", "d", "edited", "swapped"]
    assert (tmp_path / "other/e").exists()
    assert (tmp_path / "swapped").exists()


@pytest.mark.parametrize("name", ["../mine", "b/../../mine", "/tmp/x"])
def test_a_list_reaches_nothing_outside(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path / "x", "a")
    (tmp_path / "mine").write_text("a")
    removal.list_content(folder)
    marker = folder / removal.MARKER
    marker.write_text(marker.read_text().replace('"a"', f'"{name}"'))
    removal.remove_made(folder)
    assert (tmp_path / "mine").exists()
    assert (folder / "a").exists()


def test_a_link_to_a_marked_folder_is_not_followed(tmp_path: Path) -> None:
    made(tmp_path / "x", "a")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert not removal.remove_made(tmp_path / "link")
    assert below(tmp_path / "x") == [removal.MARKER, "a"]


def test_given_away(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "a")
    removal.give_away(folder)
    assert not removal.remove_made(folder)
    assert below(folder) == ["a"]


def test_only_the_unfinished_of_one_place_goes(tmp_path: Path) -> None:
    place = tmp_path / "x.tar"
    made(removal.unfinished_folder(place), "a")
    (tmp_path / ".x.tar.abcd_123.seekr").write_text("half")
    stay = [".x.tar.abcd1234", ".x.tar.abcd1234.swp", ".y.tar.abcd1234.seekr", "x.tar.abcd1234.seekr", ".x.tar.seekr"]
    for name in stay:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".x.tar.00000000.partial").mkdir()
    (tmp_path / ".x.tar.00000000.partial/mine").write_text("mine")
    removal.remove_unfinished(place)
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, ".x.tar.00000000.partial"])


def test_known_names_alone(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    (tmp_path / "c").write_text("mine")
    assert not removal.remove_known(folder, ["a", "../c", "missing"])
    assert below(tmp_path) == ["c", "x", "x/b"]
    assert removal.remove_known(folder, ["b"])
