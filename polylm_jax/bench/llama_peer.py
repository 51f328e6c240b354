"""llama.cpp, timed in a process of its own; needs only xllamacpp, its server in a Python package.

Told the file, the tokens of a text and the most texts at once as JSON in its first argument, it
says what the file holds, then answers one JSON line on each line of three numbers "batch prompt
new": seconds to read prompts, and then to add so many tokens.
"""

import json
import os
import random
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp


def main() -> None:
    told = json.loads(sys.argv[1])
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.warmup = told["file"], 0, False
    settings.n_parallel, settings.n_ctx = told["rows"], told["rows"] * told["tokens"]
    # its threads spin where they wait: more than there are cores would wait for each other
    settings.cpuparams.n_threads = len(os.sched_getaffinity(0))
    server = xllamacpp.Server(settings)

    def ask(path: str, **question: Any) -> Any:
        data = json.dumps(question).encode() if question else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, data, headers)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    [model] = ask("/v1/models")["data"]
    print(json.dumps(model["meta"]), flush=True)
    pool = ThreadPoolExecutor(told["rows"])
    for line in sys.stdin:
        batch, prompt, new = map(int, line.split())
        ids = range(3, model["meta"]["n_vocab"])
        prompts = [random.choices(ids, k=prompt) for _ in range(batch)]

        def seconds(count: int, prompts: list[list[int]] = prompts) -> float:
            def answer(tokens: list[int]) -> None:
                found = ask(
                    "/completion",
                    prompt=tokens,
                    n_predict=count,
                    temperature=0,
                    ignore_eos=True,
                    cache_prompt=False,
                )
                assert found["tokens_predicted"] == count

            started = time.perf_counter()
            list(pool.map(answer, prompts))
            return time.perf_counter() - started

        # the first token comes with the prompt
        prefill = seconds(1)
        print(json.dumps({"prefill": prefill, "decode": seconds(new + 1) - prefill}), flush=True)


if __name__ == "__main__":
    main()
