"""The line that ``seekr evaluate`` shows while it works, and the few that it prints where nobody looks on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from seekr_cl.distributed import collectives
from seekr_cl.evaluation import Engine
from seekr_cl.tasks import Task
from seekr_cl.training.following import following
from seekr_cl.training.tracker import Tracker


class Answered:
    """Counts answers of tasks that are scored one after the other, and tells a tracker.

    Args:
        tracker: whom.
        tasks: what is scored, in order.
        engine: what answers; its speed says what was answered now, and not by a former call.
    """

    def __init__(self, tracker: Tracker, tasks: Sequence[Task], engine: Engine) -> None:
        self._tracker, self._tasks, self._engine = tracker, tasks, engine
        self._place, self._done, self._seconds = 0, 0, engine.speed.seconds
        self._begin()

    def __call__(self, count: int) -> None:
        """So many more prompts have their answer, of this process; the others' are taken to be as many."""
        total, speed = len(self._tasks[self._place].test), self._engine.speed
        self._done = min(total, self._done + count * collectives.world_size())
        if speed.seconds == self._seconds:
            # A former call had answered them: they tell nothing of this one's speed.
            self._begin()
        self._seconds = speed.seconds
        rate = speed.new_tokens / speed.seconds if speed.seconds else None
        self._tracker.progress(self._done, total, rate, self._done == total)
        if self._done == total and self._place + 1 < len(self._tasks):
            self._place, self._done = self._place + 1, 0
            self._begin()

    def _begin(self) -> None:
        task = self._tasks[self._place]
        self._tracker.number = self._place + 1
        self._tracker.phase("evaluate", task.name, len(task.test), self._done)


@contextmanager
def shown(tasks: Sequence[Task], quiet: bool) -> Iterator[Tracker]:
    """A tracker of an evaluation, which shows it until the block ends.

    Args:
        tasks: what will be scored, in order.
        quiet: show nothing.
    """
    tracker = Tracker("none" if quiet else "auto")
    with following(tracker):
        names, prompts = [task.name for task in tasks], [len(task.test) for task in tasks]
        tracker.begin("evaluation", tasks=names, work=prompts, tests=0)
        tracker.phase("load")
        yield tracker
