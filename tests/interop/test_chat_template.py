"""The exported chat template, rendered and encoded by transformers, is what `polylm chat` sends."""

import importlib.util
import json
import random
import subprocess
import sys

import pytest

from polylm_jax.data import tokenizer
from polylm_jax.decode.chat import FORMATS, encode, render, template
from polylm_jax.interop.folder import write_tokenizer
from tests.decode.test_chat import conversation, messages_of

PEER = """
import json, sys
from transformers import AutoTokenizer
folder, question, answer = sys.argv[1:]
fast = AutoTokenizer.from_pretrained(folder)
found = []
for messages in json.load(open(question)):
    told = fast.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    text = fast.apply_chat_template(messages, tokenize=False)
    found.append([text, told["input_ids"], told["assistant_masks"]])
json.dump(found, open(answer, "w"))
"""


def ours(turns, form, keep_ends, vocabulary):
    """Text, ids, and which ids are learned."""
    segments = render(turns, FORMATS[form], keep_ends)
    text = "".join(segment.text + "</s>" * segment.answer for segment in segments)
    ids, mask = [], []
    for segment, part in zip(segments, encode(vocabulary, [segments])[0], strict=True):
        ids += part
        mask += [int(segment.answer)] * len(part)
    return [text, ids, mask]


def differing(found, wanted, is_byte):
    """How many conversations differ in text, in ids, and in what is learned.

    Transformers takes a run of byte pieces for one character, so that it learns a whole run of
    which an answer has a part; a difference in byte pieces alone is not counted.
    """
    texts, ids, masks = 0, 0, 0
    for (text, theirs, learned), (our_text, our_ids, mask) in zip(found, wanted, strict=True):
        texts += text != our_text
        ids += theirs != our_ids
        pairs = zip(our_ids, learned, mask, strict=False)
        masks += not all(one == other or is_byte(i) for i, one, other in pairs)
    return texts, ids, masks


@pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="transformers comes with the extra `peer`"
)
@pytest.mark.parametrize("keep_ends", [False, True])
@pytest.mark.parametrize("form", ["multialpaca", "chat"])
def test_transformers_gives_our_text_our_ids_and_what_is_learned(tiny, tmp_path, form, keep_ends):
    vocabulary = tokenizer.load(str(tiny["tokenizer.path"]))
    write_tokenizer(tmp_path, vocabulary, 64, template(FORMATS[form], keep_ends))
    dice = random.Random(f"{form} {keep_ends}")
    talks = [conversation(dice) for _ in range(2500)]
    question, answer = tmp_path / "question.json", tmp_path / "answer.json"
    question.write_text(json.dumps([messages_of(turns) for turns in talks]))
    subprocess.run([sys.executable, "-c", PEER, tmp_path, question, answer], check=True)
    wanted = [ours(turns, form, keep_ends, vocabulary) for turns in talks]
    found = json.loads(answer.read_text())
    assert differing(found, wanted, vocabulary.processor.is_byte) == (0, 0, 0)
