"""llama.cpp, timed in a process of its own; needs only xllamacpp, its server in a Python package.

Told the file, the tokens of a text and the most texts at once as JSON in its first argument, it
says what the file holds, then answers one JSON line on each line of three numbers "batch prompt
new": seconds to read prompts, and then to add so many tokens. Where it is told calls, too, their
tokens of prompt and answer, a line is one number: seconds to answer all, so many at once.
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
    ids = range(3, model["meta"]["n_vocab"])

    def answer(call: tuple[list[int], int]) -> None:
        prompt, count = call
        found = ask(
            "/completion",
            prompt=prompt,
            n_predict=count,
            temperature=0,
            ignore_eos=True,
            cache_prompt=False,
        )
        assert found["tokens_predicted"] == count

    def seconds(at_once: int, calls: list[tuple[int, int]]) -> float:
        made_up = [(random.choices(ids, k=prompt), count) for prompt, count in calls]
        with ThreadPoolExecutor(at_once) as pool:
            started = time.perf_counter()
            list(pool.map(answer, made_up))
            return time.perf_counter() - started

    for line in sys.stdin:
        batch, *lengths = map(int, line.split())
        if calls := told.get("calls"):
            found = {"seconds": seconds(batch, calls)}
        else:
            prompt, new = lengths
            # the first token comes with the prompt
            prefill = seconds(batch, [(prompt, 1)] * batch)
            decode = seconds(batch, [(prompt, new + 1)] * batch) - prefill
            found = {"prefill": prefill, "decode": decode}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
