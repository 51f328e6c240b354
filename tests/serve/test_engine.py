"""The engine against `generate` and `score`: many at once, as each alone; and how calls end."""

import gc
import queue
import random
import threading
import time
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.decode.sampling import HEARD, SAID, Sampling, Wishes, choose, choose_each
from polylm_jax.decode.search import generate
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.evaluation.likelihood import likelihoods
from polylm_jax.evaluation.score import Subject
from polylm_jax.model.decoder import Compute, Decoder, logits
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer, parameter_shardings
from polylm_jax.serve import engine as engine_room
from polylm_jax.serve.calls import Busy, Call
from polylm_jax.serve.engine import DeviceEngine, programs_compiled
from polylm_jax.serve.programs import widths_of
from polylm_jax.serve.settings import Serving
from polylm_jax.sizes import Size

SIZE = Size(vocabulary=96, context=64, layers=1, heads=4, d_model=32, d_ff=64)
COMPUTE = Compute("float32", prefill_chunk=16)
DECODER = Decoder(SIZE, COMPUTE, ids=90)
SERVING = Serving(slots=4, burst=4, prompt_tokens=16, queue=1000)
WAIT = 120  # seconds


@pytest.fixture(scope="module")
def trained():
    start = jax.jit(Decoder(SIZE, COMPUTE, Init(std=0.3)).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    # so that </s> comes now and then
    return params | {"embedding": params["embedding"].at[2].multiply(3)}


@pytest.fixture(scope="module")
def params(trained):
    return for_decoding(trained, SIZE, "float32")


@pytest.fixture(scope="module")
def engine(params):
    """Four slots, two of them for each of two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_room, "shares", lambda params, slots: 2)
        one = DeviceEngine(DECODER, params, SERVING)
    yield one
    one.close(0)


@pytest.fixture
def another(engine, monkeypatch):
    """Other engines on the same device, while the first one rests."""
    monkeypatch.setattr(engine_room, "Device", lambda *_: engine._device)
    opened = []

    def make(**settings):
        opened.append(DeviceEngine(DECODER, None, replace(SERVING, **settings)))
        return opened[-1]

    yield make
    for one in opened:
        one.close(0)


class Answer:
    """What is told of a call, in any thread."""

    def __init__(self, engine, prompt, new=12, **wishes):
        self.news = queue.Queue()
        call = Call(tuple(prompt), new, **{"temperature": 0.0} | wishes)
        self.number = engine.submit(call, self.news.put)

    def whole(self):
        self.all = [self.news.get(timeout=WAIT)]
        while not self.all[-1].ended:
            self.all.append(self.news.get(timeout=WAIT))
        assert self.news.empty()
        return self

    @property
    def new(self):
        return [said for news in self.all for said in news.new]

    @property
    def ids(self):
        return [said.token for said in self.new]

    @property
    def ended(self):
        return self.all[-1].ended


def ask(engine, prompts, new=12, **wishes):
    answers = [Answer(engine, prompt, new, **wishes) for prompt in prompts]
    return [answer.whole() for answer in answers]


def expected(params, prompts, limits=None, **draw):
    """What `generate` gives each; one program for all tests."""
    room = [min(16, SIZE.context - len(prompt)) for prompt in prompts]
    found = generate(DECODER, params, prompts, Sampling(16, **draw), limits=[*room], rows=24)
    limits = limits or [12] * len(prompts)
    return [ids[:limit] for ids, limit in zip(found, limits, strict=True)]


def ragged(seed, count=24, longest=52):
    dice = random.Random(seed)
    stems = [[dice.randrange(3, 90) for _ in range(30)] for _ in range(3)]
    prompts = []
    for _ in range(count):
        rest = [dice.randrange(3, 90) for _ in range(dice.randrange(1, longest - 30))]
        stem = dice.choice(stems)[: dice.choice([0, 0, 12, 30])]
        prompts.append([*stem, *rest])
    return prompts


SAMPLED = {"temperature": 1.5, "top_k": 60, "top_p": 0.95, "repetition_penalty": 1.1}


def test_all_that_come_and_go_get_what_generate_gives_each(engine, params):
    prompts = ragged(0)
    limits = [1 + i % 12 for i in range(len(prompts))]
    draws = [SAMPLED if i % 3 else {} for i in range(len(prompts))]
    before = engine.counts()
    answers = [
        Answer(engine, prompt, limit, seed=2**32 - 3, **draw)
        for prompt, limit, draw in zip(prompts, limits, draws, strict=True)
    ]
    greedy = expected(params, prompts, limits)
    sampled = expected(params, prompts, limits, seed=2**32 - 3, **SAMPLED)
    for number, (answer, limit) in enumerate(zip(answers, limits, strict=True)):
        ids = (sampled if draws[number] else greedy)[number]
        assert answer.whole().ids == ids
        assert answer.ended == ("length" if len(ids) == limit else "stop")
    counts = engine.counts()
    assert {answer.ended for answer in answers} == {"length", "stop"}
    assert counts.new_tokens - before.new_tokens == sum(len(answer.ids) for answer in answers)
    assert counts.prompt_tokens - before.prompt_tokens == sum(map(len, prompts))
    reused = counts.reused_tokens - before.reused_tokens
    assert reused == sum(answer.all[0].reused for answer in answers) > 30
    assert (counts.running, counts.waiting) == (0, 0)


def test_a_text_goes_on_up_to_the_end_of_the_context(engine, params):
    prompts = [[5 + i] * length for i, length in enumerate((63, 62, 50, 61, 48))]
    limits = [64 - len(prompt) for prompt in prompts]
    answers = [Answer(engine, *call) for call in zip(prompts, limits, strict=True)]
    found = [answer.whole().ids for answer in answers]
    assert found == expected(params, prompts, limits)
    [full] = ask(engine, [[5] * 64], new=0)
    assert (full.ids, full.ended) == ([], "length")


def test_the_bits_are_the_same_whatever_else_goes_on(another):
    """Log-probabilities of answers alone and in company, of prompts that share nothing."""
    dice = random.Random(5)
    prompts = [[dice.randrange(3, 90) for _ in range(3 + 5 * n)] for n in range(8)]
    engine = another()
    alone = [ask(engine, [prompt], likeliest=2)[0].new for prompt in prompts]
    engine = another(slots=4)
    together = [answer.new for answer in ask(engine, prompts, likeliest=2)]
    assert engine.counts().reused_tokens == 0
    assert alone == together


def test_few_texts_in_many_slots_have_the_bits_that_they_have_among_many(trained, monkeypatch):
    """In bfloat16 on a CPU, where a burst is of a quarter of a core's slots if that is enough."""
    monkeypatch.setattr(engine_room, "shares", lambda params, slots: 2)
    decoder = Decoder(SIZE, Compute("bfloat16", prefill_chunk=16), ids=90)
    narrow = for_decoding(trained, SIZE, "bfloat16", cpu=True)
    serving, prompts = replace(SERVING, slots=32), [[5 + n, 70, 20 + n] for n in range(10)]
    one = DeviceEngine(decoder, narrow, serving, ready=False)
    together = [answer.new for answer in ask(one, prompts, likeliest=2)]
    one.close(0)
    monkeypatch.setattr(engine_room, "Device", lambda *_: one._device)
    two = DeviceEngine(decoder, narrow, serving)
    assert [ask(two, [prompt], likeliest=2)[0].new for prompt in prompts] == together
    two.close(0)
    assert {name[1] for name in one._device._run if name[0] == "burst"} == {4, 16}
    assert max(name[1] for name in one._device._run if name[0] == "read") == 4


def test_a_second_turn_reads_what_is_new_in_it(engine, params):
    [first] = ask(engine, [[7, 8, 9, *range(20, 40)]], new=9)
    talk = [7, 8, 9, *range(20, 40), *first.ids]
    [second] = ask(engine, [[*talk, 50, 51, 52]], new=9)
    assert len(talk) - second.all[0].reused <= 1
    assert [second.ids] == expected(params, [[*talk, 50, 51, 52]], [9])


def scored(trained, pairs):
    """What `polylm score` says of pairs of ids."""
    subject = Subject(Decoder(SIZE, COMPUTE), trained, None, 1)
    found = likelihoods(subject, pairs, SIZE.context, 4)
    return [found[place] for place in range(len(pairs))]


def test_echo_tells_what_score_finds_and_the_likeliest(engine, params, trained):
    dice = random.Random(1)
    prompts = [[dice.randrange(3, 90) for _ in range(n)] for n in (2, 17, 40, 64)]
    rows = np.zeros((4, 64), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt

    @jax.jit
    def scores(trained, rows):
        hidden, _ = Decoder(SIZE, COMPUTE).apply({"params": trained}, rows)
        return jax.nn.log_softmax(logits(hidden, trained["embedding"]), -1)

    exact = np.asarray(scores(trained, rows))
    pairs = [(prompt[:1], prompt[1:]) for prompt in prompts]
    found = scored(trained, pairs)
    answers = ask(engine, prompts, new=0, read=True, likeliest=3)
    for row, prompt, answer, sums in zip(exact, prompts, answers, found, strict=True):
        [news] = answer.all
        assert (news.ended, news.new, news.reused) == ("length", (), 0)
        assert [said.token for said in news.prompt] == prompt
        assert np.isnan(news.prompt[0].logprob)
        assert news.prompt[0].likeliest == ()
        told = [said.logprob for said in news.prompt[1:]]
        np.testing.assert_allclose(sum(told), sums.log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(told, row[range(len(told)), prompt[1:]], atol=1e-5)
        for place, said in enumerate(news.prompt[1:]):
            best = np.argsort(-row[place, :90])[:3]
            assert [token for token, _ in said.likeliest] == best.tolist()
            np.testing.assert_allclose(
                [logprob for _, logprob in said.likeliest], row[place, best], atol=1e-5
            )


def test_an_answer_after_echo_is_told_with_its_own_chances(engine, params, trained):
    prompt = [5, 6, 7, 8]
    [answer] = ask(engine, [prompt], new=8, read=True, likeliest=0)
    assert [said.token for said in answer.all[0].prompt] == prompt
    assert not any(news.prompt for news in answer.all[1:])
    [alone] = expected(params, [prompt], [8])
    assert answer.ids == alone
    [found] = scored(trained, [(prompt, alone)])
    np.testing.assert_allclose(
        sum(said.logprob for said in answer.new), found.log_likelihood, rtol=1e-5
    )
    assert answer.new[0].likeliest == ()
    assert np.isnan(ask(engine, [prompt])[0].new[0].logprob)


def wishes_of(samplings, **more):
    """What each row wishes; one seed, and draws 0, 1, …"""
    rows = len(samplings)
    given = lambda name, kind: np.array([getattr(s, name) for s in samplings], kind)  # noqa: E731
    plain = {
        "temperature": given("temperature", np.float32),
        "top_k": given("top_k", np.int32),
        "top_p": given("top_p", np.float32),
        "repetition": given("repetition_penalty", np.float32),
        "presence": np.zeros(rows, np.float32),
        "frequency": np.zeros(rows, np.float32),
        "seed": np.full(rows, 2**32 - 9, np.uint32),
        "draw": np.arange(rows, dtype=np.uint32),
    }
    return Wishes(**plain | {name: np.array(each, np.float32) for name, each in more.items()})


def test_each_rows_wishes_are_its_own():
    """Beside `choose` with one setting for all, and penalties worked out by hand."""
    samplings = [
        Sampling(),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=2.0, top_k=30, top_p=0.8, repetition_penalty=1.4),
        Sampling(temperature=1.3),
    ]
    scores = np.random.default_rng(0).normal(0, 3, (4, 50)).astype(np.float32)
    held = np.zeros((4, 50), np.int32)
    held[:, 5], held[:, 7] = HEARD, HEARD + 3 * SAID
    drawn = np.arange(4, dtype=np.int32)
    each = jax.jit(choose_each)
    found = each(scores, held, wishes_of(samplings), drawn)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(2**32 - 9), jnp.arange(4))
    same = jax.jit(choose, static_argnums=4)
    for row, sampling in enumerate(samplings):
        assert found[row] == same(scores, held > 0, keys, drawn, sampling)[row]

    scores[:] = 0
    scores[:, [3, 4, 5]] = 2.5, 2.0, 1.0
    held[:, 3], held[:, 4] = 3 * SAID, HEARD
    penalties = {"presence": (0.4, 0.6, 0, 0), "frequency": (0, 0, 0.1, 0.2)}
    found = each(scores, held, wishes_of([Sampling()] * 4, **penalties), drawn)
    assert found.tolist() == [3, 4, 3, 4]


def test_nothing_is_compiled_or_kept_after_the_start(engine):
    def sizes():
        gc.collect()  # what other tests have left
        return Counter((x.shape, x.dtype.name) for x in jax.live_arrays())

    ask(engine, [[5]])
    compiled, kept = programs_compiled(), sizes()
    assert engine.counts().compiled > 0
    for number, prompt in enumerate(ragged(3)):
        wishes = [{}, SAMPLED, {"likeliest": 20}, {"read": True}, {"frequency_penalty": 1.0}]
        Answer(engine, prompt, number % 9, **wishes[number % 5]).whole()
    hung_up = Answer(engine, [5] * 40, 20)
    engine.cancel(hung_up.number)
    hung_up.whole()
    assert programs_compiled() == compiled
    assert not sizes() - kept


def test_scores_that_are_no_numbers_fail_that_call_alone(engine, params, monkeypatch):
    """One position is broken: texts that do not reach it are well, before, beside and after."""
    broken = params | {"positions": params["positions"].at[30].set(jnp.inf)}
    monkeypatch.setattr(engine._device, "_params", broken)
    prompts = [[5] * 20, [6] * 28, [7] * 40, [8] * 10, [9] * 20]
    for _ in range(2):
        answers = ask(engine, prompts, new=6)
        failed = [answer.ended == "failed" for answer in answers]
        assert failed == [False, True, True, False, False]
        assert "scores are not finite" in answers[1].all[-1].fault
        assert len(answers[1].ids) == 3
    [read] = ask(engine, [[7] * 40], new=0, read=True)
    assert read.ended == "failed"
    monkeypatch.undo()
    found = [answer.ids for answer in ask(engine, prompts, new=6)]
    assert found == expected(params, prompts, [6] * 5)


def test_who_hangs_up_leaves_the_slot_and_is_told_once(another):
    engine = another()
    answers = [Answer(engine, [5 + i] * 9, 50) for i in range(8)]
    answers[0].news.get(timeout=WAIT)
    for answer in (answers[0], answers[7], answers[0]):
        engine.cancel(answer.number)
    ended = [answer.whole().ended for answer in answers]
    assert ended[0] == ended[7] == "cancelled"
    assert engine.counts().cancelled == 2
    engine.cancel(answers[0].number)
    engine.cancel(12345)
    assert (engine.counts().running, engine.counts().waiting) == (0, 0)


def test_one_whose_listener_raises_is_gone_and_disturbs_nobody(another):
    engine, heard = another(), []

    def tell(news):
        heard.append(news)
        raise RuntimeError("the loop is closed")

    engine.submit(Call((5,) * 9, 50, temperature=0), tell)
    assert ask(engine, [[6] * 9])[0].ended == "length"
    assert len(heard) == 1
    assert not engine.broken.is_set()


def test_more_than_may_wait_are_refused_with_the_time_to_ask_again(another):
    engine = another(queue=2)
    answers = [Answer(engine, [5] * 9, 50) for _ in range(6)]
    with pytest.raises(Busy, match="calls wait already") as refused:
        Answer(engine, [5], 5)
    assert 1 <= refused.value.seconds <= 60
    assert {answer.whole().ended for answer in answers} <= {"length", "stop"}


def test_a_closed_engine_ends_what_goes_on_and_cuts_what_takes_too_long(another):
    engine = another()
    answers = [Answer(engine, [5] * 9, 40) for _ in range(6)]
    engine.close(WAIT)
    assert {answer.whole().ended for answer in answers} <= {"length", "stop"}
    with pytest.raises(Busy, match="the server was closed"):
        Answer(engine, [5], 5)
    engine = another()
    answers = [Answer(engine, [5] * 9, 40) for _ in range(6)]
    engine.close(0)
    assert {answer.whole().ended for answer in answers} == {"failed"}
    assert "closed before the answer was whole" in answers[0].all[-1].fault
    assert not engine.broken.is_set()


@pytest.mark.parametrize("part", ["burst", "read", "first"])
def test_a_failure_of_the_thread_ends_every_call_and_is_seen(another, monkeypatch, capsys, part):
    engine = another()

    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    monkeypatch.setattr(engine._device, part, fails, raising=False)
    answers = [Answer(engine, [5 + i] * 9, 40) for i in range(9)]
    assert engine.broken.wait(WAIT)
    monkeypatch.undo()
    for answer in answers:
        assert answer.whole().ended == "failed"
        assert answer.all[-1].fault == engine.fault
    assert "the engine has failed (RESOURCE_EXHAUSTED: out of memory)" in engine.fault
    assert engine.counts().failed == 9
    with pytest.raises(Busy, match="has failed"):
        Answer(engine, [5], 5)
    assert "Traceback" in capsys.readouterr().err
    engine.close(0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (Call((), 5), "0 tokens and 5 new"),
        (Call((5,) * 60, 5), "60 tokens and 5 new ones do not fit into a context of 64"),
        (Call((5, 96), 5), "between 0 and 95"),
        (Call((5, -1), 5), "between 0 and 95"),
        (Call((5,), -1), "-1 new"),
        (Call((5,), 5, likeliest=21), "of 20"),
        (Call((5,), 5, top_p=0.0), "top_p = 0"),
        (Call((5,), 5, temperature=float("nan")), "temperature = nan"),
        (Call((5,), 5, top_k=2**40), "top_k"),
        (Call((5,), 5, frequency_penalty=float("inf")), "inf"),
    ],
)
def test_a_call_that_cannot_be_is_an_error_of_who_calls(engine, call, words):
    with pytest.raises(ValueError, match=words):
        engine.submit(call, print)


