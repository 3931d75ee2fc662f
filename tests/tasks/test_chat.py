"""Conversations: which turns are learned, what is refused by name, what a record or a setting tells the template."""

import json
import re
import warnings

import pytest
from chat_models import byte_tokenizer, rendered

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.tasks import Encoder, Example, Task
from seekr_cl.tasks.chat_template import ChatSettings
from seekr_cl.tasks.keys import DataWarning

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Of three roles, with a block of thinking that only the last turn has, and tools.
RICH = (
    "{% if tools %}<|tools|>{% for t in tools %}{{ t | tojson }}{% endfor %}<|end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% if loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}"
    "<|end|>\n{% elif m.role in ('user', 'tool') %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)


def turns(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def encoder(template=PLAIN, length=1000, special=None, **settings):
    return Encoder(byte_tokenizer(template, special), length, chat=ChatSettings(**settings))


def example(messages, **more):
    return Example("", "", messages=tuple(messages), source="f row 2", **more)


def learnt(template, messages, **settings):
    shown = encoder(template, **settings).show(example(messages))
    return [shown.text[begin:end] for begin, end in shown.learnt]


def load(tmp_path, *rows):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Task.load(path).train


FIVE = turns("a", "b", "c", "d", "e", "f")


def test_all_turns_are_learnt_or_the_last():
    assert learnt(PLAIN, FIVE) == ["b<|end|>", "d<|end|>", "f<|end|>"]
    assert learnt(PLAIN, FIVE, train_on="last") == ["f<|end|>"]


def test_labels_are_the_answers_and_nothing_else():
    one = encoder()
    encoded, tokenizer = one.encode(example(FIVE)), one._tokenizer
    assert tokenizer.decode(encoded.input_ids) == rendered(PLAIN, FIVE)
    assert [tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.spans] == ["b<|end|>", "d<|end|>", "f<|end|>"]
    assert encoded.completion_start == encoded.spans[-1][0]
    assert encoded.learnable == 6


def test_white_space_that_the_tokenizer_has_as_a_token_is_no_end_of_a_turn():
    one = encoder(special=("<|end|>", "\n", "<|user|>", "<|assistant|>", "b"))
    shown = one.show(example(FIVE))
    assert [shown.text[begin:end] for begin, end in shown.learnt] == ["b<|end|>", "d<|end|>", "f<|end|>"]


def test_a_turn_of_weight_0_is_shown_and_not_learnt(tmp_path):
    messages = [dict(turn) for turn in FIVE]
    messages[1]["weight"], messages[3]["weight"] = 0, 1
    (one,) = load(tmp_path, {"messages": messages})
    shown = encoder().show(one)
    assert [shown.text[begin:end] for begin, end in shown.learnt] == ["d<|end|>", "f<|end|>"]
    assert shown.text == rendered(PLAIN, FIVE)


@pytest.mark.parametrize("weight", [0.5, True, "0", -1])
def test_other_weights_are_refused(weight, tmp_path):
    messages = [*turns("a"), {"role": "assistant", "content": "b", "weight": weight}]
    with pytest.raises(DataError, match=r"row 1: message 2: 'weight' must be 0 \(not learned\) or 1"):
        load(tmp_path, {"messages": messages})


def test_nothing_to_learn_is_refused(tmp_path):
    silent = [*turns("a"), {"role": "assistant", "content": "b", "weight": 0}]
    with pytest.raises(DataError, match="row 1: every assistant message has weight 0"):
        load(tmp_path, {"messages": silent})
    messages = [*turns("a", "b", "c"), {"role": "assistant", "content": "d", "weight": 0}]
    with pytest.raises(DataError, match=r"the last message has weight 0.*train_on: all"):
        encoder(train_on="last").encode(example(messages))


@pytest.mark.parametrize("key", ["train", "mask", "wieght", "loss"])
def test_a_key_of_a_message_that_no_one_reads_is_refused_by_name(key):
    messages = [*turns("a"), {"role": "assistant", "content": "b", key: False}]
    with pytest.raises(DataError, match=f"f row 2: message 2: key '{key}' would be ignored"):
        encoder().encode(example(messages))
    reads = PLAIN.replace("{{ m.content }}", f"{{{{ m.{key} }}}}{{{{ m.content }}}}")
    assert learnt(reads, messages) == ["Falseb<|end|>"]


@pytest.mark.parametrize("role", ["human", "developer", "function", "system"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_role_that_the_template_passes_over_is_named(role, place):
    messages = turns("hi", "calling", "42", "It is 42")  # the text stands in another message too
    messages[place] |= {"role": role}
    with pytest.raises(DataError, match=f"f row 2: message {place + 1}: the chat template passes over .*'{role}'"):
        encoder(RICH).encode(example(messages))


def test_tools_calls_and_results():
    schema = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "Warm?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7"}, {"role": "assistant", "content": "No."},
    ]  # fmt: skip
    shown = encoder(RICH).show(example(messages, tools=schema))
    spans = [shown.text[begin:end] for begin, end in shown.learnt]
    assert spans == ['<call>weather {"city": "Oslo"}</call><|end|>', "<think></think>No.<|end|>"]
    assert shown.text.startswith("<|tools|>" + json.dumps(schema[0]))
    with pytest.raises(DataError, match="passes over tool call 'weather'"):
        encoder(PLAIN).encode(example(messages))
    with pytest.raises(DataError, match="tool 1: the chat template passes over the tools, such as 'weather'"):
        encoder(PLAIN).encode(example(turns("a", "b"), tools=schema))
    only = encoder(RICH)
    assert only.reference(example(messages[:2])) == 'weather {"city": "Oslo"}'  # its marks are special tokens


def test_a_tools_column_may_be_text(tmp_path):
    schema = [{"type": "function", "function": {"name": "weather"}}]
    row = {"messages": turns("a", "b"), "tools": json.dumps(schema), "chat_template_kwargs": {"enable_thinking": False}}
    (one,) = load(tmp_path, row)
    assert (one.tools, one.template_kwargs) == ((schema[0],), {"enable_thinking": False})
    for key, bad in {"tools": "[", "chat_template_kwargs": "x"}.items():
        with pytest.raises(DataError, match=f"row 1: '{key}' is text, but invalid JSON"):
            load(tmp_path, row | {key: bad})
    for key, bad in {"tools": {"a": 1}, "chat_template_kwargs": [1]}.items():
        with pytest.raises(DataError, match=f"row 1: '{key}' must be"):
            load(tmp_path, row | {key: bad})


def test_what_the_template_is_told_comes_from_the_settings_and_over_them_from_the_record():
    prompt = encoder(RICH).render(example(turns("a", "b")))[0]
    off = encoder(RICH, template_kwargs={"enable_thinking": False})
    assert off.render(example(turns("a", "b")))[0] == prompt + "<think></think>"
    assert learnt(RICH, turns("a", "b")) == ["<think></think>b<|end|>"]
    shown = off.show(example(turns("a", "b")))
    assert shown.text[slice(*shown.learnt[0])] == "b<|end|>"
    own = example(turns("a", "b"), template_kwargs={"enable_thinking": True})
    assert off.render(own)[0] == prompt


@pytest.mark.parametrize("key", ["enable_thinkng", "reasoning_effort"])
def test_an_option_that_the_template_does_not_read_is_refused(key):
    close = "did you mean 'enable_thinking'" if key == "enable_thinkng" else ""
    for one, more in (
        (encoder(RICH, template_kwargs={key: False}), {}),
        (encoder(RICH), {"template_kwargs": {key: False}}),
    ):
        with pytest.raises(DataError, match=f"^f row 2: chat_template_kwargs: '{key}' would be ignored.*{close}"):
            one.encode(example(turns("a", "b"), **more))


@pytest.mark.parametrize("key", ["tokenize", "add_generation_prompt", "continue_final_message", "messages"])
def test_an_option_that_the_library_sets_is_refused(key):
    with pytest.raises(DataError, match=f"^f row 2: chat_template_kwargs: '{key}' is set by the library"):
        encoder(RICH).encode(example(turns("a", "b"), template_kwargs={key: True}))
    with pytest.raises(ConfigError, match=f"chat_template_kwargs: '{key}' is set by the library"):
        ChatSettings(template_kwargs={key: True})


def test_named_templates_go_by_their_purpose():
    one = encoder(RICH)
    tokenizer, schema = one._tokenizer, ({"type": "function", "function": {"name": "weather"}},)
    tokenizer.chat_template = {"rag": RICH, "tool_use": RICH}
    with pytest.raises(
        DataError, match=r"f row 2: .* variants \(rag, tool_use\) and none is named 'default'; set chat_t"
    ):
        Encoder(tokenizer, 1000).encode(example(turns("a", "b")))
    assert Encoder(tokenizer, 1000).show(example(turns("a", "b"), tools=schema)).text.startswith("<|tools|>")
    tokenizer.chat_template = {"default": PLAIN, "tool_use": RICH}
    told = {"template_kwargs": {"enable_thinking": False}}  # one of them reads it
    assert Encoder(tokenizer, 1000).show(example(turns("a", "b"), **told)).text == rendered(PLAIN, turns("a", "b"))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("{{ raise_exception('No, thanks') }}", r"refuses the messages \(No, thanks\); change them as it says"),
        ("{{ 'a' | nofilter }}", r"is broken \(No filter named 'nofilter'.*set chat_template"),
        ("{% for m in messages %}", "is broken .*set chat_template"),
        ("{{ 'a' + 1 }}", r"cannot write the messages \(TypeError: .*set chat_template"),
        ("{{ messages[0].author.name }}", r"cannot write the messages \(UndefinedError: .*leave out"),
    ],
)
def test_who_is_at_fault_is_said(fault, said):
    with pytest.raises(DataError, match=f"^f row 2: the chat template {said}"):
        encoder(fault + PLAIN).encode(example(turns("a", "b")))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_goes_by_the_name_that_the_template_reads(key):
    messages = [*turns("a"), {"role": "assistant", "content": "b", key: "because"}]
    assert learnt(RICH, messages) == ["<think>because</think>b<|end|>"]
    assert learnt(RICH.replace("reasoning_content", "thinking"), messages) == ["<think>because</think>b<|end|>"]


