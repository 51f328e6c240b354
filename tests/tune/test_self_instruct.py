"""Rounds against a stand-in endpoint: whatever happens, the files are those of a calm run."""

import json
import multiprocessing
import os
import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from polylm_jax.__main__ import main
from polylm_jax.errors import UserError
from polylm_jax.tune.journal import locked
from polylm_jax.tune.parse import Block, Task
from polylm_jax.tune.seeds import OURS, Seed, as_lines, read_seeds, translated
from tests.conftest import gin_flags
from tests.tune import child
from tests.tune.stand_in import KEY, endpoint

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.tune.child"])

FILES = ("es/seeds.jsonl", "es/es.jsonl", "es/rejected.jsonl", "es/report.md", "report.md")
SETTINGS = {
    "self_instruct.languages": ("es",),
    "self_instruct.rounds": 3,
    "self_instruct.first_requests": 4,
    "self_instruct.requests": 10,
    "writer.model": "stand-in",
    "writer.key_variable": "STAND_IN_KEY",
    "writer.timeout": 2.0,
    "writer.first_wait": 0.01,
    "writer.longest_wait": 0.05,
    "writer.usd_in": 1.0,
    "writer.usd_out": 2.0,
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", KEY)


def flags_of(server, folder, **more):
    where = {"self_instruct.folder": folder, "writer.url": server.url}
    return gin_flags(SETTINGS | where | {k.replace("__", "."): v for k, v in more.items()})


def self_instruct(part, server, folder, **more):
    return main(["self-instruct", part, *flags_of(server, folder, **more)])


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def journaled(folder):
    """Requests whose answer, with a text in it, is on disk."""
    lines = (folder / "es" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {one["answered"] for one in records if "finish_reason" in one.get("body", "")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The files of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch, endpoint(delay=0) as server:
        patch.setenv("STAND_IN_KEY", KEY)
        assert self_instruct("seeds", server, folder) == 0
        assert self_instruct("run", server, folder) == 0
    assert max(Counter(server.answered).values()) == 1
    return contents(folder)


def test_a_run_keeps_tasks_of_every_round_and_says_why_it_rejects(calm):
    kept = [json.loads(line) for line in calm["es/es.jsonl"].splitlines()]
    rejected = [json.loads(line) for line in calm["es/rejected.jsonl"].splitlines()]
    assert len(kept) > 150
    assert all(list(task) == ["instruction", "input", "output"] for task in kept)
    assert not any(text == "None" for task in kept for text in task.values())
    reasons = Counter(task["reason"] for task in rejected)
    assert set(reasons) == {
        *("cut", "format", "empty", "link", "keyword", "language", "similar", "input")
    }
    assert {task["round"] for task in rejected} == {1, 2, 3}
    assert any(task["output"] == "18.\n19.\n20.\n### fin\nya" for task in kept)
    report = calm["es/report.md"].decode()
    assert f"Kept {len(kept):,} of {len(kept) + len(rejected):,} tasks" in report
    assert "| all | 24 | 24 |" in report


def test_faults_change_nothing_and_each_request_is_answered_once(calm, tmp_path, capsys):
    with endpoint(faults=True) as server:
        for part in ("seeds", "run"):
            assert self_instruct(part, server, tmp_path, writer__concurrency=16) == 0
    assert contents(tmp_path) == calm
    assert set(Counter(server.answered).values()) == {1}
    assert {"429", "500", "reset", "half", "empty"} <= set(server.played)
    said = capsys.readouterr()
    told = [*calm.values(), (tmp_path / "es" / "journal.jsonl").read_bytes()]
    assert KEY not in said.out + said.err
    assert not any(KEY.encode() in one for one in told)


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_a_run_that_is_killed_ten_times_ends_with_the_files_of_a_calm_one(
    concurrency, calm, tmp_path
):
    draw = random.Random(concurrency)
    with endpoint(faults=True) as server:
        kills = []
        for part in ("seeds", "run"):
            arguments = ["self-instruct", part, *flags_of(server, tmp_path)]
            arguments.append(f"--gin.writer.concurrency={concurrency}")
            for _ in range(5):
                process = processes.Process(
                    target=child.run, args=(arguments, {"STAND_IN_KEY": KEY})
                )
                process.start()
                wanted = server.seen + draw.randint(1, 5)
                while server.seen < wanted and process.is_alive():
                    time.sleep(0.001)
                assert process.is_alive() or process.exitcode == 0
                time.sleep(draw.uniform(0, 0.03))
                process.kill()
                process.join()
                kills.append((len(server.answered), journaled(tmp_path)))
            assert main(arguments) == 0
    assert contents(tmp_path) == calm
    for answers, known in kills:
        assert not known & set(server.answered[answers + concurrency :])
    again = Counter(server.answered).total() - len(server.bills)
    # what was between the network and the disk when the process died, and no more
    assert again <= len(kills) * concurrency
    assert set(server.answered) == set(server.bills)


def test_a_run_that_is_asked_to_stop_finishes_what_is_under_way(calm, tmp_path):
    with endpoint(delay=0.1) as server:
        assert self_instruct("seeds", server, tmp_path) == 0
        arguments = ["self-instruct", "run", *flags_of(server, tmp_path, writer__concurrency=4)]
        process = processes.Process(target=child.run, args=(arguments, {"STAND_IN_KEY": KEY}))
        process.start()
        wanted = server.seen + 8
        while server.seen < wanted and process.is_alive():
            time.sleep(0.005)
        process.terminate()
        process.join()
        assert process.exitcode == 75
        assert (tmp_path / "es" / "es.jsonl").read_bytes()
        assert journaled(tmp_path) == set(server.answered)
        assert main(arguments) == 0
    assert contents(tmp_path) == calm
    assert max(Counter(server.answered).values()) == 1


def test_a_second_process_and_a_second_thought_are_refused(tmp_path, capsys):
    with endpoint(delay=0) as server:
        assert self_instruct("run", server, tmp_path) == 1
        assert "make them with `polylm self-instruct seeds`" in capsys.readouterr().err
        assert self_instruct("report", server, tmp_path) == 1
        capsys.readouterr()
        assert self_instruct("seeds", server, tmp_path) == 0
        with locked(tmp_path):
            for part in ("seeds", "run"):
                assert self_instruct(part, server, tmp_path) == 69
                assert f"process {os.getpid()} on " in capsys.readouterr().err
        assert self_instruct("report", server, tmp_path) == 1
        assert "nothing was asked" in capsys.readouterr().err
        assert self_instruct("run", server, tmp_path, self_instruct__rounds=1) == 0
        with locked(tmp_path):
            assert self_instruct("report", server, tmp_path) == 0
        asked = server.seen
        capsys.readouterr()
        for other in ({"self_instruct__seed": 1}, {"task_filters__similarity": {"es": 0.6}}):
            [name] = other
            assert self_instruct("run", server, tmp_path, **other) == 1
            assert name.replace("__", ".") in capsys.readouterr().err
        assert self_instruct("run", server, tmp_path, writer__model="other") == 1
        assert "was begun with another writer" in capsys.readouterr().err
        # prices, limits and more rounds are no other thing
        more = {"writer__usd_in": 3.0, "self_instruct__rounds": 2}
        assert self_instruct("run", server, tmp_path, **more) == 0
        assert server.seen == asked + 10
        (tmp_path / "es" / "seeds.jsonl").write_text("")
        assert self_instruct("run", server, tmp_path) == 1
        assert server.seen == asked + 10


def test_seeds_that_a_person_mended_stay(tmp_path):
    with endpoint(delay=0) as server:
        assert self_instruct("seeds", server, tmp_path) == 0
        seeds = tmp_path / "es" / "seeds.jsonl"
        lines = seeds.read_text("utf-8").splitlines()
        assert len(lines) == len(read_seeds(OURS))
        assert all(json.loads(line)["instruction"].startswith("Por favor") for line in lines)
        seeds.write_text("\n".join(lines[:3]), "utf-8")
        asked = server.seen
        assert self_instruct("seeds", server, tmp_path) == 0
        assert server.seen == asked
        assert seeds.read_text("utf-8").splitlines() == lines[:3]


def test_no_more_is_spent_than_may_be(tmp_path, capsys):
    prices = {"writer__usd_in": 100.0, "writer__usd_out": 1000.0, "writer__new_tokens": 1500}
    with endpoint(delay=0) as server:
        assert self_instruct("seeds", server, tmp_path, **prices) == 0
        capsys.readouterr()
        for most in (8.0, 12.0):
            limit = {"self_instruct__most_usd": most}
            assert self_instruct("run", server, tmp_path, **prices, **limit) == 1
            said = capsys.readouterr().err.splitlines()[-1]
            assert f"self_instruct.most_usd = {most:g} could be passed by the next request" in said
            used = [json.loads(bill)["usage"] for bill in server.bills.values()]
            spent = sum(u["prompt_tokens"] * 1e-4 + u["completion_tokens"] * 1e-3 for u in used)
            # the next one could cost 1.5 USD and its prompt
            assert most - 2 < spent <= most
            # what was paid for is in the files
            assert (tmp_path / "es" / "es.jsonl").read_bytes()
        assert max(Counter(server.answered).values()) == 1
        assert self_instruct("run", server, tmp_path, **prices, self_instruct__most_usd=99.0) == 0
        limit = {"self_instruct__most_usd": 1.0, "writer__new_tokens": 1500}
        assert self_instruct("run", server, tmp_path, **limit, writer__usd_in=None) == 1
        assert "needs prices" in capsys.readouterr().err


def test_a_cost_that_is_not_told_is_unknown(tmp_path, capsys):
    with endpoint(delay=0, usage=False) as server:
        assert self_instruct("seeds", server, tmp_path) == 0
        assert self_instruct("run", server, tmp_path, self_instruct__rounds=1) == 0
    assert "Spent in all, seeds included: cost unknown" in capsys.readouterr().out
    assert "4 of which do not say what they took: cost unknown" in (
        tmp_path / "es" / "report.md"
    ).read_text("utf-8")


def test_a_wrong_key_ends_at_once_and_is_never_shown(tmp_path, capsys, monkeypatch):
    wrong = "sk-wrong-but-secret"
    monkeypatch.setenv("STAND_IN_KEY", wrong)
    body = {"error": {"message": f"Incorrect API key: {wrong}"}}
    with endpoint(status=401, body=body) as server:
        assert self_instruct("seeds", server, tmp_path) == 1
        assert server.seen <= 8
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith("see to the key in the variable that "
                                              "writer.key_variable names.")  # fmt: skip
    for text in (said.out, said.err, *(p.read_text() for p in tmp_path.rglob("*") if p.is_file())):
        assert wrong not in text


def test_seeds_that_are_written_are_read_whatever_stands_in_them(tmp_path):
    seeds = [Seed(Task("a\u2028b\u0085c\x1cd\re", "f\u2029i", "g\x0bh"), ("input",))]
    (tmp_path / "seeds.jsonl").write_bytes(as_lines(seeds) * 2)
    assert read_seeds(tmp_path / "seeds.jsonl") == seeds * 2


def test_self_instructs_own_form_is_read_and_parts_stay_as_they_are(tmp_path):
    file = tmp_path / "seeds.jsonl"
    theirs = {
        "id": "seed_task_0",
        "instruction": "Say it in Spanish.",
        "instances": [{"input": "The sea", "output": "El mar"}, {"input": "x", "output": "y"}],
        "is_classification": False,
    }
    kept = {"instruction": "Correct it.", "input": "I goes", "output": "I go", "keep": ["input"]}
    file.write_text(json.dumps(theirs) + "\n\n" + json.dumps(kept) + "\n")
    seeds = read_seeds(file)
    assert seeds[0] == Seed(Task("Say it in Spanish.", "The sea", "El mar"))
    said = Block("Corrígelo.", "Yo va", "Yo voy")
    assert translated(seeds[1], [said]).task == Task("Corrígelo.", "I goes", "Yo voy")
    for blocks in ([], [said, said], [replace(said, output=None)], [replace(said, cut=True)]):
        assert translated(seeds[1], blocks) is None
    for bad in ("x", "[]", "{}", '{"instruction": "a", "output": 3}', '{"instances": []}'):
        file.write_text(f"{json.dumps(kept)}\n{bad}\n")
        with pytest.raises(UserError, match=r"seeds.jsonl:2 is no seed"):
            read_seeds(file)


def test_a_demo_model_as_the_writer_is_told_plainly_to_write_no_tasks(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        main(
            [
                "train",
                *gin_flags(
                    tiny | {"train.folder": run, "train.steps": 2, "train.validate_rows": 1}
                ),
            ]
        )
        == 0
    )
    settings = {
        "self_instruct.folder": tmp_path / "out",
        "self_instruct.languages": ("en",),
        "self_instruct.rounds": 2,
        "self_instruct.first_requests": 2,
        "self_instruct.requests": 2,
        "writer.run": run,
    }
    assert main(["self-instruct", "seeds", *gin_flags(settings)]) == 0
    capsys.readouterr()
    assert main(["self-instruct", "run", *gin_flags(settings)]) == 0
    sentence = "Nothing was kept: no task could be read in 4 answers."
    assert sentence in capsys.readouterr().out
    first = (tmp_path / "out" / "en" / "journal.jsonl").read_bytes()
    assert sentence in (tmp_path / "out" / "en" / "report.md").read_text("utf-8")
    assert main(["self-instruct", "run", *gin_flags(settings)]) == 0
    assert (tmp_path / "out" / "en" / "journal.jsonl").read_bytes() == first


def test_any_language_with_a_code_will_do(tmp_path, capsys):
    with endpoint(delay=0) as server:
        for bad in ("xx", "en-de", "../es", "code", "Es"):
            assert self_instruct("seeds", server, tmp_path, self_instruct__languages=(bad,)) == 1
            assert f'has "{bad}", which is no code of a language' in capsys.readouterr().err
        flags = {"self_instruct__languages": ("sv", "pt-BR"), "self_instruct__rounds": 1}
        assert self_instruct("seeds", server, tmp_path, **flags) == 0
        assert self_instruct("run", server, tmp_path, **flags) == 0
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "| Swedish (sv) |" in report
    assert "| Portuguese (pt-BR) |" in report
