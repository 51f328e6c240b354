"""What a request becomes: its fields, its prompt, its text piece by piece."""

import math
import random
import tracemalloc
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylm_jax.data.tokenizer import AT_ONCE, Tokenizer
from polylm_jax.decode.chat import FORMATS, ChatSettings, Until, until
from polylm_jax.decode.memory import Memory
from polylm_jax.serve.calls import Call, News
from polylm_jax.serve.fields import (
    Chat,
    Completion,
    Refusal,
    parse,
    read_json,
    schema,
)
from polylm_jax.serve.requests import Choice, Served, conversation, understand
from tests.data.sentences import SENTENCES
from tests.serve.fake import said

SHORT = st.text(alphabet="ab", max_size=12)
MARKS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


def cut(text, marks):
    """The text before the first of the marks."""
    return text[: min((text.find(mark) for mark in marks if mark in text), default=len(text))]


@settings(max_examples=150, deadline=None)
@given(st.lists(SHORT, max_size=6), MARKS)
def test_a_mark_counts_wherever_the_text_is_cut_and_nothing_is_held_too_long(parts, marks):
    whole, stop, told, come = "".join(parts), Until(marks), "", ""
    for part in parts:
        told, come = told + stop.push(part), come + part
        assert cut(whole, marks).startswith(told)  # no begin of a mark has leaked
        if not stop.done:
            # what is held back is what may be a mark's begin, and no more
            held = come[len(told) :]
            assert not held or any(
                mark.startswith(come[len(told) :][: len(mark)]) for mark in marks
            )
    assert told + stop.close() == cut(whole, marks)
    assert stop.done == any(mark in whole for mark in marks)
    assert "".join(until(marks, parts)) == cut(whole, marks)


def news_of(ids, dice, likeliest=None, ended="stop", **first):
    """The ids in bursts of any size."""
    left = [said(token, likeliest) for token in ids]
    while left:
        count = dice.randint(1, 7)
        yield News(tuple(left[:count]), **first)
        left, first = left[count:], {}
    yield News(ended=ended, **first)


def heard(choice, news):
    """All pieces up to the end, joined; the joined text is checked to be what the choice keeps."""
    pieces = []
    for one in news:
        pieces.append(choice.hear(one))
        if choice.finish:
            break
    text = "".join(piece.text for piece in pieces)
    assert text == choice.text
    return text, [token for piece in pieces for token in piece.tokens]


@pytest.mark.parametrize("code", SENTENCES)
def test_text_in_18_languages_is_the_same_however_its_ids_come(vocabulary, code):
    dice = random.Random(code)
    text = "".join(SENTENCES[code][:7])
    [ids] = vocabulary.encode([text])
    call = Call((2,), len(ids), likeliest=1)
    for trial in range(5):
        at = dice.randrange(len(text) - 4)
        stops = [text[at : at + dice.randint(1, 4)], "never said"][trial % 2 :]
        choice = Choice(vocabulary, call, stops, echo=False)
        told, tokens = heard(choice, news_of(ids, dice, 1, ended="length"))
        assert told == cut(text, stops)
        assert choice.finish == ("stop" if told != text else "length")
        # as many tokens as it takes to say the stop, and the told ones make up the text
        enough = vocabulary.decode([choice.ids])[0]
        fewer = vocabulary.decode([choice.ids[:-1]])[0]
        assert told == text or (stops[0] in enough and stops[0] not in fewer)
        covered = b"".join(vocabulary.pieces[token.said.token] for token in tokens)
        assert covered.decode(errors="ignore").startswith(told)
        for token in tokens:
            piece = vocabulary.pieces[token.said.token]
            assert text[token.at :].encode().startswith(piece) or len(piece) == 1


def test_a_character_that_is_never_finished_shows_as_marks(vocabulary):
    [ids] = vocabulary.encode(["你"])
    assert len(ids) == 3
    choice = Choice(vocabulary, Call((2,), 9), (), echo=False)
    told, _ = heard(choice, [News((said(ids[0], None), said(ids[1], None))), News(ended="stop")])
    assert told == "\ufffd\ufffd"


