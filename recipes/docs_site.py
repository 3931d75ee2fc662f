"""What `mkdocs build` asks while it makes the site: pages made from the code, and links that leave docs/.

Every method's page text is its docstring, every command's its parser's help; ``benchmarks/results`` joins the site.
"""

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_OUTSIDE = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]*)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made here and those of the results."""
    from mkdocs.structure.files import File

    made = {"methods.md": methods_page(), "commands.md": commands_page(), "results.md": results_page()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in (".md", ".png"):
            name = f"results/{path.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links into the repository become links into the site, or plain text where the site has no such page."""
    return _OUTSIDE.sub(lambda found: _inside(page.file.src_uri, *found.groups("")), markdown)


def _inside(page: str, text: str, target: str, anchor: str) -> str:
    folder = RESULTS / Path(page).relative_to("results").parent if page.startswith("results/") else None
    path = ((folder or (ROOT / "docs" / page).parent) / target).resolve()
    up = "../" * page.count("/")
    if path.is_relative_to(RESULTS) and path.suffix in (".md", ".png"):
        return f"[{text}]({up}results/{path.relative_to(RESULTS).as_posix()}{anchor})"
    if path.is_relative_to(ROOT / "docs"):
        return f"[{text}]({up}{path.relative_to(ROOT / 'docs').as_posix()}{anchor})"
    return text if text.startswith("`") else f"{text} (`{path.relative_to(ROOT).as_posix()}`)"


def methods_page() -> str:
    """Every method: its docstring, paper, what it needs, and where its settings are."""
    from seekr_cl.methods import METHODS

    parts = ["# Methods\n\n`method: NAME` in a file, `--method NAME` on a command line. Written from the code.\n"]
    for name, method in METHODS.items():
        if not method.__module__.startswith("seekr_cl."):
            continue
        paper, module = method.paper, inspect.getdoc(inspect.getmodule(method)) or ""
        parts.append(
            f"## {name}\n\n{plain(module.splitlines()[0])}\n\n{plain(inspect.getdoc(method))}\n\n"
            f"[{paper.title}]({paper.url}), {paper.authors}. In the code: `{method.__module__}`.\n"
        )
    return "\n".join(parts)


def plain(docstring: str | None) -> str:
    """A docstring's prose as Markdown: double backticks and cross-references become code."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", docstring or "").replace("``", "`")
    return re.sub(r"\n(Args|Attributes|Returns|Raises):\n.*", "", text, flags=re.DOTALL)


def commands_page() -> str:
    """Every command's help, as it is printed."""
    from seekr_cl.cli.main import build_parser

    parts = ["# Commands\n\nWhat `seekr COMMAND --help` prints. Written from the parser.\n"]
    for name, parser in _commands(build_parser(), "seekr"):
        parts.append(f"## {name}\n\n```text\n{_help(parser)}\n```\n")
    return "\n".join(parts)


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, inner in action.choices.items():
            yield from _commands(inner, f"{name} {word}")


def _help(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)  # type: ignore[assignment]
    return parser.format_help().strip()


def results_page() -> str:
    """What is measured, with each page's first line."""
    lines = ["# Results\n\nEach page has its command, versions, seeds and machine.\n"]
    for path in sorted(RESULTS.rglob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        lines.append(f"- [{title}](results/{path.relative_to(RESULTS).as_posix()})")
    return "\n".join(lines) + "\n"
