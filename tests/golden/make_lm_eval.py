"""Make lm_eval.npz: what lm-eval's own model for transformers makes of a folder that we exported.

Made with lm-eval 0.4.13, torch 2.13.0 (CPU), transformers 5.24.0 and sentencepiece 0.2.3, by

    python tests/golden/make_lm_eval.py PYTHON

in a virtual environment that holds these; PYTHON is one that has polylm_jax, whose `import` and
`export` make the folder of release.npz's model. The file holds
    tokenizer        uint8, a tokenizer.model of as many pieces as the model has rows
    cases            uint8, JSON in UTF-8:
      "pairs"        [context, continuation, ln p, whether greedy]; cut anywhere, also in a token
      "texts"        [text, ln p], of no token up to four times the model's context
      "answers"      [prompt, settings of the generation, answer]; a stop string is none, is inside
                     a token, or begins in one and ends in another
      "chats"        [messages, whether an answer is awaited, text]
      "words"        [language, answer, gold]
    f1               float64 [words, 2]: of those in "words" by SQuAD v1.1's
                     official script, which XTREME has too, and by lm-eval's TyDiQA
"""

import json
import random
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.qasper.metrics import f1_abstractive
from lm_eval.tasks.tydiqa.utils import f1_score
from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "data"))
from sentences import SENTENCES  # noqa: E402

LANGUAGES = ("en", "zh", "ru", "de", "fr", "ja", "vi", "ar", "th", "ko")
NEW_TOKENS = 20
PROMPTS = 50
PAIRS = 80
WORDS = 1000
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
}


def tokenizer(size: int) -> bytes:
    """As `polylm tokenizer` makes one."""
    model = BytesIO()
    text = [line for lines in SENTENCES.values() for text in lines for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 8),
        model_writer=model,
        vocab_size=size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def exported(folder: Path, python: str, model: bytes) -> Path:
    """release.npz's model as `polylm export` writes it."""
    theirs, run, to = (folder / name for name in ("theirs", "run", "exported"))
    theirs.mkdir()
    with np.load(HERE / "release.npz") as file:
        content = dict(file)

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}

    config = CONFIG | {name: int(value) for name, value in part("config/").items()}
    (theirs / "config.json").write_text(json.dumps(config))
    (theirs / "tokenizer.model").write_bytes(model)
    weights = {k: np.ascontiguousarray(v) for k, v in part("weights/").items()}
    save_file(weights, theirs / "model.safetensors")
    for verb in (["import", f"--from={theirs}", f"--run={run}"],
                 ["export", f"--run={run}", f"--to={to}", "--dtype=float32"]):  # fmt: skip
        subprocess.run([python, "-m", "polylm_jax", *verb], check=True, stdout=subprocess.DEVNULL)
    return to


def asked(call, arguments: list[tuple]) -> list:
    return call([Instance("", {}, given, i) for i, given in enumerate(arguments)])


def pairs(judge: HFLM, chance: random.Random) -> list[list]:
    found = []
    while len(found) < PAIRS:
        text = " ".join(chance.sample(SENTENCES[LANGUAGES[len(found) % len(LANGUAGES)]], 2))
        cut = chance.choice([0, chance.randrange(len(text)), chance.randrange(len(text))])
        context = text[:cut] + chance.choice(["", "", "  "])
        continuation = text[cut : cut + chance.randrange(1, 24)]
        head, tail = (judge._encode_pair(context, continuation) if context
                      else ([2], judge.tok_encode(continuation)))  # fmt: skip
        # lm-eval ends with an assertion where one of them has no token, or the second too many
        if head and tail and len(tail) <= judge.max_length:
            found.append([context, continuation])
    scores = asked(judge.loglikelihood, [tuple(pair) for pair in found])
    return [[*pair, *score] for pair, score in zip(found, scores, strict=True)]


def texts(judge: HFLM) -> list[list]:
    found = ["", "a", SENTENCES["en"][0]]
    for n, language in enumerate(LANGUAGES, 1):
        found.append(" ".join(SENTENCES[language][: n % 5 + 1]))
    # exactly one, two and three times what the model can see, and one token more
    ids = judge.tok_encode(" ".join(SENTENCES["en"] + SENTENCES["de"]))
    for more in (0, 1):
        found += [judge.tok_decode(ids[: times * judge.max_length + more]) for times in (1, 2, 3)]
    sums = asked(judge.loglikelihood_rolling, [(text,) for text in found])
    return [list(pair) for pair in zip(found, sums, strict=True)]


