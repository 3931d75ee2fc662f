"""A stream that is killed with SIGKILL, anywhere, and resumed is the stream that was never killed, bit for bit.

``make torture KILLS=200`` kills at every passing of every point and at many more random moments.
"""

import json
import random
from collections.abc import Iterator

import pytest
from killing import KILLED, Killer, killer, named_points

RANDOM_KILLS = 5
# Rare points are met in full by the torture; here each is met once or twice.
OF_SEEKR = sorted(named_points())
OF_OTHERS = ["learn.training", "model.renamed"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    with killer(tmp_path_factory.mktemp("kills")) as one:
        yield one


def killed_and_resumed(server: Killer, case: str, fault: str = "", after: float | None = None) -> None:
    folder = server.fresh()
    code = server.ask(folder, case, fault, after)["code"]
    if fault:
        assert code == KILLED, f"{fault} was never passed"
    assert server.ask(folder, case)["code"] == 0
    assert server.differences(folder, case) == []


def middle(server: Killer, case: str, name: str) -> str:
    """The occurrence in the middle of the stream, where there are tasks on both sides."""
    return f"{name}:{server.whole(case)[1][name] // 2 + 1}"


def test_the_same_stream_twice_is_the_same(server: Killer) -> None:
    """What is compared depends on nothing but the settings, so a difference is the kill's."""
    folder = server.fresh()
    server.ask(folder, "seekr")
    assert server.differences(folder, "seekr") == []


def test_every_point_in_the_source_is_passed(server: Killer) -> None:
    assert set(server.whole("seekr")[1]) == named_points()


@pytest.mark.parametrize("name", OF_SEEKR)
def test_seekr_killed_at_every_point(server: Killer, name: str) -> None:
    killed_and_resumed(server, "seekr", middle(server, "seekr", name))


@pytest.mark.parametrize("case", ["derpp", "official", "replay", "ewc", "lora", "learn"])
@pytest.mark.parametrize("name", OF_OTHERS)
def test_others_killed(server: Killer, case: str, name: str) -> None:
    killed_and_resumed(server, case, middle(server, case, name))


def test_a_first_task_killed_before_its_memory(server: Killer) -> None:
    """A model that is written by a process that has not trained has the same config too."""
    killed_and_resumed(server, "seekr", "model.renamed:1")


def test_killed_at_random_moments_until_it_is_done(server: Killer) -> None:
    """One stream that is killed again and again, each time a little later after its beginning."""
    draw, folder = random.Random(7), server.fresh()
    seconds = server.whole("seekr")[2]
    for _ in range(RANDOM_KILLS):
        server.ask(folder, "seekr", after=draw.uniform(0.05, 0.6) * seconds)
    assert server.ask(folder, "seekr")["code"] == 0
    assert server.differences(folder, "seekr") == []


def test_killed_in_the_first_commit(server: Killer) -> None:
    """Half a first generation is no memory; the folder was empty when the learning began."""
    for fault in ("file.renamed:13", "file.written:16"):
        folder = server.fresh()
        assert server.ask(folder, "learn", fault)["code"] == KILLED
        # Otherwise other files come before it by now, and the numbers above want mending.
        assert json.loads((folder / "memory/manifest.json").read_text())["current"] is None
        assert server.ask(folder, "learn")["code"] == 0
        assert server.differences(folder, "learn") == []


def test_killed_at_every_file_of_the_last_commit(server: Killer) -> None:
    """Texts, signals, importance, generation and manifest; none leaves anything half written behind."""
    last = server.whole("learn")[1]["file.written"]
    for number in range(last - 4, last + 1):
        killed_and_resumed(server, "learn", f"file.written:{number}")


def test_killed_when_all_is_written(server: Killer) -> None:
    """The same command once more tidies up and learns nothing."""
    killed_and_resumed(server, "learn", "learn.cleared:1")
