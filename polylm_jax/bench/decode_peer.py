"""Hugging Face's generate, timed in a process of its own; needs only torch and transformers.

Told the size as JSON in its first argument, it answers one JSON line on each line of three
numbers "batch prompt new": seconds to read prompts, and then to add so many tokens.
"""

import json
import os
import sys
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def main() -> None:
    size = json.loads(sys.argv[1])
    device = size["device"]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = GPT2Config(
        vocab_size=size["vocabulary"],
        n_positions=size["context"],
        n_layer=size["layers"],
        n_head=size["heads"],
        n_embd=size["d_model"],
        n_inner=size["d_ff"],
        activation_function="gelu_pytorch_tanh",
        bos_token_id=1,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    dtype = getattr(torch, size["dtype"])
    model = GPT2LMHeadModel(config).to(device, dtype).eval()
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        batch, prompt, new = map(int, line.split())
        tokens = torch.randint(3, size["vocabulary"], (batch, prompt), device=device)

        def seconds(count: int, tokens: torch.Tensor = tokens) -> float:
            started = time.perf_counter()
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=count,
                pad_token_id=0,
            )
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        with torch.inference_mode():
            # the first token comes with the prompt
            prefill = seconds(1)
            print(
                json.dumps({"prefill": prefill, "decode": seconds(new + 1) - prefill}), flush=True
            )


if __name__ == "__main__":
    main()
