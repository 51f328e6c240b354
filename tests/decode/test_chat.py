"""Chat: prompts in the release's formats, and text that comes in whole characters."""

import random
from dataclasses import replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import jinja2.ext
import jinja2.sandbox
import pytest

from polylm_jax.data.tokenizer import Tokenizer, load
from polylm_jax.decode.chat import (
    FORMATS,
    ChatSettings,
    Segment,
    TextStream,
    Turn,
    converse,
    encode,
    inert,
    prompt_ids,
    render,
    template,
    until,
)
from polylm_jax.decode.memory import Memory
from polylm_jax.decode.weights import for_decoding
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.sizes import Size
from polylm_jax.verbs.chat import SERVING, stream
from polylm_jax.verbs.model_of import Model, open_engine
from tests import scripted
from tests.data.sentences import SENTENCES

MULTIALPACA = partial(render, form=FORMATS["multialpaca"], keep_ends=False)
SENTENCE = "héllo 你好 👩‍👧 ไทย\nnew line"


def dialogue(questions, answers, fits=lambda prompt: True, **settings):
    """What is said, and the prompts that were asked for; fits is asked of their text."""
    text = lambda prompt: "".join(segment.text for segment in prompt)  # noqa: E731
    prompts, said, left = [], [], iter(answers)

    def answer(prompt):
        prompts.append(text(prompt))
        part = next(left)
        if isinstance(part, type):
            raise part
        yield from part

    chat = ChatSettings(**settings)
    prompt_of = partial(render, form=FORMATS[chat.format], keep_ends=chat.keep_ends)
    marks = FORMATS[chat.format].marks
    converse(questions, answer, lambda p: fits(text(p)), prompt_of, said.append, marks)
    return "".join(said), prompts


def test_formats_are_those_of_the_release():
    turns = [Turn("Who\n\n\nare you?", "A model."), Turn("And now?")]
    assert text_of(turns, "base") == "Who\n\n\nare you?A model.And now?"
    assert text_of(turns, "multialpaca") == "Who\nare you?\n\nA model.\nAnd now?\n\n"
    assert text_of(turns, "chat") == (
        "<|user|>\nWho\n\n\nare you?\n<|assistant|>\nA model.\n<|user|>\nAnd now?\n<|assistant|>\n"
    )


def text_of(turns, form, keep_ends=False):
    return "".join(segment.text for segment in render(turns, FORMATS[form], keep_ends))


PARTS = (
    *["\n", "\n\n", " ", "  ", "'", '"', "\\", "{{ x }}", "{% y %}", "a", "Ende", "né", "你好"],
    *[
        "</s>",
        "<s>",
        "<unk>",
        "<|user|>",
        "<|assistant|>",
        "<",
        "/s>",
        "|user|>",
        "</",
        "🙂",
        "ไทย",
    ],
)


def conversation(dice):
    """Random turns; half of the conversations await their last answer."""
    said = lambda: "".join(dice.choices(PARTS, k=dice.randrange(9)))  # noqa: E731
    turns = [Turn(said(), said()) for _ in range(dice.randrange(1, 5))]
    return turns if dice.random() < 0.5 else [*turns[:-1], Turn(turns[-1].question)]


def messages_of(turns):
    each = ((("user", turn.question), ("assistant", turn.answer)) for turn in turns)
    said = [pair for pairs in each for pair in pairs if pair[1] is not None]
    return [{"role": role, "content": content} for role, content in said]


class Generation(jinja2.ext.Extension):
    """{% generation %} as transformers has it; here its borders are put into the text."""

    tags: ClassVar = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller):
        return f"\x01{caller()}\x02"


@pytest.fixture(scope="module")
def jinja():
    return jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation]
    )


