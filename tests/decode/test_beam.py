"""Beam search, and greedy beside it, against Hugging Face's on 56 prompts."""

from functools import cache

import jax
import pytest

from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import generate
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer
from tests import golden

FLOAT32 = Compute(dtype="float32")
SETTINGS = {
    "greedy": Sampling(16),
    "greedy_penalty": Sampling(16, repetition_penalty=1.2),
    "early": Sampling(16, beams=4, early_stopping="yes"),
    "late": Sampling(16, beams=4),
    "never": Sampling(16, beams=4, early_stopping="never"),
    "short": Sampling(16, beams=4, length_penalty=0.6),
    "long": Sampling(16, beams=4, early_stopping="yes", length_penalty=1.5),
    "beams_penalty": Sampling(16, beams=4, repetition_penalty=1.2),
}


@cache
def load():
    size, params, content = golden.load("beams")
    prompts = [content[f"prompt_{i}"].tolist() for i in range(56)]
    return size, params, prompts, content


def answers(setting):
    found = [load()[-1][f"{setting}/{i}"].tolist() for i in range(56)]
    return [ids[:-1] if ids[-1] == 2 else ids for ids in found]


@pytest.mark.parametrize("setting", SETTINGS)
def test_ragged_batches_give_token_for_token_what_hugging_face_gives(setting):
    size, params, prompts, _ = load()
    params = for_decoding(params, size, "float32")
    assert generate(Decoder(size, FLOAT32), params, prompts, SETTINGS[setting]) == answers(setting)


def test_the_settings_differ_in_what_they_find():
    found = [answers(setting) for setting in SETTINGS]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


def test_each_row_has_its_own_limit_and_stops():
    size, params, prompts, _ = load()
    decoder, params = Decoder(size, FLOAT32), for_decoding(params, size, "float32")
    limits, stops = [9, 16, 11], [{2}, {2, 40, 41}, set()]
    together = generate(decoder, params, prompts[:3], SETTINGS["late"], 1, limits, stops)
    alone = [
        generate(decoder, params, [prompts[row]], SETTINGS["late"], 1, [limits[row]], [stops[row]])
        for row in range(3)
    ]
    assert together == [found for (found,) in alone]
    assert len(together[0]) <= 9
    assert len(together[2]) == 11


def test_a_mesh_finds_what_one_device_does():
    size, params, prompts, _ = load()
    mesh = make_mesh(MeshShape(2, 1, 3), jax.devices()[:6])
    with jax.set_mesh(mesh):
        decoder = Decoder(size, FLOAT32, constrain=constrainer(mesh))
        split = for_decoding(params, size, "float32")
        found = generate(decoder, split, prompts[:8], SETTINGS["late"], rows=2)
    assert found == answers("late")[:8]


def test_beams_do_not_draw():
    with pytest.raises(UserError, match=r"sampling\.temperature"):
        Sampling(beams=4, temperature=0.7)
    with pytest.raises(UserError, match='early_stopping is "perhaps"; choose one of yes'):
        Sampling(early_stopping="perhaps")
