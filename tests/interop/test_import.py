"""A folder is imported as transformers loads it, or refused by the name of what it would change."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from polylm_jax.__main__ import main
from polylm_jax.interop.fast_tokenizer import tokenizer_json
from polylm_jax.interop.hugging_face import EMBEDDING, HEAD, params_from
from tests.interop.conftest import params_of
from tests.interop.test_convert import same

ADDED = {"<|user|>": 1024, "<|assistant|>": 1025}


def imported(folder, tmp_path, *flags):
    return main(["import", f"--from={folder}", f"--run={tmp_path}/run", *flags])


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def old_index(folder, weights):
    save_file({k: v + 1 for k, v in weights.items()}, folder / "old-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "old-00001-of-00001.safetensors")}
    write(folder, "model.safetensors.index.json", index)


def old_bin(folder, weights):
    (folder / "pytorch_model.bin").write_bytes(b"not read")


def head_alone(folder, weights):
    kept = {k: v for k, v in weights.items() if k != EMBEDDING}
    save_file(kept | {HEAD: weights[EMBEDDING]}, folder / "model.safetensors")


def head_apart(folder, weights):
    save_file(weights | {HEAD: weights[EMBEDDING]}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", settings | {"tie_word_embeddings": False})


def integer_buffer(folder, weights):
    extra = {"transformer.position_ids": np.arange(48)[None]}
    save_file(weights | extra, folder / "model.safetensors")


def other_names(folder, weights):
    settings = json.loads((folder / "config.json").read_text())
    settings["hidden_size"], settings["num_hidden_layers"] = settings.pop("n_embd"), 2
    settings |= {"reorder_and_upcast_attn": True, "auto_map": {}, "pruned_heads": {}}
    write(folder, "config.json", settings)


def with_a_mark(folder, weights):
    """As some editors save it."""
    file = folder / "config.json"
    file.write_text("\ufeff" + file.read_text())


def gelu_by_another_name(folder, weights):
    settings = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", settings | {"activation_function": "gelu_python_tanh"})


def own_tokens(folder, weights):
    """What save_pretrained writes of a tokenizer that added nothing."""
    pieces = {0: "<unk>", 1: "<s>", 2: "</s>"}
    decoder = {str(number): {"content": piece} for number, piece in pieces.items()}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": decoder})
    write(folder, "tokenizer.json", tokenizer_json((folder / "tokenizer.model").read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        old_index,
        old_bin,
        head_alone,
        head_apart,
        integer_buffer,
        other_names,
        with_a_mark,
        gelu_by_another_name,
        own_tokens,
    ],
)
def test_what_transformers_loads_is_imported(change, release, weights, hugging_face, tmp_path):
    folder = hugging_face(weights)
    change(folder, weights)
    assert imported(folder, tmp_path) == 0
    same(params_of(tmp_path / "run", release[0]), params_from(weights, release[0]))


def config(**changes):
    def change(folder):
        settings = json.loads((folder / "config.json").read_text())
        write(folder, "config.json", settings | changes)

    return change


def file(name, content):
    return lambda folder: write(folder, name, content)


def no_weights(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()


def tokenizer_by_another_name(folder):
    (folder / "tokenizer.model").rename(folder / "spiece.model")


def fast_alone(folder):
    no_tokenizer(folder)
    write(folder, "tokenizer.json", {})


def another_fast(folder):
    content = tokenizer_json((folder / "tokenizer.model").read_bytes())
    content["model"]["vocab"][500][0] += "x"
    write(folder, "tokenizer.json", content)


def template(folder):
    content = tokenizer_json((folder / "tokenizer.model").read_bytes())
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}]
    step = {"type": "TemplateProcessing", "single": single}
    content["post_processor"] = {"type": "Sequence", "processors": [step]}
    write(folder, "tokenizer.json", content)


DECODER = {"added_tokens_decoder": {"1024": {"content": "<|user|>"}}}
REFUSED = {
    "untied": (config(tie_word_embeddings=False), "says tie_word_embeddings = false, but no file"),
    "scaled by layer": (
        config(scale_attn_by_inverse_layer_idx=True),
        "by_inverse_layer_idx = True",
    ),
    "not scaled": (config(scale_attn_weights=False), "scale_attn_weights = False"),
    "cross": (config(add_cross_attention=True), "add_cross_attention = True"),
    "pruned": (config(pruned_heads={"0": [1]}), "pruned_heads = {'0': [1]}"),
    "quantised": (config(quantization_config={"bits": 4}), "quantization_config = {'bits': 4}"),
    "another file": (config(transformers_weights="a.bin"), "transformers_weights = 'a.bin'"),
    "two sizes": (config(hidden_size=99), "n_embd = 24 and hidden_size = 99; leave the right one"),
    "no size": (config(n_embd="wide"), "is not the config.json of a model"),
    "no number": (config(max_position_embeddings=None), "is not the config.json of a model"),
    "inner": (config(n_inner=7), "has shape (24, 40), config.json's is (24, 7)"),
    "adapter": (file("adapter_config.json", {}), "adapter_config.json: merge it into the weights"),
    "added": (file("added_tokens.json", ADDED), "gives the id 1024 to '<|user|>'"),
    "added in the settings": (file("tokenizer_config.json", DECODER), "the id 1024 to '<|user|>'"),
    "bos": (file("tokenizer_config.json", {"add_bos_token": True}), "has add_bos_token = true"),
    "eos": (file("tokenizer_config.json", {"add_eos_token": True}), "has add_eos_token = true"),
    "bos by default": (
        file("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        'write "add_bos_token": false there',
    ),
    "bos by template": (template, "tokenizer.json puts '<s>' around each text"),
    "another tokenizer.json": (another_fast, "gives the id 500 to"),
    "no JSON": (file("added_tokens.json", [1]), "is not what transformers writes"),
    "names of no use": (no_weights, "holds no model.safetensors, no pytorch_model.bin"),
    "index of numbers": (
        lambda folder: (
            no_weights(folder),
            write(folder, "model.safetensors.index.json", {"weight_map": {"a": 5}}),
        ),
        "is no index of shards",
    ),
    "no tokenizer": (no_tokenizer, "with by --tokenizer=FILE"),
    "another name": (tokenizer_by_another_name, "spiece.model; if that is the model's"),
    "fast alone": (fast_alone, "has only tokenizer.json and no tokenizer.model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_ids_or_weights_is_named(case, weights, hugging_face, tmp_path, capsys):
    change, sentence = REFUSED[case]
    folder = hugging_face(weights)
    change(folder)
    assert imported(folder, tmp_path) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hugging_face"]


def test_the_mend_named_for_a_tokenizer_mends(weights, hugging_face, tmp_path, capsys):
    folder = hugging_face(weights)
    tokenizer_by_another_name(folder)
    assert imported(folder, tmp_path) == 1
    flag = next(word for word in capsys.readouterr().err.split() if word.startswith("--tokenizer="))
    assert imported(folder, tmp_path, "--tokenizer=nowhere") == 1
    assert "--tokenizer=nowhere is no file" in capsys.readouterr().err
    assert imported(folder, tmp_path, flag.rstrip(".")) == 0
    written = (tmp_path / "run/tokenizer.model").read_bytes()
    assert written == (folder / "spiece.model").read_bytes()


def test_a_padded_vocabulary_is_imported_and_its_padding_never_said(
    weights, hugging_face, tmp_path, capsys
):
    table = weights[EMBEDDING]
    loud = np.concatenate([table, 30 * table[5:69]])
    folder = hugging_face(weights | {EMBEDDING: loud}, vocab_size=len(loud))
    assert imported(folder, tmp_path) == 0
    sampling = ["--gin.sampling.new_tokens=5", "--gin.sampling.temperature=1.0"]
    assert main(["generate", f"--run={tmp_path}/run", "--prompt=Die", *sampling]) == 0
    assert "[Die]" in capsys.readouterr().out


def test_parameters_that_are_no_numbers_are_one_sentence(weights, hugging_face, tmp_path, capsys):
    name = "transformer.ln_f.weight"
    broken = weights | {name: np.full_like(weights[name], np.nan)}
    assert imported(hugging_face(broken), tmp_path) == 0
    run = f"--run={tmp_path}/run"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"context": "A", "continuation": "b"}))
    capsys.readouterr()
    for verb, *flags in (
        ["generate", "--prompt=A", "--gin.sampling.new_tokens=2"],
        ["score", f"--pairs={pairs}", f"--out={tmp_path}/scores"],
        ["export", f"--to={tmp_path}/out"],
    ):
        assert main([verb, run, *flags]) == 1
        assert "are not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
