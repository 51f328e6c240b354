"""Generation against Hugging Face's greedy search, and each prompt against itself alone."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.decode.prefill import ROWS_AT_ONCE, _read, prefill, slots_for
from polylm_jax.decode.sampling import Sampling, choose
from polylm_jax.decode.search import _decode, decode_some, generate, rules
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer, parameter_shardings
from polylm_jax.plan.costs import target
from polylm_jax.plan.hlo import parse
from polylm_jax.plan.text import kernels
from polylm_jax.sizes import Size
from tests import golden
from tests.conftest import AS_FOR_USERS, as_large

FLOAT32 = Compute(dtype="float32")
SAMPLED = Sampling(new_tokens=9, temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.1)


def load(name):
    size, params, content = golden.load(name)
    return size, for_decoding(params, size, "float32"), content


def prompts_and_answers(content):
    prompts = [p.tolist() for p in golden.select(content, "prompt_").values()]
    answers = [a.tolist() for a in golden.select(content, "greedy_").values()]
    return prompts, [a[:-1] if a and a[-1] == 2 else a for a in answers]


@pytest.mark.parametrize("name", ["a", "b"])
def test_greedy_equals_hugging_face_for_ragged_prompts_in_one_batch(name):
    size, params, content = load(name)
    prompts, answers = prompts_and_answers(content)
    assert len({len(prompt) for prompt in prompts}) > 1
    found = generate(Decoder(size, FLOAT32), params, prompts, Sampling(new_tokens=12))
    assert found == answers


@pytest.mark.parametrize("sampling", [Sampling(new_tokens=9), SAMPLED])
def test_a_prompt_gives_in_company_what_it_gives_alone(sampling):
    size, params, content = load("b")
    decoder = Decoder(size, FLOAT32)
    prompts, _ = prompts_and_answers(content)
    together = generate(decoder, params, prompts, sampling)
    alone = [generate(decoder, params, [prompt], sampling)[0] for prompt in prompts]
    assert together == alone
    assert len({tuple(answer) for answer in alone}) > 1


def test_seeds_decide_the_draw():
    size, params, content = load("b")
    decoder, prompt = Decoder(size, FLOAT32), [content["prompt_1"].tolist()]
    draws = [generate(decoder, params, prompt, replace(SAMPLED, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_mesh_generates_what_one_device_does():
    shape = (2, 2, 2)
    size = Size(vocabulary=96, context=64, layers=1, heads=4, d_model=32, d_ff=64)
    start = jax.jit(Decoder(size, FLOAT32, Init(std=0.3)).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    prompts = [[5, 6, 7], [9] * 11, [40, 41]]
    whole = for_decoding(params, size, "float32")
    expected = generate(Decoder(size, FLOAT32), whole, prompts, SAMPLED)
    mesh = make_mesh(MeshShape(*shape), jax.devices())
    with jax.set_mesh(mesh):
        decoder = Decoder(size, FLOAT32, constrain=constrainer(mesh))
        split = jax.device_put(params, parameter_shardings(size, mesh))
        split = for_decoding(split, size, "float32")
        assert generate(decoder, split, prompts, SAMPLED, rows=8) == expected
        state = prefill(decoder, SAMPLED, split, prompts, rows=8)
        state, *_ = decode_some(decoder, SAMPLED, split, state, 16)
    data, fsdp, tensor = shape
    part = (8 // (data * fsdp), size.heads // tensor, 64, size.head_size)
    for slots in jax.tree.leaves(state.cache):
        assert {shard.data.shape for shard in slots.addressable_shards} == {part}


@pytest.mark.parametrize("sampling", [Sampling(new_tokens=9), SAMPLED])
def test_tokens_taken_a_few_at_a_time_are_those_taken_at_once(sampling):
    size, params, content = load("b")
    decoder = Decoder(size, FLOAT32)
    prompts, _ = prompts_and_answers(content)
    state = prefill(decoder, sampling, params, prompts)
    found = [[] for _ in prompts]
    while not state.done.all():
        state, new, counts = decode_some(decoder, sampling, params, state, 4)
        for text, ids, count in zip(found, new, counts, strict=True):
            text += ids[:count].tolist()
    assert found == generate(decoder, params, prompts, sampling)


def test_a_prompt_read_in_chunks_is_the_prompt_read_at_once():
    size, params, content = load("b")
    prompts, _ = prompts_and_answers(content)
    states = [
        prefill(Decoder(size, Compute("float32", prefill_chunk=chunk)), SAMPLED, params, prompts)
        for chunk in (64, 4)
    ]
    np.testing.assert_allclose(*(state.scores for state in states), atol=1e-5)
    for row, prompt in enumerate(prompts):
        keys = [state.cache[1]["key"][row, :, : len(prompt)] for state in states]
        np.testing.assert_allclose(*keys, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "slots"),
    [(1, 64), (64, 64), (65, 96), (96, 96), (97, 128), (192, 192), (193, 256), (1536, 1536)],
)
def test_slots_are_a_power_of_two_or_three_quarters_of_one(tokens, slots):
    assert slots_for(tokens) == slots


def test_no_chunk_reaches_beyond_the_last_of_96_slots():
    size = Size(vocabulary=96, context=128, layers=1, heads=2, d_model=16, d_ff=32)
    start = jax.jit(Decoder(size, FLOAT32, Init(std=0.3)).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    whole, prompts = for_decoding(params, size, "float32"), [[*range(3, 93)], [*range(3, 40)]]
    read = partial(prefill, sampling=Sampling(new_tokens=6), params=whole, prompts=prompts)
    states = [read(Decoder(size, Compute("float32", prefill_chunk=chunk))) for chunk in (64, 128)]
    np.testing.assert_allclose(*(state.scores for state in states), atol=1e-5)
    assert states[0].cache[0]["key"].shape[2] == 96


@pytest.mark.parametrize("cache", ["bfloat16", "float32"])
def test_a_cpus_token_only_reads_the_cache(cache):
    size, params, _ = golden.load("b")
    decoder = Decoder(size, Compute("bfloat16", cache_dtype=cache))
    params = for_decoding(params, size, "bfloat16", cpu=True)
    state = prefill(decoder, Sampling(new_tokens=2), params, [[5, 6], [7]])
    lowered = _decode.lower(decoder, rules(Sampling()), 2, params, state)
    text = lowered.compile(AS_FOR_USERS).as_text()
    program, _ = parse(text)
    loops = [one for part in program.values() for one in part if one.op == "while"]
    bodies = {target(one, "body") for one in loops}
    # of the loops that run no other, a token's is the one that makes the logits
    (token,) = {
        body for body in bodies
        if all(one.op != "while" for one in program[body])
        and any("logits" in one.rest for one in program[body])
    }  # fmt: skip
    cached = 2 * 64 * size.d_model  # elements of a layer's keys, in whatever order
    assert not as_large(program[token], {cached})
    # and the plan's reader takes a token's turn, not a burst's
    names = {one.name for one in program[token]}
    assert {one.name for one in kernels(text, loop=True)} <= names


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_cpu_reads_without_a_scatter_or_a_copy_of_the_table(prompts):
    size, params, _ = golden.load("c")
    decoder = Decoder(size, Compute("bfloat16", prefill_chunk=16))
    params = for_decoding(params, size, "bfloat16", cpu=True)
    whole, lengths = np.full((prompts, 64), 5, np.int32), np.full(prompts, 40, np.int32)
    lowered = _read.lower(decoder, False, params, whole, lengths)
    program, _ = parse(lowered.compile(AS_FOR_USERS).as_text())
    made = [one for part in program.values() for one in part]
    assert not [one.op for one in made if one.op == "scatter"]
    apart = f"u16[{size.vocabulary},{size.d_model}]"  # not fused into what looks rows up
    assert not [one.name for one in made if one.op == "fusion" and one.type.startswith(apart)]


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 2), ("cuda", 1), ("tpu", 1)])
def test_other_devices_write_each_token_into_the_cache(platform, loops):
    size, params, _ = golden.load("c")
    decoder = Decoder(size, Compute("bfloat16"))
    params = for_decoding(params, size, "bfloat16")
    read = partial(prefill, decoder, Sampling(), prompts=[[5]])
    state = jax.eval_shape(lambda params: read(params), params)
    traced = _decode.trace(decoder, rules(Sampling()), 2, params, state)
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert lowered.count("stablehlo.while") == loops


def test_many_prompts_are_read_in_parts_on_a_cpu_and_give_what_they_give_alone():
    size, params, _ = load("b")
    decoder = Decoder(size, Compute("float32", prefill_chunk=8))
    prompts = [[5 + row] * (1 + 3 * row % 20) for row in range(2 * ROWS_AT_ONCE)]
    whole = prefill(decoder, Sampling(), params, prompts)
    for rows in (slice(ROWS_AT_ONCE), slice(ROWS_AT_ONCE, None)):
        part = prefill(decoder, Sampling(), params, prompts[rows])
        np.testing.assert_allclose(whole.scores[rows], part.scores, atol=1e-5)
        for row, prompt in enumerate(prompts[rows]):
            held, alone = (
                state.cache[1]["value"][rows][row, :, : len(prompt)]
                for state, rows in ((whole, rows), (part, slice(None)))
            )
            np.testing.assert_allclose(held, alone, atol=1e-5)


def test_each_row_has_its_own_limit_and_stops():
    size, params, content = load("a")
    decoder = Decoder(size, FLOAT32)
    prompts, answers = prompts_and_answers(content)
    longest = max(range(len(answers)), key=lambda row: len(answers[row]))
    answer, three = answers[longest], [prompts[longest]] * 3
    limits, stops = [3, 12, 12], [{2}, {2}, {2, answer[5], 90, 91, 92}]
    found = generate(decoder, params, three, Sampling(), limits=limits, stops=stops)
    assert found == [answer[:3], answer, answer[: answer.index(answer[5])]]


def test_a_prompt_of_another_length_needs_no_other_program():
    size, params, _ = load("b")
    decoder = Decoder(size, Compute("float32", prefill_chunk=16))
    generate(decoder, params, [[5] * 3], SAMPLED)
    compiled = _read._cache_size(), _decode._cache_size()
    for length in (1, 20, 55):
        generate(decoder, params, [[5] * length], replace(SAMPLED, seed=length))
    assert (_read._cache_size(), _decode._cache_size()) == compiled


def test_generation_ends_at_the_context():
    size, params, _ = load("c")
    prompt = [5, 6, 7, 8, 9]
    (answer,) = generate(Decoder(size, FLOAT32), params, [prompt], Sampling(new_tokens=50))
    assert len(prompt) + len(answer) <= size.context


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([[5], [6] * 37], "prompt 2 has 37 tokens but the model's context is 37"),
        ([[]], "prompt 1 is empty"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_named(prompts, sentence):
    size, params, _ = load("a")
    with pytest.raises(UserError, match=sentence):
        generate(Decoder(size, FLOAT32), params, prompts, Sampling())


def test_samples_follow_the_filtered_distribution():
    """20,000 draws against the distribution worked out by hand in numpy."""
    scores = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    seen = np.array([True, False, False, False, False])
    sampling = Sampling(temperature=0.5, top_k=4, top_p=0.8, repetition_penalty=1.5)
    penalised = np.where(seen, scores * 1.5, scores)
    heat = np.exp(penalised / 0.5)
    kept = np.argsort(heat)[::-1][:4]
    shares = heat[kept] / heat[kept].sum()
    kept = kept[: int(np.searchsorted(np.cumsum(shares), 0.8)) + 1]
    expected = np.zeros(5)
    expected[kept] = heat[kept] / heat[kept].sum()

    keys = jax.random.split(jax.random.key(7), 20_000)
    tokens = choose(
        jnp.tile(jnp.asarray(scores, jnp.float32), (20_000, 1)),
        jnp.tile(seen, (20_000, 1)),
        keys,
        jnp.zeros(20_000, jnp.int32),
        sampling,
    )
    found = np.bincount(tokens, minlength=5) / 20_000
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert not found[expected == 0].any()


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"new_tokens": 0}, {"top_k": -1}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match=f"sampling.{next(iter(wrong))}"):
        Sampling(**wrong)


SEARCHES = [
    Sampling(6),
    Sampling(6, temperature=1.0, top_p=0.9),
    Sampling(6, beams=2, repetition_penalty=1.2),
]


@pytest.mark.parametrize("sampling", SEARCHES)
def test_ids_that_the_tokenizer_has_not_are_never_chosen(sampling):
    size, params, _ = load("b")
    ids, prompts = size.vocabulary - 40, [[i, i + 3, 7] for i in range(3, 9)]
    loud = params | {"embedding": params["embedding"].at[ids:].multiply(30)}
    free = generate(Decoder(size, FLOAT32), loud, prompts, sampling)
    masked = generate(Decoder(size, FLOAT32, ids=ids), loud, prompts, sampling)
    assert max(map(max, free)) >= ids
    assert max(token for answer in masked for token in answer) < ids
    assert any(masked)


@pytest.mark.parametrize("sampling", SEARCHES)
@pytest.mark.parametrize("place", ["everywhere", "later"])
def test_scores_that_are_no_numbers_are_one_sentence(place, sampling):
    size, params, content = load("b")
    prompts = [content["prompt_1"].tolist()[:3]]
    where, value = (0, jnp.nan) if place == "everywhere" else (5, jnp.inf)
    name = "final_norm_scale" if place == "everywhere" else "positions"
    broken = params | {name: params[name].at[where].set(value)}
    with pytest.raises(UserError, match="scores are not finite"):
        generate(Decoder(size, FLOAT32), broken, prompts, sampling, stops=[set()])
