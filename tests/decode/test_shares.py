"""A batch that is cut over a CPU's cores: Hugging Face's answers, and those of one share."""

import os
import signal
import threading
import time
from itertools import cycle, islice

import jax
import pytest

from polylm_jax.chips import cores
from polylm_jax.decode import search, shares
from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import TOKENS_AT_ONCE, generate
from polylm_jax.decode.shares import side_by_side
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import replicated
from tests import golden
from tests.decode.test_search import load, prompts_and_answers

COUNT, CORES = 26, 3


@pytest.fixture
def batches(monkeypatch):
    """Three cores; notes of each batch that is read, how many prompts and in how many rows."""
    monkeypatch.setattr(shares, "cores", lambda: CORES)
    noted, prefill = [], search.prefill

    def read(decoder, sampling, params, prompts, *others, rows):
        noted.append((len(prompts), rows))
        return prefill(decoder, sampling, params, prompts, *others, rows=rows)

    monkeypatch.setattr(search, "prefill", read)
    return noted


def model():
    size, params, content = load("b")
    prompts, answers = (list(islice(cycle(x), COUNT)) for x in prompts_and_answers(content))
    return Decoder(size, Compute("float32")), params, prompts, answers


def test_each_prompt_has_its_own_answer_whatever_share_it_is_in(batches):
    decoder, params, prompts, answers = model()
    limits = [1 + number % 12 for number in range(COUNT)]
    found = generate(decoder, params, prompts, Sampling(), limits=limits)
    assert found == [answer[:limit] for answer, limit in zip(answers, limits, strict=True)]
    assert sorted(batches) == [(8, 9), (9, 9), (9, 9)]


def test_draws_stops_and_words_of_the_end_are_each_prompts_own(monkeypatch, batches):
    decoder, params, prompts, _ = model()
    sampling = Sampling(new_tokens=20, temperature=0.9)
    stops = [set(range(2, 3 + 9 * (number % 7))) for number in range(COUNT)]

    def found():
        asked = {"repeats": list(range(COUNT)), "stops": stops, "rows": 28}
        return generate(
            decoder, params, prompts, sampling, **asked, ended=lambda row, new: row % 6 == 5
        )

    three = found()
    monkeypatch.setattr(shares, "cores", lambda: 1)
    assert found() == three
    assert [rows for _, rows in batches] == [10, 10, 10, 28]
    assert any(len(text) == 20 for text in three)
    assert all(len(text) < 20 for text in three[5::6])


def test_where_one_share_is_interrupted_the_others_end(batches):
    decoder, params, prompts, _ = model()
    interrupted, told = threading.Event(), set()

    def ended(row, new):
        if row % CORES == 1:
            interrupted.set()
            raise KeyboardInterrupt
        interrupted.wait()
        time.sleep(0.01)
        told.add(len(new))
        return False

    some = [prompt[:3] for prompt in prompts]
    with pytest.raises(KeyboardInterrupt):
        generate(decoder, params, some, Sampling(new_tokens=60), stops=[{1}] * COUNT, ended=ended)
    for thread in threading.enumerate():  # who interrupts does not wait for them
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(60)
    assert told <= {TOKENS_AT_ONCE}  # or none, of shares that had not come to their first look


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_is_heard_while_a_program_runs(count):
    over, ended = threading.Event(), []

    def share(number):
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        over.wait(60)
        ended.append(number)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side(share, range(count))
        assert not ended
    finally:
        signal.signal(signal.SIGINT, former)
        over.set()


def test_a_prompt_is_named_by_its_place_among_all(batches):
    decoder, params, prompts, _ = model()
    prompts[20] = []
    with pytest.raises(UserError, match="prompt 21 is empty"):
        generate(decoder, params, prompts, Sampling())


def test_shares_go_on_beside_each_other_with_the_mesh_of_who_asked():
    meeting = threading.Barrier(CORES, timeout=60)
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])

    def one(number):
        meeting.wait()  # none goes on before all are there
        return number, jax.sharding.get_mesh()

    with jax.set_mesh(mesh):
        assert side_by_side(one, range(CORES)) == [(number, mesh) for number in range(CORES)]

    def refuses(number):
        if number == 1:
            raise UserError("the second refuses.")

    with pytest.raises(UserError, match="the second"):
        side_by_side(refuses, range(CORES))


def test_a_batch_is_cut_where_one_device_of_a_cpu_holds_the_model(monkeypatch):
    monkeypatch.setattr(shares, "cores", lambda: 4)
    _, params, _ = load("b")
    counts = {rows: shares.shares(params, rows) for rows in (1, 8, 15, 16, 31, 32, 64)}
    assert counts == {1: 1, 8: 1, 15: 1, 16: 2, 31: 3, 32: 4, 64: 4}
    size, trained, _ = golden.load("b")
    # of which each program holds a copy in floats
    assert shares.shares(for_decoding(trained, size, "float32", int8=True), 64) == 1
    mesh = make_mesh(MeshShape(2, 1, 1), jax.devices()[:2])
    assert shares.shares(jax.device_put(params, replicated(mesh)), 64) == 1


def test_a_container_has_as_many_cores_as_it_may_use(tmp_path):
    told = tmp_path / "cpu.max"
    every = cores(str(told))
    assert every >= 1
    for words, count in (("max 100000", every), ("50000 100000", 1), ("99900000 100000", every)):
        told.write_text(words)
        assert cores(str(told)) == count