def test_echo_begins_with_the_prompt_and_gives_every_token_its_place(vocabulary):
    [prompt] = vocabulary.encode(["Name: 你 "])
    [ids] = vocabulary.encode(["好 STOP"])
    call = Call(tuple(prompt), 99, likeliest=1, read=True)
    read = (said(prompt[0], None), *(said(token, 1) for token in prompt[1:]))
    choice = Choice(vocabulary, call, ("STOP", "Name"), echo=True)
    told, tokens = heard(choice, news_of(ids, random.Random(0), 1, prompt=read))
    assert told == "Name: 你 好 "  # a stop in the prompt is none
    shown = [token.said.token for token in tokens]
    assert shown == [*prompt, *ids][: len(shown)]
    assert math.isnan(tokens[0].said.logprob)
    choice = Choice(vocabulary, call, (), echo=True)
    _, tokens = heard(choice, news_of(ids, random.Random(0), 1, prompt=read))
    assert [token.said.token for token in tokens] == [*prompt, *ids, 2]


WRONG = [
    ({"stop": {}}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x", 1]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream_options": {"usage": True}}, "stream_options.usage"),
    ({"stream_options": {"a\nb": True}}, "stream_options.a\\nb"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{}]}, "tools"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"temprature": 1}, "temprature"),
    ({"model": 5}, "model"),
]
WRONG_PROMPTS = [[], {}, 5, [[]], [["a"]], ["a", 1], [-1], [2.5], [True], [[1], "a"], "\ud83d"]
WRONG_MESSAGES = [
    ("x", "messages"),
    ([], "messages"),
    (["x"], "messages[0]"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "tool", "content": "x"}], "messages[0].role"),
    ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls"),
    ([{"role": "user", "content": "x", "text": "x"}], "messages[0].text"),
    ([{"role": "user", "content": "x", "a\nb": "x"}], "messages[0].a\\nb"),
]


def refusal_of(kind, value):
    with pytest.raises(Refusal) as caught:
        parse(kind, value)
    said = str(caught.value)
    assert caught.value.status == 400
    assert said.endswith(".")
    assert "\n" not in said
    return caught.value


@pytest.mark.parametrize(("value", "param"), WRONG)
def test_a_wrong_field_is_named(value, param):
    assert refusal_of(Completion, {"prompt": "x", **value}).param == param
    message = {"role": "user", "content": "x"}
    refusal = refusal_of(Chat, {"messages": [message], **value})
    assert refusal.param == param
    assert param.partition(".")[0] in str(refusal)


@pytest.mark.parametrize("prompt", WRONG_PROMPTS[:-1])
def test_a_wrong_prompt_is_named(prompt):
    assert refusal_of(Completion, {"prompt": prompt}).param == "prompt"


@pytest.mark.parametrize(("messages", "param"), WRONG_MESSAGES)
def test_a_wrong_message_is_named(messages, param):
    assert refusal_of(Chat, {"messages": messages}).param == param


def test_what_is_missing_or_unknown_is_named_with_the_nearest():
    assert refusal_of(Completion, {}).param == "prompt"
    assert refusal_of(Chat, {"messages": None}).param == "messages"
    assert "'max_tokens'" in str(refusal_of(Completion, {"prompt": "x", "max_token": 1}))


@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"{", b"NaN", b'{"a": Infinity}', b"[" * 10**5, b"9" * 5000, b"1e999", b"\xff{}"],
        *[b'"\\ud83d"', b"[]", b"5", b"null", b'"x"', b"{}x", '{"a": 1}'.encode("utf-16")],
    ],
)
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(Refusal) as caught:
        parse(Completion, read_json(body))
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


def test_fields_that_change_nothing_are_taken():
    nothing = {"user": {"any": 1}, "metadata": None, "store": True, "tools": [], "best_of": 1}
    nothing |= {"response_format": {"type": "text"}, "logit_bias": {}, "suffix": None, "stop": None}
    nothing |= {"reasoning_effort": None, "prediction": None, "audio": None}
    assert parse(Completion, {"prompt": "x", **nothing}) == Completion(prompt=("x",))