@pytest.mark.parametrize(("key", "place"), [("reasoning_content", 1), ("name", 0)])
def test_what_a_template_does_not_write_is_said_once(key, place):
    messages = turns("a", "b")
    messages[place][key] = "Somewhat"
    one = encoder(PLAIN)
    with pytest.warns(DataWarning, match=f"^f row 2: message {place + 1}: the chat .* does not write '{key}'"):
        one.encode(example(messages))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.encode(example([*messages, *messages]))


@pytest.mark.parametrize("end", ["<|end|>", "<eos>"])
@pytest.mark.parametrize("key", ["content", "reasoning_content"])
def test_an_answer_that_holds_its_end_is_refused(end, key):
    messages = turns("a <eos> <|end|>", "b", "c", "d")
    assert learnt(RICH, messages) == ["b<|end|>", "<think></think>d<|end|>"]
    messages[3][key] = f"x{end}y"
    with pytest.raises(DataError, match=f"f row 2: message 4: '{key}' holds '{re.escape(end)}', at which an answer en"):
        encoder(RICH).encode(example(messages))


def test_parts_are_one_text_where_the_template_reads_texts_and_stay_parts_where_it_reads_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    parts += [{"role": "assistant", "content": [{"type": "text", "text": "c"}]}]
    shown = encoder().show(example(parts))
    assert shown.text == rendered(PLAIN, turns("ab", "c"))
    reads = PLAIN.replace("{{ m.content }}", "{% for p in m.content %}({{ p.text }}){% endfor %}")
    assert learnt(reads, parts) == ["(c)<|end|>"]
    assert encoder(reads).show(example(parts)).text == rendered(reads, parts)
    assert learnt(reads, turns("a", "b")) == ["(b)<|end|>"]  # and a text is one part