def test_bursts_look_at_few_numbers_of_slots_where_each_is_compiled_in_a_talk():
    assert widths_of(2048) == [128, 192, 256, 384, 512, 1024, 2048]
    assert widths_of(2048, few=True) == [128, 256, 512, 1024, 2048]
    assert (widths_of(192), widths_of(64)) == ([128, 192], [64])


def test_a_context_beyond_the_models_is_refused(params):
    with pytest.raises(UserError, match=r"serve.context = 65, but the model's context is 64"):
        DeviceEngine(DECODER, params, Serving(context=65))


def hammer(engine, calls, at_once, seed=0):
    """So many calls, of which three in ten hang up somewhere; how each ended."""
    ends, room = {}, threading.Semaphore(at_once)

    def one(number):
        dice = random.Random(f"{seed} {number}")
        news = []
        over, leaves = threading.Event(), dice.random() < 0.3
        patience = dice.randrange(8)

        def tell(some):
            news.append(some)
            if some.ended:
                ends.setdefault(number, []).append(some.ended)
                over.set()
                room.release()
            elif leaves and len(news) > patience // 3:
                engine.cancel(mine)

        prompt = [dice.randrange(3, 90) for _ in range(dice.choice([1, 5, 20, 40]))]
        mine = engine.submit(Call(tuple(prompt), dice.randrange(24), seed=number), tell)
        if leaves and patience < 2:
            engine.cancel(mine)

    for number in range(calls):
        assert room.acquire(timeout=WAIT)
        one(number)
    deadline = time.monotonic() + WAIT
    while len(ends) < calls and time.monotonic() < deadline:
        time.sleep(0.01)
    return ends