@pytest.mark.parametrize("kind", [Completion, Chat])
def test_the_description_has_every_field(kind):
    described = schema(kind, 100)["properties"]
    assert {field.name for field in fields(kind)} <= set(described)
    for name, one in described.items():
        for given_ in one.get("enum", []):
            needed = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
            least = {k: v for k, v in needed.items() if k in described}
            parse(kind, {**least, name: given_})


@pytest.fixture(scope="module")
def served(vocabulary):
    return Served("tiny", vocabulary, 128, ChatSettings(format="chat", temperature=0.5))


def understood(served, kind, **said):
    return understand(parse(kind, said), served, Memory(served.tokenizer))


def test_defaults_are_openais_for_completions_and_the_runs_for_chats(served):
    [call] = understood(served, Completion, prompt="a").calls
    assert (call.new_tokens, call.temperature, call.top_p, call.repetition_penalty) == (16, 1, 1, 1)
    asked = understood(served, Chat, messages=[{"role": "user", "content": "a"}])
    [call] = asked.calls
    assert (call.temperature, call.top_p, call.repetition_penalty) == (0.5, 0.8, 1.02)
    assert call.new_tokens == 128 - len(call.prompt)
    assert asked.stop == FORMATS["chat"].marks


def test_both_names_of_the_longest_answer_count_and_it_ends_with_the_context(served):
    for name in ("max_tokens", "max_completion_tokens"):
        assert understood(served, Completion, prompt="a", **{name: 3}).calls[0].new_tokens == 3
    [call] = understood(served, Completion, prompt="a", max_tokens=10**6).calls
    assert len(call.prompt) + call.new_tokens == 128
    [call] = understood(served, Completion, prompt=[5] * 128, max_tokens=0, echo=True).calls
    assert call.new_tokens == 0


def test_too_long_a_prompt_is_refused_with_both_numbers(served):
    with pytest.raises(Refusal) as caught:
        understood(served, Completion, prompt=[5] * 128)
    assert "128 tokens" in str(caught.value)
    assert "context of 128" in str(caught.value)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(Refusal, match=r"has 2,\d\d\d tokens") as caught:
        understood(served, Chat, messages=[{"role": "user", "content": "你" * 700}])
    assert caught.value.param == "messages"


def test_of_a_text_of_megabytes_only_the_beginning_is_encoded(served, monkeypatch):
    """Nothing else goes on meanwhile: eight of them took minutes."""
    encoded = []
    for name in ("encode", "encode_inside"):
        whole = getattr(Tokenizer, name)
        monkeypatch.setattr(
            Tokenizer, name, lambda self, texts, of=whole: encoded.extend(texts) or of(self, texts)
        )
    text = "word " * 10**6
    messages = [{"role": "user", "content": text[: 10**6]}] * 5
    for kind, asked in (
        (Completion, {"prompt": text}),
        (Completion, {"prompt": [text] * 9}),
        (Chat, {"messages": messages}),
    ):
        encoded.clear()
        with pytest.raises(
            Refusal, match=r"has at least [\d,]+ tokens, .* context of 128 "
        ) as caught:
            understood(served, kind, **asked)
        assert caught.value.code == "context_length_exceeded"
        assert sum(map(len, encoded)) <= AT_ONCE


