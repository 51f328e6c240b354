"""`polylm serve` on a run of ours: the text of `polylm generate`, the numbers of `score`."""

import json
import threading

import pytest

from polylm_jax.__main__ import main
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.serve import server
from tests import scripted
from tests.serve.test_http import HTTP, events, soon

FLAGS = ["--gin.compute.dtype=float32", "--gin.serve.slots=4", "--gin.chat.format=chat"]
FLAGS += ["--gin.compute.prefill_chunk=16", "--gin.serve.prompt_tokens=16", "--gin.serve.burst=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random parameters."""
    return scripted.babbles(tmp_path_factory.mktemp("babbles"), scripted.tokenizer()[0], 128)


@pytest.fixture(scope="module")
def served(run):
    """The address of a server of the run, and a list of the status with which it has ended."""
    began, made = threading.Event(), []

    class Watched(server.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            made.append((self, sockets[0].getsockname()[1]))
            began.set()

    patch, ended = pytest.MonkeyPatch(), []
    patch.setattr(server, "Server", Watched)
    verb = ["serve", f"--run={run}", "--port=0", *FLAGS]
    thread = threading.Thread(target=lambda: ended.append(main(verb)), daemon=True)
    thread.start()
    assert began.wait(400)
    patch.undo()
    [(ours, port)] = made
    yield f"http://127.0.0.1:{port}"
    ours.handle_exit(15)
    thread.join(30)
    assert ended == [0]


def test_it_says_what_generate_says_whole_and_streamed_among_others(served, run, tmp_path):
    prompts = ["Bitte geben Sie", "Привет", "请点击", "if x: return"]
    file, out = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    asked = [f"--prompts={file}", f"--out={out}", "--gin.sampling.new_tokens=24"]
    assert main(["generate", f"--run={run}", *asked, *FLAGS]) == 0
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    said = {"prompt": prompts, "max_tokens": 24, "temperature": 0}
    whole = HTTP.post(served + "/v1/completions", json=said).json()
    assert [choice["text"] for choice in whole["choices"]] == texts
    told, done = events(HTTP.post(served + "/v1/completions", json=said | {"stream": True}).text)
    assert done
    parts = [choice for event in told for choice in event["choices"]]
    for index, text in enumerate(texts):
        assert "".join(one["text"] for one in parts if one["index"] == index) == text


def test_echo_has_the_log_probabilities_of_score(served, run, tmp_path):
    context, continuation = "Bitte geben Sie", " einen Namen ein 你"
    file, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    file.write_text(json.dumps({"context": context, "continuation": continuation}) + "\n")
    assert main(["score", f"--run={run}", f"--pairs={file}", f"--out={out}", *FLAGS]) == 0
    score = json.loads(out.read_text())
    tokenizer = Tokenizer((run / "tokenizer.model").read_bytes())
    [whole], [head] = tokenizer.encode([context + continuation]), tokenizer.encode([context])
    said = {"prompt": whole, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    told = HTTP.post(served + "/v1/completions", json=said).json()["choices"][0]["logprobs"]
    # as lm-eval reads them: what follows the context, without the one token that was added
    chances = told["token_logprobs"][len(head) : -1]
    tops = told["top_logprobs"][len(head) : -1]
    assert len(chances) == score["tokens"] == len(whole) - len(head)
    assert sum(chances) == pytest.approx(score["log_likelihood"], abs=1e-3)
    best = all(max(top.values()) == chance for chance, top in zip(chances, tops, strict=True))
    assert best == score["greedy"]


def chat(served, messages, **more):
    """A whole answer's text, or a stream's first words, after which its client hangs up."""
    said = {"messages": messages, "temperature": 1.0, "seed": 5, **more}
    url = served + "/v1/chat/completions"
    if not more.get("stream"):
        return HTTP.post(url, json=said).json()["choices"][0]["message"]["content"]
    with HTTP.stream("POST", url, json=said) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                [choice] = json.loads(line[6:])["choices"]
                if text := choice["delta"].get("content"):
                    return text


def metric(served, name):
    """A number of /metrics."""
    lines = HTTP.get(served + "/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def test_same_seed_same_answer(served):
    messages = [{"role": "user", "content": "Wo?"}]
    said = {"messages": messages, "max_tokens": 8, "seed": 5, "temperature": 1.0, "n": 3}
    first, second = (
        [choice["message"]["content"] for choice in HTTP.post(url, json=said).json()["choices"]]
        for url in [served + "/v1/chat/completions"] * 2
    )
    assert first == second
    assert len(set(first)) > 1


@pytest.mark.parametrize("how", ["cut off", "stopped", "hung up"])
def test_a_second_turn_reads_what_is_new_in_it_and_eight_tokens_at_most(served, run, how):
    """By the engine's own count, in languages that the tokenizer has pieces for and not."""
    tokenizer = Tokenizer((run / "tokenizer.model").read_bytes())
    read = lambda: (  # noqa: E731
        metric(served, "vllm:prompt_tokens_total") - metric(served, "vllm:prefix_cache_hits_total")
    )
    for first, second in (("Wo?", "Wie?"), ("Где?", "Как?"), ("哪里?", "怎么?"), ("أين؟", "كيف؟")):
        messages = [{"role": "user", "content": first}]
        more = {"max_tokens": 12}
        if how == "stopped":
            more["stop"] = [chat(served, messages, **more)[4:6]]
        if how == "hung up":
            more = {"max_tokens": 40, "stream": True}
        answer = chat(served, messages, **more)
        assert answer
        assert soon(lambda: HTTP.get(served + "/health").json()["running"] == 0)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": second}]
        before = read()
        assert chat(served, messages, max_tokens=4)
        turn = f"\n<|user|>\n{second}\n<|assistant|>\n"
        assert 0 < read() - before <= len(tokenizer.encode_inside([turn])[0]) + 8


def test_nothing_is_compiled_for_a_request_and_a_stop_frees_the_slot(served):
    compiled = 'polylm:programs_compiled_total{model_name="run"}'
    count = lambda: next(  # noqa: E731
        line for line in HTTP.get(served + "/metrics").text.splitlines() if compiled in line
    )
    before = count()
    for more in ({"logprobs": 3}, {"presence_penalty": 1}, {"top_k": 5, "top_p": 0.5, "seed": 1}):
        said = {"prompt": "请点击下面的链接" * 3, "max_tokens": 20, "stop": ["e", "的"], **more}
        answer = HTTP.post(served + "/v1/completions", json=said)
        assert answer.status_code == 200
        assert not {"e", "的"} & set(answer.json()["choices"][0]["text"])
    long = HTTP.post(served + "/v1/completions", json={"prompt": [5] * 128})
    assert long.status_code == 400
    assert count() == before
    assert soon(lambda: HTTP.get(served + "/health").json()["running"] == 0)
