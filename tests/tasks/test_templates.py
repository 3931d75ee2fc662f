"""A model's chat template comes to an end, whatever it is, and writes what it wrote before if it does."""

import time
from typing import Any

import pytest

from seekr_cl.errors import DataError
from seekr_cl.tasks import Encoder, Example

ENDLESS = {
    "ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "lists": "{% set a = [0] * 3000 %}{% for x in a %}{% for y in a %}{% endfor %}{% endfor %}",
    "loops in lists": "{{ range(99999) | map('string') | list | length }}{% for a in range(9999) %}"
    "{{ range(99999) | list | length }}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "letters": "{{ 'x' * 3000000000 }}",
    "letters of letters": "{{ ('x' * 3000000) * 3000 }}",
    "list": "{{ ([0] * 3000000000) | length }}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "adding": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "powers": "{% set n = namespace(x=10) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "format": "{{ '%3000000000d' % 1 }}",
    "format method": "{{ '{:>3000000000}'.format(1) }}",
    "format filter": "{{ '%3000000000d' | format(1) }}",
    "center": "{{ 'x' | center(3000000000) }}",
    "ljust": "{{ 'x'.ljust(3000000000) }}",
    "replace": "{% set a = 'x' * 3000000 %}{{ a.replace('x', a) }}",
    "join": "{% set a = 'x' * 3000000 %}{{ a.join(a) }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 3000 }}{% endfor %}",
    "long": "{# " + "x" * (1 << 20) + " #}",
}


def talk() -> Example:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
    return Example("", "1", messages=turns, source="f row 1")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", [(False, False)], indirect=True, ids=["bare"])
@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_template_comes_to_an_end(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    began = time.process_time()
    with pytest.raises(DataError, match=r"^f row 1: the chat template is broken \(it "):
        Encoder(tokenizer, 64).render(talk())
    # Four renderings of as many steps as are allowed take some seconds; without an end they take forever.
    assert time.process_time() - began < 60


def test_what_a_template_may_do(tokenizer: Any) -> None:
    template = (
        "{%- macro turn(m) -%}<{{ m['role'] }}>{{ m.content | trim }}{%- endmacro -%}"
        "{%- set ns = namespace(n=0) -%}"
        "{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}{{ turn(m) ~ '|' + loop.index | string }}"
        "{%- if loop.last %} {{ 2 * ns.n }}{{ '-' * 3 }}{{ 2 ** 3 }}{{ '%02d' % 5 }}{% endif -%}{%- endfor -%}"
        "{{ messages | map(attribute='role') | join(',') }}{{ messages | tojson }}{{ 'ab'.replace('a', 'c') }}"
        "{%- for m in messages recursive %}{% if m is mapping %}{{ loop.revindex }}{% endif %}{% endfor -%}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "one"}]
    plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for _ in range(3):
        prompt, completion = Encoder(tokenizer, 64).render(talk())
        assert (prompt, completion) == (plain, "1")
