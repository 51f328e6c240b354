"""Make beams.npz: what Hugging Face's beam search adds to 56 prompts, under eight settings.

Made with torch 2.13.0 (CPU), transformers 5.23.0 and numpy 2.4.6, by

    python tests/golden/make_beams.py

in a virtual environment that holds torch and transformers. The model is that of make_gpt2.py,
of another seed, with logits scaled down so that beams differ in length. Nothing of the project is
imported. Every prompt is alone in its batch, for padding on the left would count as seen.

The file holds
    config/<name>, weights/<name>     as make_gpt2.py writes them
    prompt_<i>                        int32, 1 to 24 long
    <setting>/<i>                     what is added, cut after the first end of text
"""

from pathlib import Path

import numpy as np
import torch
from make_gpt2 import END_OF_TEXT, NAMES, random_model

SHAPE = dict(zip(NAMES, (89, 24, 3, 2, 64, 48), strict=True))
PROMPTS = 56
NEW_TOKENS = 16
SETTINGS = {
    "greedy": {},
    "greedy_penalty": {"repetition_penalty": 1.2},
    "early": {"num_beams": 4, "early_stopping": True},
    "late": {"num_beams": 4, "early_stopping": False},
    "never": {"num_beams": 4, "early_stopping": "never"},
    "short": {"num_beams": 4, "early_stopping": False, "length_penalty": 0.6},
    "long": {"num_beams": 4, "early_stopping": True, "length_penalty": 1.5},
    "beams_penalty": {"num_beams": 4, "early_stopping": False, "repetition_penalty": 1.2},
}


def answer(model: torch.nn.Module, prompt: torch.Tensor, setting: dict) -> np.ndarray:
    sequences = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        **setting,
    )
    new = sequences[0, len(prompt) :].numpy()
    ends = np.flatnonzero(new == END_OF_TEXT)
    return new[: ends[0] + 1] if len(ends) else new


def main() -> None:
    torch.set_num_threads(1)  # one thread adds in one order
    generator = torch.Generator().manual_seed(5)
    model = random_model(SHAPE, generator)
    with torch.no_grad():
        final = model.transformer.ln_f
        final.weight.copy_(torch.round(final.weight * 1024) / 4096)
        final.bias.copy_(torch.round(final.bias * 1536) / 4096)
    arrays = {f"config/{name}": np.array(value) for name, value in SHAPE.items()}
    arrays |= {f"weights/{name}": p.detach().numpy() for name, p in model.named_parameters()}
    lengths = torch.randint(1, 25, (PROMPTS,), generator=generator)
    prompts = [torch.randint(3, SHAPE["vocab_size"], (n,), generator=generator) for n in lengths]
    for i, prompt in enumerate(prompts):
        arrays[f"prompt_{i}"] = prompt.numpy().astype(np.int32)
    precise = [answer(model.double(), prompt, SETTINGS["late"]) for prompt in prompts]
    model.float()
    for name, setting in SETTINGS.items():
        answers = [answer(model, prompt, setting) for prompt in prompts]
        arrays |= {f"{name}/{i}": new.astype(np.int32) for i, new in enumerate(answers)}
        early = sum(len(new) < NEW_TOKENS for new in answers)
        print(f"{name}: {early} of {PROMPTS} end early, {sum(map(len, answers))} tokens")
        assert name != "late" or all(map(np.array_equal, answers, precise)), "rounding decides"
    path = Path(__file__).with_name("beams.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
