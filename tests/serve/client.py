"""What `make clients` runs in its own environment: clients that others wrote, asking a server.

client.py NAME QUESTION ANSWER: arguments come from a JSON file, what it saw goes into another.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def with_openai(url, key, texts):
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    seen = {"models": [model.id for model in client.models.list()], "pairs": []}
    for text in texts:
        said = {"model": "tiny", "messages": [{"role": "user", "content": text}], "seed": 1}
        whole = client.chat.completions.create(**said)
        parts = [*client.chat.completions.create(
            **said, stream=True, stream_options={"include_usage": True}
        )]  # fmt: skip
        joined = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        seen["pairs"].append([whole.choices[0].message.content, joined])
        assert parts[-1].usage.total_tokens == whole.usage.total_tokens
        assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    told = client.completions.create(model="tiny", prompt="«a b»", echo=True, logprobs=1)
    assert len(told.choices[0].logprobs.tokens) == len(told.choices[0].logprobs.token_logprobs)
    for kind, more in (
        (openai.BadRequestError, {"extra_body": {"tempreature": 1}}),
        (openai.BadRequestError, {"prompt": "x " * 5000}),
        (openai.NotFoundError, {"model": "gpt-4"}),
    ):
        try:
            client.completions.create(**{"model": "tiny", "prompt": "a"} | more)
        except kind as error:
            seen.setdefault("messages", []).append(error.body["message"])
        else:
            raise AssertionError(kind)
    wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    try:
        wrong.models.list()
    except openai.AuthenticationError:
        seen["locked"] = True
    said = {"model": "tiny", "prompt": f"«{'word ' * 100}»", "max_tokens": 900}
    stream = client.completions.create(**said, stream=True)
    next(iter(stream))
    stream.close()
    return seen


def with_schemathesis(url, key, examples, folder):
    command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json"]
    command += ["--max-examples", str(examples), "--no-color", "--seed", "1"]
    command += ["-H", f"Authorization: Bearer {key}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return {"status": done.returncode, "said": done.stdout[-4000:]}


def with_llm(url, key, text, folder):
    model = {"model_id": "ours", "model_name": "tiny", "api_base": f"{url}/v1"}
    models = [model | {"api_key_name": "ours"}]
    Path(folder, "extra-openai-models.yaml").write_text(json.dumps(models))  # YAML holds JSON
    Path(folder, "keys.json").write_text(json.dumps({"ours": key}))
    environment = os.environ | {"LLM_USER_PATH": folder}
    llm = str(Path(sys.executable).with_name("llm"))
    done = subprocess.run(
        [llm, "-m", "ours", text], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def with_litellm(url, key, text):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    said = {"messages": [{"role": "user", "content": text}], "api_base": f"{url}/v1"}
    said |= {"api_key": key, "model": "openai/tiny"}
    whole = litellm.completion(**said)
    parts = litellm.completion(**said, stream=True)
    joined = "".join(part.choices[0].delta.content or "" for part in parts)
    return [whole.choices[0].message.content, joined]


def with_lm_eval(url, key, folder, tokenizer):
    rows = [{"query": f"{n} is", "choices": [" one", " two"], "gold": n % 2} for n in range(6)]
    Path(folder, "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": f"{folder}/rows.jsonl"}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    Path(folder, "ours.yaml").write_text(json.dumps(task))
    given = f"base_url={url}/v1/completions,model=tiny,tokenizer={tokenizer},num_concurrent=4"
    given += ",tokenizer_backend=huggingface,max_length=1000"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "ours"]
    command += ["--model_args", given, "--include_path", folder, "--output_path", f"{folder}/out"]
    environment = os.environ | {"OPENAI_API_KEY": key, "HF_HOME": f"{folder}/hf"}
    done = subprocess.run(
        [*command, "--log_samples"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = Path(folder, "out").rglob("samples_ours*.jsonl")
    told = map(json.loads, samples.read_text().splitlines())
    return [[float(one[0][0]) for one in sample["resps"]] for sample in told]


def with_chromium(url, key, texts, folder):
    """The page in a browser: what it shows of what was said, and whether anything ran in it."""
    from playwright.sync_api import sync_playwright

    seen = {"answers": {}, "faults": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        password = {"username": "any", "password": key}
        for look, more in {
            "light": {"color_scheme": "light"},
            "dark": {"color_scheme": "dark"},
            "phone": {"viewport": {"width": 390, "height": 844}},
        }.items():
            context = browser.new_context(http_credentials=password, **more)
            page = context.new_page()
            page.on("pageerror", lambda error: seen["faults"].append(str(error)))
            page.on("console", lambda said: seen["faults"].append(said.text))
            page.on("dialog", lambda dialog: seen["faults"].append(dialog.message))
            page.goto(url)
            page.wait_for_selector("nav:not([hidden])")
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            if wide > 0:
                seen["faults"].append(f"{look} is {wide} px too wide")
            if look == "light":
                page.click("summary")
                page.fill("#set-repetition_penalty", "1.3")
                page.click("summary")
                for code, text in texts.items():
                    page.click("#new")
                    page.fill("#question", text)
                    page.press("#question", "Enter")
                    page.wait_for_selector("#talk[aria-busy=false] .turn.assistant")
                    answer = page.locator(".turn.assistant .text").last
                    direction = answer.evaluate("one => getComputedStyle(one).direction")
                    seen["answers"][code] = [answer.text_content(), direction]
                seen["talks"] = page.locator("#conversations li").count()
                page.reload()
                page.wait_for_selector("#conversations li")
                seen["kept"] = page.locator("#conversations li").count()
                # what the keyboard alone can do
                page.click("#new")
                page.keyboard.type("«" + "word " * 150 + "»")
                page.keyboard.press("Enter")
                page.wait_for_selector("#talk[aria-busy=true]")
                page.keyboard.press("Escape")
                page.wait_for_selector("#talk[aria-busy=false]")
                seen["stopped"] = page.locator(".turn .note").last.text_content()
                seen["figures"] = page.locator("aside svg[role=img]").count()
            if look == "phone":
                page.click("button[data-view=run]")
                seen["run_on_a_phone"] = page.locator("aside").is_visible()
                if page.evaluate("document.documentElement.scrollWidth - innerWidth") > 0:
                    seen["faults"].append("the run is too wide for a phone")
            page.screenshot(path=f"{folder}/{look}.png")
            context.close()
        browser.close()
    return seen


def with_chromium_for_long(url, long, emoji):
    """The page over time: two windows, a browser that keeps nothing, a talk that fills the context,
    a run that goes on."""
    from playwright.sync_api import sync_playwright

    seen = {"faults": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        context = browser.new_context()

        def opened():
            page = context.new_page()
            page.on("pageerror", lambda error: seen["faults"].append(str(error)))
            page.goto(url)
            page.wait_for_selector("nav:not([hidden])")
            return page

        def ask(page, text):
            page.fill("#question", text)
            page.press("#question", "Enter")
            page.wait_for_selector("#talk[aria-busy=false] .turn.assistant")

        first, second = opened(), opened()
        ask(first, emoji)
        seen["title"] = first.locator("#conversations button").first.text_content()
        ask(second, "«two»")
        for page in (first, second):
            page.wait_for_function("document.querySelectorAll('#conversations li').length === 2")
        first.locator("#conversations li", has_text="two").locator("button").last.click()
        second.wait_for_function("document.querySelectorAll('#conversations li').length === 1")
        seen["focused"] = first.evaluate("document.activeElement.id")
        seen["shown"] = second.locator(".turn.user .text").all_text_contents()
        # what is wrong in a setting is said, and not taken for nothing
        first.click("summary")
        first.fill("#set-temperature", "0.72")
        first.fill("#set-top_p", "7")
        first.click("#question")
        seen["settings"] = first.evaluate("localStorage.getItem('polylm.settings')")
        seen["left"] = first.input_value("#set-top_p")
        # the oldest turns go where the context is full
        second.click("#new")
        for _ in range(4):
            ask(second, long)
        seen["notes"] = second.locator(".turn .note").all_text_contents()
        steps = second.text_content("#steps")
        second.wait_for_function(
            "(s) => document.querySelector('#steps').textContent !== s", arg=steps
        )
        # what is kept is damaged, then nothing is kept any more
        first.evaluate("localStorage.setItem('polylm.settings', '5')")
        first.evaluate("localStorage.setItem('polylm.talks', '[{\"turns\": 3}, null]')")
        first.reload()
        first.wait_for_selector("nav:not([hidden])")
        seen["empty"] = first.locator(".turn").count()
        full = "() => { Storage.prototype.setItem = () => { throw new Error('full') } }"
        first.evaluate(full)
        ask(first, "«three»")
        seen["answer"] = first.locator(".turn.assistant .text").last.text_content()
        seen["said"] = first.text_content("#kept")
        browser.close()
    return seen


if __name__ == "__main__":
    _, name, question, answer = sys.argv
    arguments = json.loads(Path(question).read_text())
    Path(answer).write_text(json.dumps(globals()[f"with_{name}"](**arguments)))