def test_a_part_that_is_no_text_is_refused(tmp_path):
    messages = [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}, *turns("", "b")[1:]]
    with pytest.raises(DataError, match="row 1: message 1 content: part 1 is of type 'image'"):
        load(tmp_path, {"messages": messages})


@pytest.mark.parametrize("header", ["<|assistant|>", "assistant: ", "<|assistant|>\n"])
def test_a_template_that_does_not_say_whose_turn_it_is(header):
    template = PLAIN.partition("{% if add_generation")[0].replace(
        "<|{{ m.role }}|>", f"{{% if m.role == 'assistant' %}}{header}{{% else %}}<|user|>{{% endif %}}"
    )
    one = encoder(template, special=("<|user|>", "<|end|>", "<|assistant|>"))
    prompt, _ = one.render(example(turns("a", "b")))
    assert prompt.endswith(header)
    shown = one.show(example(turns("a", "b")))
    assert shown.text[slice(*shown.learnt[0])] == "b<|end|>"
    assert shown.text[: shown.learnt[0][0]] == prompt


def test_a_think_block_that_the_prompt_opens_and_the_conversation_closes():
    opened = RICH.replace("<|assistant|>{% if enable", "<|assistant|><think>\n{% if enable")
    spaced = RICH.replace("{{ m.reasoning_content or '' }}</think>", "\n{{ m.reasoning_content or '' }}\n</think>\n")
    spaced = spaced.replace("<|assistant|>{% if enable", "<|assistant|><think>\n{% if enable")
    assert learnt(opened, turns("a", "b")) == ["</think>b<|end|>"]
    assert learnt(spaced, turns("a", "b", "c", "d")) == ["b<|end|>", "\n</think>\nd<|end|>"]
    unclosed = PLAIN.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    with pytest.raises(DataError, match=r"f row 2: the chat template ends its prompt with '<think>'.*chat_template"):
        encoder(unclosed).encode(example(turns("a", "b")))


