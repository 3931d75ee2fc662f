"""What the papers' own metrics change: the same answers by the metrics used before and by those used now.

python benchmarks/score_changes.py SHARED/data > benchmarks/results/score_changes.md

Answers are real references with seeded noise of the kinds that models make: words dropped and inserted, another case or
a full stop, other endings, sentences in another order, literals written out, nothing at all. Prints the ten largest
changes of a task's score, of each metric and kind of answer the largest, and the mean change of each metric.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from seekr_cl.evaluation.metrics import get_metric
from seekr_cl.evaluation.published import plain_literals

OLD_AND_NEW = {
    "trace/MeetingBank": ("rouge_l", "rouge_l_trace"),
    "trace_reasoning/MeetingBank": ("rouge_l", "rouge_l_trace"),
    "trace/Py150": ("edit_similarity", "edit_similarity_py150"),
    "trace_reasoning/Py150": ("edit_similarity", "edit_similarity_py150"),
    "trace/20Minuten": ("sari", "sari_trace"),
    **{f"superni/task{number}": ("rouge_l", "rouge_l_trace") for number in ("1572", "1290", "748", "511", "002")},
    **{f"superni/task{number}": ("rouge_l", "rouge_l_sapt") for number in ("1510", "639", "073", "591")},
    **{f"superni/task{number}": ("first_word", "exact_match") for number in ("363", "875")},
    **{
        f"long_sequence/{task}": ("exact_match", "exact_match_normalised")
        for task in ("agnews", "yahoo", "amazon", "dbpedia", "SST-2")
    },
}


def words_lost(text: str, drawn: random.Random) -> str:
    """Half of the words dropped, a third inserted from the text itself."""
    words = text.split()
    made = []
    for word in words:
        made += [word] if drawn.random() < 0.5 else []
        made += [drawn.choice(words)] if drawn.random() < 1 / 3 else []
    return " ".join(made)


def turned_round(text: str, drawn: random.Random) -> str:
    """The sentences in reverse order."""
    parts = [part.strip() for part in text.split(".") if part.strip()]
    return ". ".join(reversed(parts)) + "." if len(parts) > 1 else text


def other_endings(text: str, drawn: random.Random) -> str:
    """An s behind every longer word."""
    return " ".join(f"{word}s" if word.isalpha() and len(word) > 3 else word for word in text.split())


NOISE: dict[str, Callable[[str, random.Random], str]] = {
    "words lost and inserted": words_lost,
    "sentences turned round": turned_round,
    "other endings": other_endings,
    "literals written out": lambda text, _: plain_literals(text),
    "capitalised, full stop": lambda text, _: text.strip().capitalize().rstrip(".") + ".",
    "and a reason": lambda text, _: f"{text.strip()} because of the text",
    "nothing": lambda text, _: "",
}


def main(data: Path) -> None:
    """Prints the tables as Markdown."""
    found = []
    for place, (old, new) in OLD_AND_NEW.items():
        rows = json.loads((data / place / "test.json").read_text(encoding="utf-8"))
        prompts, references = [row["prompt"] for row in rows], [[row["answer"]] for row in rows]
        for kind, change in NOISE.items():
            drawn = random.Random(0)
            answers = [change(row["answer"], drawn) for row in rows]
            before, after = (
                sum(get_metric(name).score(answers, references, prompts)) / len(rows) for name in (old, new)
            )
            found.append((after - before, place, kind, old, new, before, after))
    found.sort(key=lambda one: -abs(one[0]))
    largest = {(one[4], one[2]): one for one in reversed(found)}
    print("| task | answers | before | now | change |\n|---|---|---|---|---|")
    for difference, place, kind, old, new, before, after in sorted(largest.values(), key=lambda one: -abs(one[0]))[:10]:
        print(f"| {place} | {kind} | {before:.1f} `{old}` | {after:.1f} `{new}` | {difference:+.1f} |")
    print("\n| metric | tasks x kinds of answers | changed | mean change | mean of its size |\n|---|---|---|---|---|")
    for new in dict.fromkeys(names[1] for names in OLD_AND_NEW.values()):
        own = [one[0] for one in found if one[4] == new]
        changed, mean, size = sum(abs(one) > 0.05 for one in own), sum(own) / len(own), sum(map(abs, own)) / len(own)
        print(f"| `{new}` | {len(own)} | {changed} | {mean:+.2f} | {size:.2f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
