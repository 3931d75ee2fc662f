"""How commands end: the verdict as a table and a sentence."""

from seekr_cl.cli.output import out
from seekr_cl.report.verdict import Verdict
from seekr_cl.report.verdict_table import verdict_table
from seekr_cl.system.visible import one_line


def print_verdict(verdict: Verdict) -> None:
    """Prints the table, what must be known of it, and the sentence last."""
    console = out()
    if verdict.lines:
        console.print(verdict_table(verdict))
    for note in verdict.notes:
        console.print(f"note: {one_line(note, None)}", soft_wrap=True)
    console.print(verdict.sentence, soft_wrap=True)
