"""What others make of our files, in an environment of their own, with no JAX and none of us.

    python judge.py NAME QUESTION ANSWER

NAME is a function here, QUESTION a JSON file of its arguments, ANSWER the JSON file for its result.
"""

import json
import sys
import urllib.request
from pathlib import Path


def transformers(folder, texts, prompts, tokens, new_tokens, save):
    """The folder as AutoModel and AutoTokenizer have it, then saved by them once more."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    fast = AutoTokenizer.from_pretrained(folder)
    assert type(model) is GPT2LMHeadModel
    assert fast.is_fast
    batch = fast(texts[:8], padding=True, return_tensors="pt")
    width, settings = batch.input_ids.shape[1], {"do_sample": False, "max_new_tokens": new_tokens}
    found = {
        "specials": [
            [of.bos_token_id, of.eos_token_id, of.pad_token_id]
            for of in (model.config, model.generation_config, fast)
        ],
        "ids": [fast(text).input_ids for text in texts],
        "texts": [fast.decode(fast(text).input_ids) for text in texts],
        "logits": model(torch.tensor(tokens)).logits.tolist(),
        "from nothing": model.generate(**settings)[0].tolist(),
        "in a batch": model.generate(**batch, **settings)[:, width:].tolist(),
    }
    for name, penalty in ("greedy", 1.0), ("penalty", 1.3):
        found[name] = [
            model.generate(torch.tensor([prompt]), repetition_penalty=penalty, **settings)[
                0, len(prompt) :
            ].tolist()
            for prompt in prompts
        ]
    model.save_pretrained(save)
    fast.save_pretrained(save)
    return found


def searches(folder, prompts, ids, new_tokens):
    """Greedy and beam search without the ids that the tokenizer has not."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    unknown = list(range(ids, model.config.vocab_size))
    settings = {"do_sample": False, "max_new_tokens": new_tokens, "eos_token_id": 2}
    return {
        str(beams): [
            model.generate(
                torch.tensor([prompt]), num_beams=beams, suppress_tokens=unknown, **settings
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]
        for beams in (1, 4)
    }


def logits(folders, tokens):
    """Of each folder."""
    import torch
    from transformers import GPT2LMHeadModel

    models = [GPT2LMHeadModel.from_pretrained(folder).eval() for folder in folders]
    return [model(torch.tensor(tokens)).logits.tolist() for model in models]


def peft(base, adapters, tokens):
    """The folder of adapters on the folder of their base: as loaded, and merged by peft."""
    import torch
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    model = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), adapters).eval()
    ids = torch.tensor(tokens)
    with torch.no_grad():
        loaded = model(ids).logits.tolist()
        with model.disable_adapter():
            without = model(ids).logits.tolist()
        return [without, loaded, model.merge_and_unload()(ids).logits.tolist()]


def pickles(folder, parameters, nested):
    """Saves a folder's weights as others do: as nn.Parameters with a buffer, and under a name."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder)
    state = dict(model.named_parameters()) | {"transformer.position_ids": torch.arange(9)}
    torch.save(state, parameters)
    torch.save({"epoch": 3, "model": model.state_dict()}, nested)


def lm_eval(folder, pairs, texts, asked):
    """What lm-eval's model for transformers answers to its three calls."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1)

    def call(name, arguments):
        return getattr(model, name)([Instance(name, {}, tuple(one), 0) for one in arguments])

    return {
        "pairs": call("loglikelihood", pairs),
        "texts": call("loglikelihood_rolling", [[text] for text in texts]),
        "answers": [call("generate_until", [one])[0] for one in asked],
    }


def llama(file, texts, prompts, new_tokens):
    """A GGUF file as llama.cpp's server has it."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.warmup = file, 0, False
    settings.n_parallel = settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)

    def ask(path, **question):
        data, kind = json.dumps(question).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, data, kind)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    greedy = {"n_predict": new_tokens, "temperature": 0, "return_tokens": True}
    greedy |= {"cache_prompt": False}
    ids = [ask("/tokenize", content=text, add_special=False)["tokens"] for text in texts]
    return {
        "ids": ids,
        "texts": [ask("/detokenize", tokens=tokens)["content"] for tokens in ids],
        "greedy": [ask("/completion", prompt=prompt, **greedy)["tokens"] for prompt in prompts],
    }


if __name__ == "__main__":
    name, question, answer = sys.argv[1:]
    found = globals()[name](**json.loads(Path(question).read_text()))
    Path(answer).write_text(json.dumps(found))
