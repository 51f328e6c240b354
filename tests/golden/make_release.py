"""Make release.npz and torch_*.bin: a GPT-2 as the release has it, its answers, its files.

Made with torch 2.13.0 (CPU), transformers 5.23.0 and numpy 2.4.6, by

    python tests/golden/make_release.py

in a virtual environment that holds torch and transformers; the tests that read the files need
neither. release.npz holds config/<name>, weights/<name>, tokens and logits as gpt2_a.npz does
(see make_gpt2.py), and for each i below PROMPTS
    prompt_<i>       int32, of 1 to 24 ids
    greedy_<i>       what greedy search adds to it, alone in its batch, cut after the first </s>
    penalty_<i>      the same with the repetition penalty PENALTY
torch_float32.bin, torch_float16.bin and torch_bfloat16.bin are state dicts of a smaller model as
torch.save writes them, lm_head and causal masks among them; torch_1.4.bin is the first in the
format from before torch 1.6; torch.npz holds its weights.
"""

from pathlib import Path

import numpy as np
import torch
from make_gpt2 import END_OF_TEXT, NAMES, NEW_TOKENS, random_model

PROMPTS = 56
PENALTY = 1.3
SHAPE = (1024, 24, 2, 2, 48, 40)  # of NAMES
SMALL = (40, 8, 2, 2, 16, 24)
SEED = 5


def answer(model, prompt: torch.Tensor, penalty: float) -> np.ndarray:
    found = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        repetition_penalty=penalty,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best, second = torch.stack(found.scores).topk(2).values.unbind(-1)
    # a near tie would make the right answer a matter of rounding
    assert (best - second).min() > 1e-3, "two tokens nearly tie: choose another seed"
    return found.sequences[0, len(prompt) :].numpy().astype(np.int32)


def reference() -> dict[str, np.ndarray]:
    shape = dict(zip(NAMES, SHAPE, strict=True))
    generator = torch.Generator().manual_seed(SEED)
    model = random_model(shape, generator)
    with torch.no_grad():
        # lean towards the end of text, which is one of many ids here
        model.transformer.ln_f.bias.add_(0.5 * model.transformer.wte.weight[END_OF_TEXT])
        for parameter in model.parameters():
            parameter.copy_(torch.round(parameter * 256) / 256)  # compresses well
    arrays = {f"config/{name}": np.array(value) for name, value in shape.items()}
    arrays |= {f"weights/{n}": value.detach().numpy() for n, value in model.named_parameters()}
    tokens = torch.randint(0, shape["vocab_size"], (1, 32), generator=generator)
    arrays["tokens"] = tokens.numpy().astype(np.int32)
    arrays["logits"] = model(tokens).logits.detach().numpy()
    kept = 0
    while kept < PROMPTS:
        length = kept % 24 + 1
        prompt = torch.randint(3, shape["vocab_size"], (length,), generator=generator)
        try:
            arrays |= {
                f"greedy_{kept}": answer(model, prompt, 1.0),
                f"penalty_{kept}": answer(model, prompt, PENALTY),
                f"prompt_{kept}": prompt.numpy().astype(np.int32),
            }
        except AssertionError:
            continue  # draw another prompt
        kept += 1
    answers = [arrays[f"greedy_{i}"] for i in range(PROMPTS)]
    others = [arrays[f"penalty_{i}"] for i in range(PROMPTS)]
    early = [len(a) < NEW_TOKENS for a in answers]
    changed = sum(not np.array_equal(*pair) for pair in zip(answers, others, strict=True))
    assert any(early), "some answers must end early: choose another seed"
    assert not all(early), "some answers must not end early: choose another seed"
    print(f"{sum(early)} of {PROMPTS} answers end early; the penalty changes {changed}")
    return arrays


def state_dict() -> dict[str, torch.Tensor]:
    model = random_model(dict(zip(NAMES, SMALL, strict=True)), torch.Generator().manual_seed(SEED))
    state = model.state_dict()
    for layer in range(2):  # what transformers wrote until 4.30
        mask = torch.ones(16, 16, dtype=torch.uint8).tril().view(1, 1, 16, 16)
        state[f"transformer.h.{layer}.attn.bias"] = mask.bool() if layer else mask
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


def main() -> None:
    torch.set_num_threads(1)  # one thread adds in one order
    folder = Path(__file__).parent
    np.savez_compressed(folder / "release.npz", **reference())
    state = state_dict()
    np.savez_compressed(folder / "torch.npz", **{k: v.numpy() for k, v in state.items()})
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = f"torch_{str(dtype).removeprefix('torch.')}.bin"
        cast = type(state)(
            (k, v.to(dtype) if v.is_floating_point() else v) for k, v in state.items()
        )
        cast["lm_head.weight"] = cast["transformer.wte.weight"]  # one storage, as in the release
        cast._metadata = getattr(state, "_metadata", {})
        torch.save(cast, folder / name)
    torch.save(state, folder / "torch_1.4.bin", _use_new_zipfile_serialization=False)
    for file in (*folder.glob("torch*"), folder / "release.npz"):
        print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
