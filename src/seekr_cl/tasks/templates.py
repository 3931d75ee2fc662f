"""Chat templates run in transformers' sandbox, which keeps them from the machine; here they also come to an end.

A template is a program of whoever made the model. What it loops over and calls is counted, and whatever could make one
long text or number of a few letters is looked at before it is made.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from threading import RLock
from typing import Any

from jinja2 import nodes
from transformers.utils import chat_template_utils

MOST_STEPS = 200_000
"""Items looped over and functions called while one conversation is rendered."""
LONGEST = 4_000_000
"""Letters of a text, items of a list; also the largest number that a function may be given."""
_LARGEST_TEMPLATE = 1 << 20
_LARGEST_POWER = 1000
_WORTH = 20
"""Letters or items that a function is given and that count as one step."""
_OPERATORS = frozenset({"*", "**", "+", "%"})
_ONE_AT_A_TIME = RLock()
_COUNTED, _SHORT = "seekr_counted", "seekr_short"


class TemplateError(Exception):
    """A template that does not come to an end, or would write more than any prompt has."""


class _Budget:
    """What is left of one rendering."""

    def __init__(self) -> None:
        self.left = MOST_STEPS

    def take(self, *values: Any) -> None:
        # What a filter does with a long text or list takes as long as a loop over some of it.
        self.left -= 1 + sum(0 if isinstance(value, int) else _size(value) for value in values) // _WORTH
        if self.left < 0:
            raise TemplateError(f"it takes more than {MOST_STEPS} steps")

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.take()
            yield item


@contextmanager
def bounded(template: str | None) -> Iterator[None]:
    """Within, ``apply_chat_template`` renders a template that comes to an end; each time it begins to count anew.

    Args:
        template: the tokenizer's.

    Raises:
        TemplateError: if the template itself is too long.
    """
    if not isinstance(template, str):
        yield
        return
    if len(template) > _LARGEST_TEMPLATE:
        raise TemplateError(f"it has {len(template)} letters, too many for a template")
    with _ONE_AT_A_TIME:
        # What transformers has compiled cannot be bounded any more: 'x' * 3000000000 is made by the compiler.
        theirs = chat_template_utils._compile_jinja_template
        setattr(chat_template_utils, "_compile_jinja_template", _compiled)  # noqa: B010 - read-only to type checkers
        try:
            _compiled(template).seekr_budget.left = MOST_STEPS
            yield
        finally:
            setattr(chat_template_utils, "_compile_jinja_template", theirs)  # noqa: B010


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """A template compiled in transformers' own environment, with bounds."""
    compiled: Any = chat_template_utils._cached_compile_jinja_template("")
    environment, budget = compiled.environment, _Budget()
    call, operate = environment.call, environment.call_binop

    def counted_call(context: Any, function: Any, *args: Any, **given: Any) -> Any:
        # The sandbox wraps a text's format method.
        of = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        budget.take(of, *args, *given.values())
        _require_small(of, *args, *given.values())
        return _short(call(context, function, *args, **given))

    def bounded_operate(context: Any, operator: str, left: Any, right: Any) -> Any:
        budget.take(left, right)
        _require_result(operator, left, right)
        return operate(context, operator, left, right)

    def held(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **given: Any) -> Any:
            budget.take(*args)
            _require_small(*args, *given.values())
            return _short(function(*args, **given))

        return run

    environment.optimized, environment.concat = False, _joined
    environment.call, environment.call_binop = counted_call, bounded_operate
    environment.intercepted_binops = _OPERATORS
    environment.filters = {name: held(one) for name, one in environment.filters.items()}
    environment.filters |= {_COUNTED: budget.counted, _SHORT: _short}
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None)
    _shorten(tree)
    made = environment.make_globals(None)
    fresh: Any = environment.template_class.from_code(environment, environment.compile(tree), made, None)
    fresh.seekr_budget = budget
    return fresh


def _shorten(node: nodes.Node) -> None:
    """Has every text that is put together of others looked at: doubled forty times, it fills any memory."""
    for name, value in node.iter_fields():
        parts = value if isinstance(value, list) else [value]
        for place, part in enumerate(parts):
            if isinstance(part, nodes.Node):
                _shorten(part)
                if isinstance(part, nodes.Concat):
                    parts[place] = nodes.Filter(part, _SHORT, [], [], None, None)
        if not isinstance(value, list):
            setattr(node, name, parts[0])


def _size(value: Any) -> int:
    if isinstance(value, bool):
        return 1
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | range) else 1


def _short(value: Any) -> Any:
    if not isinstance(value, int) and _size(value) > LONGEST:
        raise TemplateError(f"it makes a text of {_size(value)} letters")
    return value


def _joined(pieces: Iterable[str]) -> str:
    total, found = 0, []
    for piece in pieces:
        total += len(piece)
        if total > LONGEST:
            raise TemplateError(f"it writes more than {LONGEST} letters")
        found.append(piece)
    return "".join(found)


def _require_small(*values: Any) -> None:
    total = 1
    for value in values:
        if isinstance(value, int) and _size(value) > LONGEST:
            raise TemplateError(f"it asks for {value:.3g} of something")
        if isinstance(value, str):
            _require_widths(value)
            total *= max(1, len(value))
    # Of a text replaced by, or joined with, another the result may be their product.
    if total > LONGEST**2:
        raise TemplateError("it makes one text of two long ones")


def _require_widths(text: str) -> None:
    """A format such as ``{:>3000000000}`` or ``%3000000000d`` is a long text in few letters."""
    if ("%" in text or "{" in text) and len(text) < _LARGEST_TEMPLATE:
        digits = 0
        for letter in text:
            digits = digits + 1 if letter.isdigit() else 0
            if digits > 6:
                raise TemplateError("it asks for a text of millions of letters")


def _require_result(operator: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        if (isinstance(right, int) and abs(right) > _LARGEST_POWER) or (numbers and _size(left) > LONGEST):
            raise TemplateError(f"it asks for the power of {right:.3g}")
    elif operator == "%" and isinstance(left, str):
        _require_widths(left)
    elif operator == "*" and not numbers and not isinstance(left, float) and not isinstance(right, float):
        if _size(left) * _size(right) > LONGEST:
            raise TemplateError(f"it makes a text of {_size(left) * _size(right):.3g} letters")
    elif operator in "*+":
        size = left.bit_length() + right.bit_length() if numbers else _size(left) + _size(right)
        if size > LONGEST:
            raise TemplateError(f"it makes something of {size:.3g}")