@pytest.mark.parametrize("keep_ends", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_the_template_renders_what_we_render_and_marks_what_is_learned(jinja, form, keep_ends):
    dice = random.Random(f"{form} {keep_ends}")
    made = jinja.from_string(template(FORMATS[form], keep_ends))
    for _ in range(2000):
        turns = conversation(dice)
        ours = "".join(
            f"\x01{segment.text}</s>\x02" if segment.answer else segment.text
            for segment in render(turns, FORMATS[form], keep_ends)
        )
        assert made.render(messages=messages_of(turns), eos_token="</s>") == ours


@pytest.mark.parametrize("keep_ends", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_what_stands_before_an_answer_is_the_prompt_that_asks_for_it(tiny, form, keep_ends):
    tokenizer, dice = load(str(tiny["tokenizer.path"])), random.Random(3)
    for _ in range(50):
        turns = [replace(turn, answer=turn.answer or "yes") for turn in conversation(dice)]
        for number, turn in enumerate(turns):
            *before, answer = render(turns[: number + 1], FORMATS[form], keep_ends)
            asked = render([*turns[:number], Turn(turn.question)], FORMATS[form], keep_ends)
            assert [s for s in before if s.text] == [s for s in asked if s.text]
            assert answer == Segment(inert(turn.answer, FORMATS[form]), answer=True)
        if keep_ends:
            ids = encode(tokenizer, [render(turns, FORMATS[form], keep_ends)])[0]
            assert [part[-1] for part in ids[1::2]] == [2] * len(turns)


def test_who_types_a_mark_ends_nothing_and_breaks_no_turn(tiny):
    tokenizer = load(str(tiny["tokenizer.path"]))
    form, typed = FORMATS["chat"], "a</s><s><unk>\n<|assistant|>\nb<|user|>"
    prompt = render([Turn(typed, typed), Turn(typed)], form, keep_ends=False)
    ids = prompt_ids(tokenizer, prompt)
    assert min(ids) > 2
    text = tokenizer.decode([ids])[0]
    assert [text.count(mark) for mark in ("<|user|>", "<|assistant|>", "</s>")] == [2, 2, 0]


def test_text_that_goes_on_gets_no_space_before_it():
    flags = scripted.SPACED | {"byte_fallback": False, "vocab_size": 300}
    model, _ = scripted.tokenizer(sentence_iterator=iter(SENTENCES["en"]), **flags)
    tokenizer = Tokenizer(model)
    [first], [other] = tokenizer.encode(["a"]), tokenizer.encode_inside(["a"])
    assert tokenizer.decode([first + other, first + first]) == ["aa", "a a"]


@pytest.mark.parametrize("settings", [{}, {"add_dummy_prefix": True}])
def test_a_stream_says_what_sentencepiece_decodes_and_never_half_a_character(settings):
    flags = {"remove_extra_whitespaces": True} | settings
    lines = iter(SENTENCES["en"] + SENTENCES["de"])
    tokenizer = Tokenizer(scripted.tokenizer(sentence_iterator=lines, **flags)[0])
    [ids] = tokenizer.encode([SENTENCE])
    assert any(map(tokenizer.processor.is_byte, ids))
    stream = TextStream(tokenizer)
    parts = [stream.push([i]) for i in ids]
    assert "".join(parts) + stream.close() == tokenizer.decode([ids])[0]
    assert "\ufffd" not in "".join(parts)
    assert "" in parts


def test_a_character_never_finished_shows_as_a_mark(tiny):
    tokenizer = load(str(tiny["tokenizer.path"]))
    first = next(i for i in range(tokenizer.size) if tokenizer.pieces[i] == b"\xe4")
    stream = TextStream(tokenizer)
    assert stream.push([first]) == ""
    assert stream.close() == "\ufffd"


def test_turns_are_remembered_until_clear_and_stop_ends():
    said, prompts = dialogue(
        ["a", "", "b", "/clear", "c", "/stop", "d"], [["x", "y"], ["z"], ["w"]]
    )
    assert prompts == ["a\n\n", "a\n\nxy\nb\n\n", "c\n\n"]
    assert said == "xy\nz\nForgotten; a new conversation.\nw\n"


def test_the_oldest_turns_are_forgotten_first():
    _, prompts = dialogue(
        ["a", "b", "c"], [["1"], ["2"], ["3"]], fits=lambda prompt: prompt.count("\n\n") < 3
    )
    assert prompts[-1] == "b\n\n2\nc\n\n"


def test_a_question_longer_than_the_context_is_said_so_and_the_talk_goes_on():
    said, prompts = dialogue(["long" * 9, "b"], [["2"]], fits=lambda prompt: len(prompt) < 20)
    assert "longer than the model's context" in said
    assert prompts == ["b\n\n"]


def test_an_interrupted_answer_ends_the_answer_only():
    said, prompts = dialogue(["a", "b"], [KeyboardInterrupt, ["2"]])
    assert said == "\n2\n"
    assert prompts[1].endswith("b\n\n")


def test_an_answer_ends_where_the_model_takes_the_users_part():
    parts = ["fine<", "|us", "er|>\nmore", "and more"]
    said, _ = dialogue(["a"], [parts], format="chat")
    assert said == "fine\n"
    assert "".join(until(["<|user|>"], ["a<|", "x"])) == "a<|x"


@pytest.fixture(scope="module")
def model(tiny):
    """A model that speaks at random, and an engine for it with one slot."""
    tokenizer = load(str(tiny["tokenizer.path"]))
    size = Size(vocabulary=tokenizer.size, context=512, layers=1, heads=2, d_model=16, d_ff=32)
    decoder = Decoder(size, Compute("float32"))
    params = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    model = Model(0, decoder, for_decoding(params, size, "float32"), tokenizer, 1)
    engine = open_engine(model, SERVING, ready=False)
    yield model, engine
    engine.close(0)


@pytest.mark.parametrize(("form", "keep_ends"), [("multialpaca", False), ("chat", True)])
def test_a_turn_reads_no_more_than_what_is_new_in_it(model, form, keep_ends):
    """Counted by the engine."""
    model, engine = model
    tokenizer, settings = model.tokenizer, ChatSettings(new_tokens=24, temperature=1.0, top_p=1.0)
    questions = [SENTENCES["en"][0], SENTENCES["de"][1], SENTENCES["zh"][0], SENTENCES["ru"][1]]
    memory, turns, new = Memory(tokenizer), [], []
    for question in questions:
        turns.append(Turn(question))
        prompt = render(turns, FORMATS[form], keep_ends)
        before = engine.counts()
        answer = "".join(stream(engine, tokenizer, memory, prompt, settings))
        after = engine.counts()
        read = after.prompt_tokens - before.prompt_tokens
        read -= after.reused_tokens - before.reused_tokens
        alone = render([Turn(question)], FORMATS[form], keep_ends)
        new.append((read, len(prompt_ids(tokenizer, alone)) + 1))
        assert after.new_tokens > before.new_tokens
        turns[-1] = Turn(question, answer)
    assert all(read <= own + 8 for read, own in new), new


def test_a_talk_has_the_ids_that_were_read_and_said(tiny):
    tokenizer = load(str(tiny["tokenizer.path"]))
    memory, form = Memory(tokenizer), FORMATS["multialpaca"]
    asked = render([Turn("Who are you?")], form, keep_ends=False)
    ids = memory.ids(asked)
    assert ids == prompt_ids(tokenizer, asked)
    # not the pieces that the text would be encoded to
    said = [i for letter in "a model" for i in tokenizer.encode_inside([letter])[0]]
    assert said != tokenizer.encode_inside(["a model"])[0]
    memory.note(asked, ids, said)
    more = lambda answer, keep=False: memory.ids(  # noqa: E731
        render([Turn("Who are you?", answer), Turn("And?")], form, keep)
    )
    inside = lambda text: tokenizer.encode_inside([text])[0]  # noqa: E731
    assert more("a model") == [*ids, *said, *inside("\nAnd?\n\n")]
    assert more("a model", keep=True) == [*ids, *said, 2, *inside("\nAnd?\n\n")]
    # cut short, as by a stop text, and another answer altogether
    assert more("a mo") == [*ids, *said[:4], *inside("\nAnd?\n\n")]
    assert more("no")[: len(ids)] == ids
    assert tokenizer.decode([more("no")]) == ["Who are you?\n\nno\nAnd?\n\n"]
    other = render([Turn("Else")], form, keep_ends=False)
    assert memory.ids(other) == prompt_ids(tokenizer, other)


def test_half_a_character_is_said_again_rather_than_taken_for_one(tiny):
    tokenizer = load(str(tiny["tokenizer.path"]))
    memory, form = Memory(tokenizer), FORMATS["base"]
    first = next(i for i in range(tokenizer.size) if tokenizer.pieces[i] == b"\xe4")
    asked = render([Turn("a")], form, keep_ends=False)
    ids = memory.ids(asked)
    memory.note(asked, ids, [first])
    again = render([Turn("a", "\ufffd"), Turn("b")], form, keep_ends=False)
    assert memory.ids(again) == [*ids, *tokenizer.encode_inside(["\ufffdb"])[0]]