def free(judge: HFLM, prompt: str) -> list[int]:
    """The ids of an answer that nothing stops; none where two tokens nearly tie for one of them."""
    ids = torch.tensor([judge.tok_encode(prompt)[NEW_TOKENS - judge.max_length :]])
    found = judge.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best, second = torch.stack(found.scores).topk(2).values.unbind(-1)
    new = found.sequences[0, ids.shape[1] :].tolist()
    return [i for i in new if i != 2] if (best - second).min() > 1e-3 else []


def answers(judge: HFLM, chance: random.Random) -> list[list]:
    """Stop strings are taken from what the model says when nothing stops it."""
    found: list[list] = []
    kinds = {"none": 0, "inside": 0, "across": 0}
    while len(found) < PROMPTS:
        language = LANGUAGES[len(found) % len(LANGUAGES)]
        text = " ".join(chance.sample(SENTENCES[language], 3))
        prompt = text[: chance.randrange(1, len(text))]
        settings = {"until": [], "do_sample": False, "max_gen_toks": NEW_TOKENS}
        new = free(judge, prompt)
        if len(new) < 4:
            continue
        kind = min(kinds, key=lambda name: kinds[name])
        pieces = [judge.tokenizer.convert_ids_to_tokens(i).replace("▁", " ") for i in new]
        if kind == "inside":
            whole = [p for p in pieces[1:] if len(p) > 1 and not p.startswith("<0x")]
            parts = [part for p in whole for part in (p[1:], p[:-1])]
            settings["until"] = [chance.choice(parts)] if parts else [""]
        elif kind == "across":
            two = "".join(pieces[chance.randrange(1, len(new) - 2) :][:2])
            settings["until"] = [two[1:-1] if len(two) > 3 else two, "\n\n"]
        if any("<0x" in stop or not stop for stop in settings["until"]):
            continue
        kinds[kind] += 1
        [answer] = asked(judge.generate_until, [(prompt, json.loads(json.dumps(settings)))])
        found.append([prompt, settings, answer])
    cut = sum(bool(s["until"]) for _, s, _ in found)
    print(f"answers: {kinds}, {cut} with stop strings")
    return found


def chats(judge: HFLM) -> list[list]:
    user, said = (lambda text: {"role": "user", "content": text},
                  lambda text: {"role": "assistant", "content": text})  # fmt: skip
    found = []
    for language in LANGUAGES[:5]:
        a, b, c, d, *_ = SENTENCES[language]
        found += [[[user(a)], True], [[user(a), said(b), user(c + "\n\n</s>" + d)], True]]
        found += [[[user(a), said(b), user(c), said(d)], False]]
        found += [[[{"role": "system", "content": d}, user(a)], True]]
    return [[messages, more, judge.apply_chat_template(messages, more)] for messages, more in found]


def words(chance: random.Random) -> list[list[str]]:
    """[language, answer, gold]: parts of sentences with words and marks changed."""
    found = []
    for n in range(WORDS):
        language = list(SENTENCES)[n % len(SENTENCES)]
        parts = chance.choice(SENTENCES[language]).split() or ["a"]
        start = chance.randrange(len(parts))
        gold = parts[start : start + chance.randrange(1, 8)]
        answer = [p for p in gold if chance.random() < 0.8] or gold[:1]
        answer += chance.sample(parts, min(len(parts), chance.randrange(3)))
        marks = chance.choice(["{}", "{}", "«{}»", "The {}.", "“{}”", "ال{}", "{}。", "an {}!"])
        found.append([language, marks.format(" ".join(answer)), " ".join(gold)])
    return found


def main() -> None:
    torch.set_num_threads(1)
    chance = random.Random(7)
    with np.load(HERE / "release.npz") as file:
        model = tokenizer(int(file["config/vocab_size"]))
    with tempfile.TemporaryDirectory() as folder:
        to = exported(Path(folder), sys.argv[1], model)
        judge = HFLM(pretrained=str(to), dtype="float32", device="cpu", batch_size=8)
        cases = {
            "pairs": pairs(judge, chance),
            "texts": texts(judge),
            "answers": answers(judge, chance),
            "chats": chats(judge),
            "words": words(chance),
        }
    f1 = [[f1_abstractive([answer], [gold]), f1_score(answer, gold, language)]
          for language, answer, gold in cases["words"]]  # fmt: skip
    path = HERE / "lm_eval.npz"
    np.savez_compressed(
        path,
        tokenizer=np.frombuffer(model, np.uint8),
        cases=np.frombuffer(json.dumps(cases, ensure_ascii=False).encode(), np.uint8),
        f1=np.array(f1),
    )
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
