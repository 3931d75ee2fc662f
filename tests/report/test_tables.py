"""What the tables say, cell by cell."""

import io

import pytest
from rich.console import Console

from seekr_cl.evaluation import ScoreMatrix
from seekr_cl.report import comparison_table, score_table


def printed(table, width: int = 160) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(table)
    return file.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] or [""]


def row(lines: list[str], name: str) -> list[str]:
    return next(found for found in map(cells, lines) if found[0] == name)


def matrix(tasks: list[str], base: bool = True, joint: bool = False, **more) -> ScoreMatrix:
    """Row i, column j holds ij.5, e.g. 12.5 after the first task on the second."""
    rows = [[10 * i + j + 0.5 for j in range(1, len(tasks) + 1)] for i in range(1, 2 if joint else len(tasks) + 1)]
    scores = [float(j) for j in range(len(tasks))] if base else None
    return ScoreMatrix(tasks, ["f1"] * len(tasks), scores, rows, joint=joint, **more)


def test_every_score_stands_where_it_belongs():
    lines = printed(score_table(matrix(["x", "y", "z"])))
    assert row(lines, "after") == ["after", "f1", "f1", "f1"]
    assert ["", "x", "y", "z"] in map(cells, lines)
    assert row(lines, "base") == ["base", "0.0", "1.0", "2.0"]
    assert row(lines, "x") == ["x", "11.5", "12.5", "13.5"]
    assert row(lines, "y") == ["y", "21.5", "22.5", "23.5"]
    assert row(lines, "z") == ["z", "31.5", "32.5", "33.5"]
    # OP (31.5 + 32.5 + 33.5)/3; BWT (20 + 10)/2, over three 10; best earlier 21.5 and 22.5; FWT (11.5 + 21.5)/2.
    assert lines[0].strip() == "OP 32.5 BWT 15.0 BWT/N 10.0 forgetting -10.0 FWT 16.5"


def test_what_does_not_exist_is_a_dash():
    lines = printed(score_table(ScoreMatrix(["x", "y"], ["f1", "f1"], None, [[1.0, 2.0]])))
    assert lines[0].strip() == "OP 1.0 BWT - BWT/N - forgetting - FWT -"
    assert not any("base" in line for line in lines)
    lines = printed(score_table(ScoreMatrix(["x", "y"], ["f1", "f1"])))
    assert lines[0].strip() == "OP - BWT - BWT/N - forgetting - FWT -"


def test_all_tasks_at_once_are_one_row():
    lines = printed(score_table(matrix(["x", "y"], joint=True)))
    assert row(lines, "all") == ["all", "11.5", "12.5"]


def test_probes_are_summed_up_below():
    lines = printed(score_table(matrix(["x", "y"], extra={"sums": [9.0, 8.0], "[b]": [1.0, 2.0], "later": []})))
    text = " ".join(line.strip() for line in lines)
    assert text.endswith("probes, mean from base to last: 5.0 5.0 probes, last: sums 8.0, [b] 2.0")


ODD = ["[red]", "[/]", "$x$", ":smile:", "back\\", "[link=http://x]y"]


@pytest.mark.parametrize("width", [100, 160])
def test_names_are_not_markup(width):
    lines = printed(score_table(matrix(ODD)), width)
    for number, name in enumerate(ODD, 1):
        assert row(lines, name)[1] == f"{10 * number + 1}.5"
        assert sum(name in line for line in lines) == 2  # above its column and before its row
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("count", [2, 6, 7, 8, 9, 15])
def test_no_number_is_lost_however_many_tasks(count, width):
    tasks = [f"task{n:02d}_with_a_name_of_thirty_c" for n in range(1, count + 1)]
    full = ScoreMatrix(
        tasks,
        ["exact_match"] * count,
        [100.0] * count,
        [[100.0 - i - j / 10 for j in range(count)] for i in range(count)],
    )
    lines = printed(score_table(full), width)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert lines[0].strip().startswith("OP ")
    assert "FWT" in lines[0]
    for scores in full.rows:
        wanted = [f"{score:.1f}" if count <= 8 else f"{score:.0f}" for score in scores]
        assert any(line.replace("│", " ").split()[-count:] == wanted for line in lines), wanted
    if count > 6:
        flat = "".join(text.split())
        assert all(f"{number}{task}(exact_match)" in flat for number, task in enumerate(tasks, 1))


def test_comparison():
    results = {
        "seqft": {"op": 15.66, "bwt": -71.0, "base": None, "seconds": 59.6, "memory_bytes": 0},
        "[red]seekr": {"op": 68.0, "bwt": None, "base": 12.34, "seconds": 61.2, "memory_bytes": 1234567},
    }
    lines = printed(comparison_table(results), 100)
    assert row(lines, "method") == ["method", "OP", "BWT", "base skills kept", "seconds", "memory bytes"]
    assert row(lines, "seqft") == ["seqft", "15.7", "-71.0", "-", "60", "0"]
    assert row(lines, "[red]seekr") == ["[red]seekr", "68.0", "-", "12.3", "61", "1,234,567"]
