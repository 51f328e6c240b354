"""Make gpt2_a.npz, gpt2_b.npz and gpt2_c.npz: what Hugging Face GPT-2 answers on random weights.

Made with torch 2.13.0 (CPU), transformers 5.23.0 and numpy 2.4.6, by

    python tests/golden/make_gpt2.py

in a virtual environment that holds torch and transformers. Nothing of the project is imported, so
the files are an outside opinion; the tests that read them need neither torch nor transformers.

Every file holds
    config/<name>         the shape, as 0-d integers
    weights/<name>        each parameter under its name in model.safetensors; lm_head is tied
    tokens                int32 [batch, n_positions]
    logits                float32 [batch, n_positions, vocab_size]
    loss_per_token        float32 [batch, n_positions - 1], the cross-entropy of the next token
    gradients/<name>      of the mean of loss_per_token (a and c)
    prompt_<i>, greedy_<i>  a prompt and what greedy search adds to it, alone in its batch, cut
                          after the first end of text, at most NEW_TOKENS long (a and b)
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

END_OF_TEXT = 2
NEW_TOKENS = 12
PROMPT_LENGTHS = (1, 3, 7, 12, 20)
SHAPES = {  # (vocab_size, n_embd, n_head, n_layer, n_positions, n_inner)
    "gpt2_a": (97, 24, 3, 3, 37, 96),
    "gpt2_b": (131, 40, 5, 2, 64, 112),
    "gpt2_c": (61, 16, 1, 1, 8, 64),
}
NAMES = ("vocab_size", "n_embd", "n_head", "n_layer", "n_positions", "n_inner")
SEEDS = {"gpt2_a": 13, "gpt2_b": 23, "gpt2_c": 3}
ROWS = {"gpt2_a": 3, "gpt2_b": 2, "gpt2_c": 4}


def random_model(shape: dict[str, int], generator: torch.Generator) -> GPT2LMHeadModel:
    """A model in which every parameter, biases and LayerNorm too, matters to the outcome."""
    config = GPT2Config(
        **shape,
        activation_function="gelu_fast",
        layer_norm_epsilon=1e-5,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=END_OF_TEXT,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            # multiples of 1/4096 compress well and are still too fine to survive bfloat16
            parameter.copy_(torch.round((centre + noise) * 4096) / 4096)
        # lean towards the end of text, so that some answers end early and others do not
        final = model.transformer.ln_f.bias
        final.add_(torch.round(model.transformer.wte.weight[END_OF_TEXT] * 2048) / 4096)
    return model


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    )


def greedy(model: GPT2LMHeadModel, prompt: torch.Tensor) -> np.ndarray:
    answer = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best, second = torch.stack(answer.logits).topk(2).values.unbind(-1)
    # a near tie would make the right answer a matter of rounding
    assert (best - second).min() > 1e-2, "two tokens nearly tie: choose another seed"
    return answer.sequences[0, len(prompt) :].numpy()


def reference(name: str, seed: int, gradients: bool, generation: bool) -> dict[str, np.ndarray]:
    shape = dict(zip(NAMES, SHAPES[name], strict=True))
    generator = torch.Generator().manual_seed(seed)
    model = random_model(shape, generator)
    parameters = dict(model.named_parameters())
    size = (ROWS[name], shape["n_positions"])
    tokens = torch.randint(0, shape["vocab_size"], size, generator=generator)
    logits = model(tokens).logits
    losses = next_token_loss(logits, tokens)
    losses.mean().backward()

    arrays = {f"config/{name}": np.array(value) for name, value in shape.items()}
    arrays |= {f"weights/{name}": value.detach().numpy() for name, value in parameters.items()}
    arrays["tokens"] = tokens.numpy().astype(np.int32)
    arrays["logits"] = logits.detach().numpy()
    arrays["loss_per_token"] = losses.detach().numpy()
    if gradients:
        arrays |= {f"gradients/{name}": value.grad.numpy() for name, value in parameters.items()}
    if generation:
        ended = set()
        for i, length in enumerate(PROMPT_LENGTHS):
            prompt = torch.randint(3, shape["vocab_size"], (length,), generator=generator)
            answer = greedy(model, prompt)
            arrays[f"prompt_{i}"] = prompt.numpy().astype(np.int32)
            arrays[f"greedy_{i}"] = answer.astype(np.int32)
            ended.add(bool(answer[-1] == END_OF_TEXT) and len(answer) < NEW_TOKENS)
        assert ended == {False, True}, "some answers must end early, some not: choose another seed"
    return arrays


def main() -> None:
    torch.set_num_threads(1)  # one thread adds in one order
    for name, seed in SEEDS.items():
        arrays = reference(name, seed, gradients=name != "gpt2_b", generation=name != "gpt2_c")
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
