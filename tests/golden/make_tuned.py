"""Make tuned.npz: what Hugging Face GPT-2 loses on the answers of conversations, each alone.

Made with torch 2.13.0 (CPU), transformers 5.24.0, sentencepiece 0.2.3 and numpy 2.4.6, by

    python tests/golden/make_tuned.py

in a virtual environment that holds them; the tests that read the file need neither torch nor
transformers. Nothing of the project is imported: the conversations are written as text and as ids
here. The file holds config/<name> and weights/<name> as gpt2_a.npz does (see make_gpt2.py), and
    tokenizer        uint8, a SentencePiece model's file
    examples         uint8, JSONL in UTF-8 of {"messages": …}, one to three answers each
    loss             float64 [examples], summed over the answers' tokens and their </s>
    learned          int64 [examples], how many tokens that is
    gradients/<name> of the mean loss over all answers' tokens of all examples
"""

import json
import random
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from make_gpt2 import END_OF_TEXT, NAMES, random_model

SHAPE = (448, 16, 2, 2, 160, 40)  # of NAMES
EXAMPLES = 40
SEED = 17


def said(dice: random.Random, most: int) -> str:
    letters = ("ba", "do", "né", "Ki", "lu", "sta", "ünd", "ро", "好", "1")
    # no syllable twice in a word: versions of SentencePiece break its ties differently
    words = ["".join(dice.sample(letters, dice.randrange(1, 4))) for _ in range(most)]
    return dice.choice(("\n", " ")).join(words[: dice.randrange(1, most + 1)])


def conversations() -> list[list[dict[str, str]]]:
    dice = random.Random(SEED)
    return [
        [
            {"role": role, "content": said(dice, most)}
            for _ in range(dice.randrange(1, 4))
            for role, most in (("user", 4), ("assistant", 5))
        ]
        for _ in range(EXAMPLES)
    ]


def trained(texts: list[str]) -> bytes:
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.split("\n")),
        model_writer=model,
        vocab_size=SHAPE[0],
        hard_vocab_limit=False,
        num_threads=1,
        pad_id=-1,
        bos_id=1,
        eos_id=END_OF_TEXT,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def ids_of(messages: list[dict[str, str]], encode) -> tuple[list[int], list[bool]]:
    """Ids as Chat-13B's card has them, answers and what is between them encoded apart."""
    ids: list[int] = []
    learned: list[bool] = []
    for number, message in enumerate(messages):
        answers = message["role"] == "assistant"
        if answers:
            part = [*encode(message["content"]), END_OF_TEXT]
        else:
            between = "\n" if number else ""
            part = encode(f"{between}<|user|>\n{message['content']}\n<|assistant|>\n")
        ids += part
        learned += [answers] * len(part)
    return ids, learned


def main() -> None:
    torch.set_num_threads(1)  # one thread adds in one order
    shape = dict(zip(NAMES, SHAPE, strict=True))
    model = random_model(shape, torch.Generator().manual_seed(SEED))
    talks = conversations()
    marks = ["<|user|>", "<|assistant|>"] * EXAMPLES
    tokenizer = trained(marks + [message["content"] for talk in talks for message in talk])
    plain = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    assert plain.get_piece_size() <= shape["vocab_size"]
    totals, counts = [], []
    for talk in talks:
        ids, learned = (torch.tensor(x) for x in ids_of(talk, plain.encode))
        assert len(ids) <= shape["n_positions"]
        logits = model(ids[None, :-1]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        totals.append(losses[learned[1:]].double().sum())
        counts.append(int(learned[1:].sum()))
    (sum(totals) / sum(counts)).backward()
    lines = "\n".join(json.dumps({"messages": talk}, ensure_ascii=False) for talk in talks)
    arrays = {f"config/{name}": np.array(value) for name, value in shape.items()}
    for name, parameter in model.named_parameters():
        arrays[f"weights/{name}"] = parameter.detach().numpy()
        arrays[f"gradients/{name}"] = parameter.grad.numpy()
    arrays["tokenizer"] = np.frombuffer(tokenizer, np.uint8)
    arrays["examples"] = np.frombuffer(lines.encode(), np.uint8)
    arrays["loss"] = np.array([float(total.detach()) for total in totals])
    arrays["learned"] = np.array(counts)
    path = Path(__file__).with_name("tuned.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, {sum(counts)} learned tokens")


if __name__ == "__main__":
    main()
