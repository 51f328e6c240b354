"""The SentencePiece file of a Hugging Face folder, and whether it is all of the folder's tokenizer.

A folder says in up to four files what becomes of a text. What they add to the SentencePiece file
changes the ids of a text, so it is refused by name: the ids that the model was trained on are those
of the SentencePiece file alone, or the folder is not imported.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polylm_jax.data.tokenizer import MODEL, Tokenizer, load
from polylm_jax.errors import UserError

# The classes that write <s> before each text where the settings do not forbid it.
_BEGINS_TEXTS = ("LlamaTokenizer", "LlamaTokenizerFast")


def find_tokenizer(folder: str, given: str = "") -> Tokenizer:
    """The tokenizer of a folder's tokenizer.model, or of the file given.

    UserError where there is none, or where the folder has tokens that are no pieces of it, other
    pieces in tokenizer.json, or a token that is put before or after each text.
    """
    file = Path(given or Path(folder, MODEL))
    if not file.is_file():
        raise UserError(_missing(folder, given))
    found = load(str(file))
    try:
        _check(found, file, Path(folder))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"a tokenizer's *.json in {folder} is not what transformers writes; fetch it again."
        ) from None
    return found


def _check(found: Tokenizer, file: Path, here: Path) -> None:
    """UserError if the folder's other files make another tokenizer of the SentencePiece file."""
    for source, number, text in _declared(here):
        if not _is_piece(found, number, text):
            raise UserError(
                f"{source} gives the id {number} to {text!r}, and {file} does not, so a text would "
                "get other ids; give the model's own SentencePiece file with --tokenizer=FILE."
            )
    settings = _read(here / "tokenizer_config.json")
    for flag in ("add_bos_token", "add_eos_token"):
        begins = flag == "add_bos_token" and settings.get("tokenizer_class") in _BEGINS_TEXTS
        if settings.get(flag, begins):
            raise UserError(
                f"{here / 'tokenizer_config.json'} has {flag} = true, if only by default: a token "
                "is put around each text, which is never done here; if the model was not trained "
                f'so, write "{flag}": false there.'
            )
    added = _around(_read(here / "tokenizer.json").get("post_processor"))
    if added:
        raise UserError(
            f"{here / 'tokenizer.json'} puts {added!r} around each text, which is never done here; "
            "if the model was not trained so, take its post_processor out."
        )


def _missing(folder: str, given: str) -> str:
    if given:
        return f"--tokenizer={given} is no file; give the model's SentencePiece file."
    others = sorted(path.name for path in Path(folder).glob("*.model"))
    if others:
        return (
            f"{folder} has no {MODEL} but {others[0]}; if that is the model's SentencePiece file, "
            f"give --tokenizer={Path(folder, others[0])}."
        )
    only = "only tokenizer.json and " if Path(folder, "tokenizer.json").is_file() else ""
    return (
        f"{folder} has {only}no {MODEL}, from which alone texts get their ids here; give the "
        "SentencePiece file that the model was trained with by --tokenizer=FILE."
    )


def _declared(folder: Path) -> Iterator[tuple[Path, int, str]]:
    """(file, id, text) of every token that the folder names beside the SentencePiece file."""
    file = folder / "added_tokens.json"
    yield from ((file, number, text) for text, number in _read(file).items())
    file = folder / "tokenizer_config.json"
    for number, token in _read(file).get("added_tokens_decoder", {}).items():
        yield file, int(number), token["content"]
    file = folder / "tokenizer.json"
    for token in _read(file).get("added_tokens", []):
        yield file, token["id"], token["content"]
    pieces = _read(file).get("model", {}).get("vocab", {})
    if isinstance(pieces, dict):  # BPE; unigram has a list of (piece, score)
        yield from ((file, number, piece) for piece, number in pieces.items())
    else:
        yield from ((file, number, piece) for number, (piece, _) in enumerate(pieces))


def _is_piece(found: Tokenizer, number: int, text: str) -> bool:
    if not 0 <= number < found.size:
        return False
    return found.processor.id_to_piece(number) in (text, text.replace(" ", "▁"))


def _around(processor: Any) -> str:
    """The tokens that a post-processor of tokenizer.json puts around a text, as one string."""
    steps = [processor] if processor else []
    while any(step.get("processors") for step in steps):
        steps = [inner for step in steps for inner in step.get("processors", [step])]
    parts = [part for step in steps for part in step.get("single", [])]
    tokens = [part["SpecialToken"]["id"] for part in parts if "SpecialToken" in part]
    tokens += [step[side][0] for step in steps for side in ("cls", "sep") if side in step]
    return " ".join(tokens)


def _read(file: Path) -> Any:
    """The content of a JSON file; an empty dict where there is none."""
    if not file.is_file():
        return {}
    return json.loads(file.read_text(encoding="utf-8"))