def test_a_token_over_the_border_is_split_as_the_prompt_is_when_the_model_is_asked(make_tokenizer):
    tokenizer = make_tokenizer()  # merges ":B"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoded = Encoder(tokenizer, 100).encode(example(turns("B", "B")))
    merged = tokenizer.convert_tokens_to_ids(":B")
    prompt = tokenizer("user:B;assistant:", add_special_tokens=False)["input_ids"]
    assert merged in prompt
    assert encoded.input_ids[: encoded.completion_start] == prompt
    assert tokenizer.decode(encoded.input_ids[slice(*encoded.spans[0])]) == "B;"


@pytest.mark.parametrize("length", range(8, 30))
def test_a_long_conversation_loses_its_left_and_no_part_of_an_answer_is_learnt(length):
    one = encoder(length=length)
    encoded = one.encode(example(FIVE))
    whole = encoder().encode(example(FIVE)).input_ids
    assert len(encoded.input_ids) <= length
    bos = one._tokenizer.bos_token_id
    assert encoded.input_ids[0] == bos
    assert encoded.input_ids[1:] == whole[1 + encoded.prompt_tokens_cut :]
    spans = [one._tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.spans]
    assert spans == ["b<|end|>", "d<|end|>", "f<|end|>"][-len(spans) :]
    assert (len(spans) == 3) == (encoded.prompt_tokens_cut <= 5)
    shown = one.show(example(FIVE))
    assert [shown.text[a:b] for a, b in shown.learnt] == spans


def test_bos_stands_once_however_a_prompt_was_rendered(make_tokenizer):
    tokenizer = make_tokenizer(front=True)
    for prompt in ("<s>ab", "ab"):
        encoded = Encoder(tokenizer, 50).encode(Example(prompt, "x"))
        assert encoded.input_ids == Encoder(tokenizer, 50).encode(Example("ab", "x")).input_ids
        assert Encoder(tokenizer, 50).encode_prompt(Example(prompt, "")).count(0) == 1
        assert Encoder(tokenizer, 4).encode(Example(prompt, "x")).input_ids[:2] == [0, *tokenizer("b").input_ids[1:]]
    assert Encoder(tokenizer, 50).show(Example("ab", "x")).text == "<s>abx</s>"


def test_a_completion_that_ends_a_turn_gets_no_second_end():
    one = encoder()
    encoded = one.encode(Example("<|user|>a<|end|>\n<|assistant|>", "b<|end|>"))
    assert one._tokenizer.decode(encoded.input_ids[slice(*encoded.spans[0])]) == "b<|end|>"


def test_a_template_with_a_date_has_one_date():
    dated = "{{ strftime_now('%d %b %Y') }}" + PLAIN
    assert encoder(dated).render(example(turns("a", "b")))[0].startswith("26 Jul 2024")
    assert encoder(dated, date="2025-02-03").render(example(turns("a", "b")))[0].startswith("03 Feb 2025")
    with pytest.raises(ConfigError, match="template_date: 'today' is not a date"):
        ChatSettings(date="today")


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("4", "4"),
        (" 4", " 4"),
        ("<think>It adds.</think>4", "4"),
        ("It adds.\n</think>\n\n4", "4"),
        ("<think>a</think>b<think>c</think>4", "4"),
        ("<think>It adds and adds", ""),
    ],
)
def test_the_score_sees_the_answer_without_its_think_block(written, answer):
    assert encoder(RICH).reader.read(written) == answer


def test_thinking_that_the_prompt_opened_and_nobody_closed_is_no_answer():
    assert encoder(RICH).reader.read("It adds", "<|assistant|><think>\n") == ""