def soaked(engine, calls):
    before, kept = engine.counts(), sum(x.nbytes for x in jax.live_arrays())
    ends = hammer(engine, calls, 12)
    after = engine.counts()
    assert sorted(ends) == list(range(calls))
    assert all(len(told) == 1 for told in ends.values())
    assert {told[0] for told in ends.values()} == {"stop", "length", "cancelled"}
    cancelled = sum(told == ["cancelled"] for told in ends.values())
    assert after.cancelled - before.cancelled == cancelled > calls / 20
    assert (after.running, after.waiting, after.failed) == (0, 0, before.failed)
    assert sum(x.nbytes for x in jax.live_arrays()) == kept
    assert after.compiled == before.compiled


def test_five_hundred_calls_of_which_many_hang_up(another):
    soaked(another(), 500)


@pytest.mark.rare
def test_five_thousand_calls_of_which_many_hang_up(another):
    soaked(another(), 5000)


def test_a_mesh_with_weights_of_one_byte_answers_as_one_device(trained):
    small = for_decoding(trained, SIZE, "float32", int8=True)
    prompts = ragged(7, 12)
    alone = expected(small, prompts)
    mesh = make_mesh(MeshShape(2, 2, 2), jax.devices())
    with jax.set_mesh(mesh):
        decoder = Decoder(SIZE, COMPUTE, constrain=constrainer(mesh), ids=90)
        split = jax.device_put(trained, parameter_shardings(SIZE, mesh))
        split = for_decoding(split, SIZE, "float32", int8=True)
        engine = DeviceEngine(decoder, split, replace(SERVING, slots=3), rows=4, ready=False)
    assert engine.slots == 4
    assert [answer.ids for answer in ask(engine, prompts)] == alone
    assert engine.counts().reused_tokens > 0
    [([[layer]], _)] = engine._device._texts  # on a CPU the keys are turned
    for name, part in ("key", (SIZE.head_size, 64)), ("value", (64, SIZE.head_size)):
        shards = {shard.data.shape for shard in layer[name].addressable_shards}
        assert shards == {(1, SIZE.heads // 2, *part)}
    engine.close(0)
