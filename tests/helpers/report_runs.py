"""Run folders for reports: a real one that was learned, and one whose data would harm whoever shows it."""

import html.parser
import json
from pathlib import Path
from typing import Any

from made_runs import make_run

from seekr_cl.system.files import write_json
from seekr_cl.system.run_record import RECORD, append_event
from seekr_cl.tasks import Example, Task

HOSTILE = [
    "<script>window.harmed = 1</script>",
    "</script><img src=x onerror='window.harmed = 2'>",
    '" autofocus onfocus="window.harmed = 3',
    "{{ 7 * 191 }}{% raw %}<!-- --><![CDATA[ ]]>",
    "javascript:window.harmed = 4",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "safe \u202etxt.exe\u202c \u2066hidden\u2069 \u200bnothing\ufeff",
    "a\x00b\x01c\x7fd\x85e\ufffe",
    "x" * 30_000,
    "עברית עם english ועוד",
    "\ud83d and \udc00 alone",
    "line\r\nline\u2028line\u2029",
    "&lt;b&gt; &amp;#60; &#x3c;",
]
"""Texts that a page or a terminal might obey, hide or break on."""
ACTIVE = "".join(map(chr, [*range(9), 11, 12, 13, *range(14, 32), *range(127, 160), 0x2028, 0x2029, 0xFEFF, 0xFFFE]))
ACTIVE += "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def hostile_task(name: str, texts: list[str] | None = None) -> Task:
    examples = [Example(f"{number} {text}", text) for number, text in enumerate(texts or HOSTILE) if text.isprintable()]
    # What UTF-8 cannot say is no text of any file.
    examples += [Example(f"{text} ?", f"{text}!") for text in texts or HOSTILE if not _lone(text)]
    return Task(name, examples, test=examples)


def _lone(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def hostile_run(folder: Path, method: str = "seekr", seed: int = 0) -> Path:
    """A run over tasks whose names and texts are hostile; it forgets, so that its answers are on the page."""
    names = ["<script>window.harmed = 5</script>", "b\u202egnp.\x1b[2J", "plain"]
    run = make_run(folder, method, seed, 0.2, [hostile_task(name) for name in names])
    ledger = json.loads((run / "run.json").read_text(encoding="utf-8"))
    write_json(run / "run.json", ledger | {"machine": HOSTILE[1], "model": HOSTILE[0], "versions": {HOSTILE[2]: "1"}})
    for event in record_events(names, HOSTILE[1]):
        append_event(run / RECORD, event)
    return run


def record_events(tasks: list[str], command: str = "x") -> list[dict[str, Any]]:
    """What a run over these tasks writes down: ten steps a task, a second each, evaluations of four seconds."""
    now = 1_000.0
    events: list[dict[str, Any]] = [
        {"event": "begin", "time": now, "kind": "run", "method": "seekr", "tasks": tasks, "work": [10.0] * len(tasks),
         "tests": 40, "command": ["seekr", "run", command], "folder": "/somewhere"}
    ]  # fmt: skip

    def add(seconds: float, event: str, **values: Any) -> None:
        nonlocal now
        now += seconds
        events.append({"event": event, "time": now, **values})

    def evaluate(number: int, task: str) -> None:
        add(0, "phase", phase="evaluate", task=task, number=number, total=40, done=0)
        add(4, "progress", done=40, total=40)
        add(0, "scores", number=number, scores=dict.fromkeys(tasks, 50.0))

    evaluate(0, "base")
    for number, task in enumerate(tasks, 1):
        add(0, "phase", phase="load", task=task, number=number)
        add(1, "phase", phase="train", task=task, number=number)
        replayed = [0, 1] * 5 if number > 1 else []
        add(0, "training", task=task, number=number, steps=10, done=0, replayed=replayed, bin_steps=1)
        for step in range(1, 11):
            values = {
                "step": step,
                "loss": 1.0 / step,
                "loss_task": 1.0 / step,
                "loss_new_total": 1.0,
                "share_task": 0.6,
            }
            if number > 1:
                values |= {"loss_attention": 0.1 / step, "share_attention": 0.4}
            add(1, "log", values=values)
            add(0, "progress", done=step, total=10, tokens_per_second=100.0)
        add(0, "phase", phase="score", task=task, number=number)
        add(1, "phase", phase="write", task=task, number=number)
        add(1, "progress", done=0, total=0)
        evaluate(number, task)
    add(0, "end", how="done")
    return events


class Page(html.parser.HTMLParser):
    """A page's elements, attributes and texts.

    Attributes:
        tags: every element with its attributes.
        texts: of all elements but scripts and styles.
    """

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.tags)