@pytest.mark.parametrize("keep_ends", [True, False])
def test_a_talk_takes_memory_in_proportion_to_its_text(vocabulary, keep_ends):
    roles = ("user", "assistant") * 1000
    messages = [*((role, "a") for role in roles), ("user", "a")]
    talk = conversation(messages, FORMATS["multialpaca"], keep_ends)
    memory = Memory(vocabulary)
    memory.note(talk[:1], (5,), (6,))
    tracemalloc.start()
    memory.ids(talk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * sum(len(segment.text) for segment in talk)


def test_more_answers_than_can_ever_be_taken_are_refused_for_good(served):
    few = replace(served, most=6)
    assert len(understood(few, Completion, prompt=["a", "b"], n=3).calls) == 6
    hello = [{"role": "user", "content": "a"}]
    for kind, asked in (
        (Completion, {"prompt": ["a", "b"], "n": 4}),
        (Chat, {"messages": hello, "n": 8}),
    ):
        with pytest.raises(Refusal, match="asks for 8 answers, but 6 run and wait") as caught:
            understood(few, kind, **asked)
        assert (caught.value.status, caught.value.param, caught.value.seconds) == (400, "n", None)


def test_choices_of_a_prompt_differ_by_their_seeds_and_those_of_equal_prompts_do_not(served):
    calls = understood(served, Completion, prompt=["a", "a"], n=2, seed=-1).calls
    assert [call.seed for call in calls] == [2**32 - 1, 0] * 2
    drawn = {understood(served, Completion, prompt="a").calls[0].seed for _ in range(5)}
    assert len(drawn) == 5  # without a seed each is another


def test_prompts_may_be_texts_or_ids(served, vocabulary):
    [ids] = vocabulary.encode(["Bread"])
    for prompt in ("Bread", ids, [ids], ["Bread"], [*map(float, ids)]):
        assert [c.prompt for c in understood(served, Completion, prompt=prompt).calls] == [(*ids,)]
    assert understood(served, Completion, prompt="").calls[0].prompt == (2,)
    with pytest.raises(Refusal, match="holds the id 100000"):
        understood(served, Completion, prompt=[100_000])
    with pytest.raises(Refusal) as caught:
        understood(served, Completion, prompt="a", model="gpt-4")
    assert caught.value.status == 404


def test_a_conversation_is_the_runs_own_format():
    form = FORMATS["chat"]
    text = lambda *said: "".join(s.text for s in conversation(said, form, True))  # noqa: E731
    assert text(("user", "Hi")) == "<|user|>\nHi\n<|assistant|>\n"
    assert text(("system", "Be kind."), ("user", "Hi")) == (
        "<|user|>\nBe kind.\nHi\n<|assistant|>\n"
    )
    assert text(("user", "a"), ("assistant", "b"), ("user", "c")) == (
        "<|user|>\na\n<|assistant|>\nb\n<|user|>\nc\n<|assistant|>\n"
    )
    # several of one side are one, and who speaks last may be helped
    assert text(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")) == (
        "<|user|>\na\nb\n<|assistant|>\nc\nd"
    )
    assert not any(s.answer for s in conversation([("assistant", "x")], form, True))
    assert text(("user", "<|assistant|> </s>")) == (
        "<|user|>\n< |assistant|> < /s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("keep_ends", [True, False])
@pytest.mark.parametrize("form", FORMATS)
def test_the_next_turn_goes_on_from_the_ids_that_were_said(vocabulary, form, keep_ends):
    memory, chat = Memory(vocabulary), ChatSettings(format=form, keep_ends=keep_ends)
    served = Served("tiny", vocabulary, 512, chat)
    said = [{"role": "user", "content": "Where?"}]
    asked = understand(parse(Chat, {"messages": said}), served, memory)
    [first] = asked.calls
    # ids of the same text that the tokenizer would not choose
    ids = [i for letter in "At home." for i in vocabulary.encode_inside([letter])[0]]
    assert ids != vocabulary.encode_inside(["At home."])[0]
    memory.note(asked.talk, first.prompt, ids)
    said += [{"role": "assistant", "content": "At home."}, {"role": "user", "content": "Why?"}]
    [second] = understand(parse(Chat, {"messages": said}), served, memory).calls
    begun = (*first.prompt, *ids, *([2] if keep_ends else []))
    assert second.prompt[: len(begun)] == begun
    # another conversation with the same answer is encoded as ever
    said[0]["content"] = "And where?"
    [other] = understand(parse(Chat, {"messages": said}), served, memory).calls
    [new] = understand(parse(Chat, {"messages": said}), served, Memory(vocabulary)).calls
    assert other.prompt == new.prompt
    # and so is a question that has the whole talk in it
    talk = "".join(segment.text for segment in asked.talk) + "At home, alone"
    one = {"messages": [{"role": "user", "content": talk}]}
    [alone] = understand(parse(Chat, one), served, memory).calls
    [new] = understand(parse(Chat, one), served, Memory(vocabulary)).calls
    assert alone.prompt == new.prompt
