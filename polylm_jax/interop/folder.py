"""What lies in an exported folder beside the weights: configuration, tokenizer, model card."""

import json
from pathlib import Path

from polylm_jax.data.languages import is_language
from polylm_jax.data.tokenizer import MODEL, Tokenizer
from polylm_jax.interop.fast_tokenizer import compared, tokenizer_json
from polylm_jax.interop.hugging_face import config_of, token_ids
from polylm_jax.model.parameters import count
from polylm_jax.sizes import Size
from polylm_jax.train.door import Run

# Training texts begin after `</s>`, never with `<s>`, so that is what others shall begin with.
_SPECIAL = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def write_configs(folder: Path, size: Size, dtype: str, init_std: float) -> None:
    """config.json and generation_config.json. init_std: as in `init.std`."""
    _write(folder / "config.json", config_of(size, dtype, init_std))
    _write(folder / "generation_config.json", token_ids())


def write_tokenizer(folder: Path, vocabulary: Tokenizer, context: int, chat_template: str) -> str:
    """tokenizer.model, and the tokenizer.json and settings that fast loaders take instead.

    chat_template: Jinja that renders a conversation as `polylm chat` does.
    Returns a sentence on how the two agree.
    """
    content = tokenizer_json(vocabulary.model)
    (folder / MODEL).write_bytes(vocabulary.model)
    _write(folder / "tokenizer.json", content)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "padding_side": "left",  # a prompt's end is where generation goes on
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": chat_template,
    }
    _write(folder / "tokenizer_config.json", settings | _SPECIAL)
    _write(folder / "special_tokens_map.json", _SPECIAL)
    return compared(vocabulary.model, content)


def model_card(
    run: Run, bits: tuple[dict[str, float], dict[str, float]] | None, tokenizers: str
) -> str:
    """README.md of a model: what it is, how to load it, what it scored, what made it.

    tokenizers: the sentence of `write_tokenizer`.
    bits: bits per byte of validation text by source, untrained and trained.
    """
    size, meta = run.size, run.meta
    before, after = bits or ({}, {})
    languages = [source for source in after if is_language(source)]
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if languages:
        head += ["language:", *(f"- {code}" for code in languages)]
    table = ["Bits per byte of validation text.", "", "| source | untrained | trained |"]
    table += ["|---|---|---|"]
    table += [f"| {name} | {before[name]:.3f} | {after[name]:.3f} |" for name in after]
    prints = [f"| {name} | `{value}` |" for name, value in meta["fingerprints"].items()]
    return "\n".join(
        [
            *[*head, "---", "", "# PolyLM", ""],
            f"A GPT-2 shaped language model of {count(size):,} parameters: {size.layers} layers of "
            f"{size.d_model}, {size.heads} heads,",
            f"{size.vocabulary:,} pieces, a context of {size.context} tokens. Step {run.step} of "
            f"its run, {meta['rows']:,} rows read.",
            *["", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""],
            *['tokenizer = AutoTokenizer.from_pretrained(".")'],
            *['model = AutoModelForCausalLM.from_pretrained(".")', "```", ""],
            "`</s>` (id 2) ends a document, and so stands before each, too; `<s>` (1) was never",
            "written. The vocabulary has no padding id: `<unk>` (0), which never occurs in text,",
            "stands in for it. To come back with `polylm import`, a folder that `save_pretrained`",
            "wrote needs this tokenizer.model: `--tokenizer=FILE`.",
            *["", tokenizers],
            *["", "## Evaluation", ""],
            *(table if after else ["None is recorded in the run."]),
            *["", "## Made from", "", "| what | fingerprint |", "|---|---|", *prints],
            *["", "## Configuration", "", "```python", meta["gin"].rstrip(), "```", ""],
        ]
    )


def _write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
