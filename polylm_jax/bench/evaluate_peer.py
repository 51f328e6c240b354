"""lm-eval's HFLM, timed in a process of its own; needs only lm-eval, torch and transformers.

Told the size as JSON in its first argument, with a file of requests, it answers one JSON line on
each line with the number of a form: seconds for its requests, by the wall's clock and of processor
time.
"""

import json
import sys
import time

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def main() -> None:
    size = json.loads(sys.argv[1])
    torch.set_num_threads(size["threads"])
    config = GPT2Config(
        vocab_size=size["vocabulary"],
        n_positions=size["context"],
        n_layer=size["layers"],
        n_head=size["heads"],
        n_embd=size["d_model"],
        n_inner=size["d_ff"],
        activation_function="gelu_pytorch_tanh",
        bos_token_id=2,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config).to(size["device"], getattr(torch, size["dtype"])).eval()
    words = Tokenizer(models.WordLevel({"</s>": 2, "<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
    with open(size["requests"]) as file:
        forms = json.load(file)
    judges = {
        name: HFLM(model, tokenizer=tokenizer, batch_size=batch, device=size["device"])
        for name, batch in size["batch"].items()
    }
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        name = list(forms)[int(line)]
        requests = [(("", ""), head, tail) for head, tail in forms[name]]
        wall, processor = time.perf_counter(), time.process_time()
        judges[name]._loglikelihood_tokens(requests, disable_tqdm=True)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(json.dumps({"wall": wall, "processor": processor}), flush=True)


if __name__ == "__main__":
    main()
