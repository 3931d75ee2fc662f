"""The templates of 40 model families as the package trl ships them: what of a conversation is learned, or why nothing.

The right values are written down here by hand from the templates, and held against transformers' own rendering.
"""

import pytest
from chat_models import byte_tokenizer, rendered, trl_templates

from seekr_cl.errors import DataError
from seekr_cl.tasks import Encoder, Example

IM = "{}<|im_end|>"
THINK, NO_THINK, CLOSE = "<think>\n\n</think>\n\n", "\n<think></think>\n", "\n</think>\n\n"
# Name: the last turn's target, then an earlier turn's where it is another; {} is the message's text.
LEARNT: dict[str, tuple[str, ...]] = {
    "cohere": ("{}<|END_OF_TURN_TOKEN|>",),
    "cohere2": ("{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",),
    "diffusion_gemma": ("{}<turn|>",),
    "gemma": ("{}<end_of_turn>",),
    "gemma3": ("{}<end_of_turn>",),
    **dict.fromkeys(["gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"], ("{}<turn|>",)),
    # No token ends its turns: the last one gets the tokenizer's end of text, or the model would never stop.
    "glm4moe": (NO_THINK + "{}<eos>", NO_THINK + "{}"),
    "gptoss": ("<|channel|>final<|message|>{}<|return|>", "<|channel|>final<|message|>{}<|end|>"),
    "idefics3": (" {}<end_of_utterance>",),
    **dict.fromkeys(["lfm2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2"], (IM,)),
    **dict.fromkeys(["llama3", "llama3_1", "llama3_2"], ("{}<|eot_id|>",)),
    "llava_next": (" {}</s>",),
    "muse_glimmer": (" to=user<|message|>{}<|eot|>",),
    **dict.fromkeys(
        ["nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"], ("</think>" + IM,)
    ),
    **dict.fromkeys(["phi3", "phi3_5"], ("{}<|end|>",)),
    **dict.fromkeys(["qwen2_5", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl", "qwen3_5_nothink"], (IM,)),
    "qwen3": (THINK + IM, IM),
    **dict.fromkeys(["qwen3_5_think", "qwen3_6"], (CLOSE + IM, IM)),
    "qwen3_8": (CLOSE + IM,),
    "smolvlm": (" {}<end_of_utterance>",),
}
REFUSED = {
    "deepseek_r1_distill": "ends its prompt with '<think>'",  # and writes conversations without
    "deepseekv3": "ends its prompt with '<think>'",
}
NO_SYSTEM = {"gemma": "System role not supported"}
PARTS = {"idefics3", "smolvlm", "llava_next"}
"""Templates that read lists of parts and no text."""
# Templates whose earlier turns are written without the think block that their prompt opens.
REOPENED = {"qwen3_5_nothink": THINK, "qwen3_5_think": "<think>\n", "qwen3_6": "<think>\n"}
# Where the prompt ends in white space that the conversation does not have.
SPACED = {name: "\n" for name in LEARNT if name.startswith("nemotron")}
PY = "<|tool_call_start|>[weather(city='Oslo')]<|tool_call_end|><|im_end|>"
JSON = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
XML = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
CALL = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>'
TOOLS = {
    **dict.fromkeys(["diffusion_gemma", "gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"], CALL + "<|tool_response>"),
    "gemma4_v2": CALL + "<turn|>",
    "glm4moe": NO_THINK + "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
    "gptoss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
    **dict.fromkeys(["lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2"], PY),
    **dict.fromkeys(["llama3_1", "llama3_2"], '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
    "muse_glimmer": ' to=weather<|message|><atem:function_calls>\n<atem:invoke name="weather">\n'
    '<atem:parameter name="city">Oslo</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>',
    **dict.fromkeys(SPACED, f"</think>\n{XML}\n<|im_end|>"),
    **dict.fromkeys(["qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl"], JSON),
    "qwen3_5_nothink": f"{XML}<|im_end|>",
    **dict.fromkeys(["qwen3_5_think", "qwen3_6", "qwen3_8"], f"{CLOSE}{XML}<|im_end|>"),
}
"""What a call of a tool is written as; every other template passes over tools, calls or results."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}},
    },
}  # fmt: skip


def turns(*texts: str, system: str | None = None) -> list[dict]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def called(arguments) -> list[dict]:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "Warm there?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7 degrees", "name": "weather", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "No."},
    ]


def as_parts(messages):
    return [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in messages]


@pytest.fixture(scope="module")
def encoders():
    made: dict[str, tuple[str, Encoder]] = {}

    def get(name: str) -> tuple[str, Encoder]:
        if name not in made:
            template = (trl_templates() / f"{name}.jinja").read_text(encoding="utf-8")
            made[name] = template, Encoder(byte_tokenizer(template), 100_000)
        return made[name]

    return get


def example(messages, tools=None) -> Example:
    return Example("", "", messages=tuple(messages), tools=tools, source="f.jsonl row 4")


def test_every_template_of_trl_has_a_row():
    names = {path.stem for path in trl_templates().glob("*.jinja")}
    assert {name for name in names if not name.endswith("_training")} == LEARNT.keys() | REFUSED.keys()


CONVERSATIONS = {
    "one turn": turns("What is 2+2?", "It is 4."),
    "three turns": turns("What is 2+2?", "It is 4.", "And 3+3?", "That is 6.", "Why?", "Because."),
    "system": turns("What is 2+2?", "It is 4.", system="Answer briefly."),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", LEARNT)
def test_what_is_learnt_is_the_templates_own_text(name, kind, encoders):
    template, encoder = encoders(name)
    messages = CONVERSATIONS[kind]
    if kind == "system" and name in NO_SYSTEM:
        with pytest.raises(DataError, match=f"^f.jsonl row 4: the chat template refuses .*{NO_SYSTEM[name]}"):
            encoder.encode(example(messages))
        return
    shown = encoder.show(example(messages))
    plain = as_parts(messages) if name in PARTS else messages
    whole = rendered(template, plain)
    assert shown.text == whole + ("<eos>" if name == "glm4moe" else "")
    last, *other = LEARNT[name]
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    wanted = [(other or [last])[0].format(text) for text in answers[:-1]] + [last.format(answers[-1])]
    assert [shown.text[begin:end] for begin, end in shown.learnt] == wanted
    places = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
    for place, (begin, _) in zip(places, shown.learnt):
        # What comes before is the prompt as it stands when the model is asked.
        more = SPACED.get(name, REOPENED.get(name, "") if place != places[-1] else "")
        assert shown.text[:begin] + more == rendered(template, plain[:place], answer=True)
    assert_tokens(encoder, shown)


def assert_tokens(encoder, shown):
    """The labels are the learned text, and all ids together the whole text."""
    tokenizer, ids = encoder._tokenizer, shown.encoded.input_ids
    assert tokenizer.decode(ids) == shown.text
    spans = [tokenizer.decode(ids[begin:end]) for begin, end in shown.encoded.spans]
    assert spans == [shown.text[begin:end] for begin, end in shown.learnt]


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_prompt_that_conversations_do_not_begin_with_is_refused(name, kind, encoders):
    _, encoder = encoders(name)
    with pytest.raises(DataError, match=f"^f.jsonl row 4: the chat template {REFUSED[name]}.*; set chat_template to"):
        encoder.encode(example(CONVERSATIONS[kind]))


@pytest.mark.parametrize("text", [False, True], ids=["object", "json"])
@pytest.mark.parametrize("name", sorted({*LEARNT, *REFUSED}))
def test_tool_calls(name, text, encoders):
    _, encoder = encoders(name)
    one = example(called('{"city": "Oslo"}' if text else {"city": "Oslo"}), (WEATHER,))
    if name not in TOOLS:
        with pytest.raises(DataError, match=r"^f\.jsonl row 4: .*(passes over|refuses the messages|cannot write)"):
            encoder.encode(one)
        return
    shown = encoder.show(one)
    first = shown.text[slice(*shown.learnt[0])]
    assert first == TOOLS[name]
    assert "No." in shown.text[slice(*shown.learnt[1])]
    assert "7 degrees" not in first + shown.text[slice(*shown.learnt[1])]
    assert "weather" in shown.text[: shown.learnt[0][0]]  # the list of tools
    assert_tokens(encoder, shown)


REASONED = {
    "qwen3": "<think>\nIt adds.\n</think>\n\n4<|im_end|>",
    "qwen3_5_think": "It adds.\n</think>\n\n4<|im_end|>",
    "glm4moe": "\n<think>It adds.</think>\n4<eos>",
    "gptoss": "<|channel|>analysis<|message|>It adds.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
    "nemotron_3_nano": "It adds.\n</think>\n4<|im_end|>",
    "gemma4_v5": "<|channel>thought\nIt adds.\n<channel|>4<turn|>",
    "muse_glimmer": " to=self<|message|>It adds.<|eom|><|start|>assistant to=user<|message|>4<|eot|>",
    "qwen2_5": "4<|im_end|>",  # knows no reasoning
}


@pytest.mark.parametrize("name", REASONED)
def test_reasoning_is_kept_where_the_template_keeps_it_and_the_score_does_not_see_it(name, encoders):
    _, encoder = encoders(name)
    messages = turns("2+2?", "4")
    messages[1]["reasoning_content"] = "It adds."
    shown = encoder.show(example(messages))
    begin, end = shown.learnt[0]
    assert shown.text[begin:end] == REASONED[name]
    ids = shown.encoded.input_ids[slice(*shown.encoded.spans[0])][:-1]
    written = encoder._tokenizer.decode(ids, skip_special_tokens=not encoder.reader.needs_markers)
    assert encoder.reader.read(written, shown.text[:begin]) == "4"


def test_reasoning_in_every_turn(encoders):
    messages = turns("2+2?", "4", "3+3?", "6")
    for turn in messages[1::2]:
        turn["reasoning_content"] = f"Because {turn['content']}."
    for name, wanted in {
        "qwen3_8": ["Because 4.\n</think>\n\n4<|im_end|>", "Because 6.\n</think>\n\n6<|im_end|>"],
        "nemotron_3_nano": ["</think>\n4<|im_end|>", "Because 6.\n</think>\n6<|im_end|>"],
        "glm4moe": ["\n<think></think>\n4", "\n<think>Because 6.</think>\n6<eos>"],
        "qwen3": ["4<|im_end|>", "<think>\nBecause 6.\n</think>\n\n6<|im_end|>"],
    }.items():
        shown = encoders(name)[1].show(example(messages))
        assert [shown.text[begin:end] for begin, end in shown.learnt] == wanted, name


def test_where_every_prompt_has_another_history_only_the_last_turn_is_taught(encoders):
    """Qwen3 drops the reasoning before a tool's answer as soon as another question follows."""
    template, encoder = encoders("qwen3")
    messages = called({"city": "Oslo"}) + turns("Sure?", "Yes.")
    messages[1]["reasoning_content"] = "I must look."
    with pytest.raises(DataError, match=r"message 4: .*set train_on: last"):
        encoder.encode(example(messages, (WEATHER,)))
    from seekr_cl.tasks.chat_template import ChatSettings

    last = Encoder(encoder._tokenizer, 100_000, chat=ChatSettings(train_on="last"))
    shown = last.show(example(messages, (WEATHER,)))
    assert [shown.text[begin:end] for begin, end in shown.learnt] == [f"{THINK}Yes.<|im_end|>"]
    assert shown.text == rendered(template, messages, tools=[WEATHER])
