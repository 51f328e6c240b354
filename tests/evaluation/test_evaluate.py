"""The benchmark as a person runs it: lm-eval's own answers, files, ends and reports."""

import argparse
import base64
import errno
import fcntl
import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.errors import UserError
from polylm_jax.evaluation import evaluate, in_training, paper, table, tasks
from polylm_jax.evaluation.choices import share
from polylm_jax.evaluation.packing import windows
from polylm_jax.evaluation.results import ANSWERS, store
from polylm_jax.evaluation.score import Subject
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.evaluation.work import Result
from polylm_jax.parallel import together
from polylm_jax.train.ends import RunEnded
from polylm_jax.verbs.model_of import model_of
from tests import golden, scripted
from tests.evaluation import BENCHMARKS, invented
from tests.evaluation.plain import plain

GOLDEN = json.loads((Path(golden.__file__).parent / "lm_eval_choices.json").read_text("utf-8"))
OWN = {"ntrex", "word_order", "held_out", "held_out_order"}  # which lm-eval has not
TASKS = tuple(sorted(set(tasks.table()) - OWN))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An evaluation folder."""
    folder = tmp_path_factory.mktemp("evaluation") / "data"
    shutil.copytree(BENCHMARKS, folder)
    invented.write(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The golden file's model."""
    folder = tmp_path_factory.mktemp("babbles")
    return scripted.babbles(folder, base64.b64decode(GOLDEN["tokenizer"]), 384)


@pytest.fixture(scope="module")
def subject(run):
    given = argparse.Namespace(run=str(run), gin_file=[], overrides=["compute.dtype=float32"])
    with model_of(given) as model:
        yield Subject(model.decoder, model.params, model.tokenizer, model.rows)


def evaluated(subject, data, out, names=TASKS, **settings):
    """Evaluates into a folder; returns what was said."""
    settings = Evaluation(names, folder=str(data), **{"protocol": "lm_eval"} | settings)
    said, identity = [], {"step": 0, "dtype": "float32"}
    with store(out, identity) as kept:
        reports = evaluate.evaluate(subject, settings, kept, said.append)
        table.write(out, reports, settings, identity, "runs/x")
    return "\n".join([*said, *table.lines(reports)])


def told(run, data, out, *flags, names=("xcopa",)):
    settings = [f"--gin.evaluation.tasks={tuple(names)!r}", f"--gin.evaluation.folder={data}"]
    return main(["evaluate", f"--run={run}", f"--out={out}", *settings, *flags])


@pytest.fixture(scope="module")
def out(subject, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "out"
    evaluated(subject, data, folder, limit=20)
    return folder


def samples(folder, name):
    text = (folder / f"samples_{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", sorted(GOLDEN["tasks"]))
def test_every_item_is_lm_evals(out, name):
    ours, theirs = samples(out, name), GOLDEN["tasks"][name]
    assert len(ours) >= len(theirs) > 1
    pairs = zip(ours, theirs, strict=not name.startswith("sib"))
    for mine, (arguments, sums, greedy, target, right, norm) in pairs:
        asked = [[*of.values()] for of in mine["arguments"].values()]
        assert asked == arguments
        np.testing.assert_allclose([pair[0] for pair in mine["filtered_resps"]], sums, atol=1e-3)
        assert [pair[1] for pair in mine["filtered_resps"]] == greedy
        assert mine["acc"] == right
        if norm is not None:
            assert mine["acc_norm"] == norm
        if isinstance(target, int):
            assert mine["target"] == target


def test_results_are_in_lm_evals_form(out):
    found = json.loads((out / "results.json").read_text("utf-8"))
    for name, theirs in GOLDEN["tasks"].items():
        if name.startswith("sib"):
            continue  # the golden file has fewer
        right = np.array([one[4] for one in theirs])
        of = found["results"][name]
        assert of["acc,none"] == right.mean()
        error = math.sqrt(right.mean() * (1 - right.mean()) / (len(right) - 1))
        np.testing.assert_allclose(of["acc_stderr,none"], error)
        assert found["n-samples"][name]["effective"] == len(right)
    assert "xnli_ru" in found["missing"]
    assert "belebele_kor_Hang" in found["missing"]


def test_the_report_has_every_score_with_its_error_and_the_papers(out):
    text = (out / "report.md").read_text("utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("| th |") and "70.2" not in line
              and "58.6" in line]  # fmt: skip
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    right = np.mean([one[4] for one in GOLDEN["tasks"]["xcopa_th"]])
    assert cells[:3] in (["th", "20", f"{100 * right:.1f}"], ["th", "20", f"{100 * right:.1f}*"])
    assert cells[-6:] == ["58.6", "54.6", "55.4", "60.2", "54.6", "53.6"]
    assert "lose their last letter" in text
    assert "missing: xnli" in text
    assert "XNLI-1.0" in text
    assert (out / "xcopa.png").is_file()


def test_a_killed_one_goes_on_and_ends_bit_by_bit_the_same(subject, data, tmp_path):
    names, flags = ("xcopa",), {"rows": 1, "row_length": 192, "limit": 9}
    whole = tmp_path / "whole"
    evaluated(subject, data, whole, names, **flags)
    kept = (whole / ANSWERS).read_bytes()
    assert kept.count(b"\n") >= 4
    for cut in np.random.default_rng(0).integers(0, len(kept), 4):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / ANSWERS).write_bytes(kept[:cut])  # what a process that is killed leaves
        evaluated(subject, data, folder, names, **flags)
        assert (folder / ANSWERS).read_bytes() == kept
        for file in (path.name for path in whole.glob("*.json*")):
            assert (folder / file).read_bytes() == (whole / file).read_bytes()
    assert " 0 tokens to compute" in evaluated(subject, data, whole, names, **flags)
    assert (whole / ANSWERS).read_bytes() == kept


def test_another_packing_and_a_subset_say_the_same(subject, data, out, tmp_path):
    flags = {"row_length": 192, "rows": 1, "languages": ("th", "zh"), "limit": 20}
    evaluated(subject, data, tmp_path, ("xcopa",), **flags)
    for name in "xcopa_th", "xcopa_zh":
        for one, other in zip(samples(tmp_path, name), samples(out, name), strict=True):
            sums = [[pair[0] for pair in of["filtered_resps"]] for of in (one, other)]
            np.testing.assert_allclose(*sums, rtol=1e-5)
            assert one["acc"] == other["acc"]
    assert not (tmp_path / "samples_xcopa_it.jsonl").exists()


def test_differences_from_another_are_paired(run, subject, data, tmp_path, capsys):
    one, other = tmp_path / "one", tmp_path / "other"
    evaluated(subject, data, other, ("xcopa",), languages=("it", "th"), limit=20, protocol="paper")
    file = other / "samples_xcopa_it.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for line in lines[:5]:
        line["acc"] = 1 - line["acc"]
    changed = sum(1 if line["acc"] else -1 for line in lines[:5])
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    results = json.loads((other / "results.json").read_text("utf-8"))
    results["task_hashes"]["xcopa_th"] = "of other items"
    (other / "results.json").write_text(json.dumps(results))
    flags = ("--gin.evaluation.limit=20", "--gin.evaluation.dtype=float32", f"--against={other}")
    assert told(run, data, one, *flags) == 0
    said = capsys.readouterr().out
    assert "missing: xcopa id tr vi" in said
    assert f"xcopa_it acc: {-100 * changed / 20:+.2f} ± " in said
    assert "xcopa_th: other items, or another protocol; not compared." in said
    assert "xcopa, chance 50.0" in said
    assert "58.6/60.2" in said


def test_bits_per_byte_is_the_sum_over_the_bytes(subject, data, tmp_path):
    evaluated(subject, data, tmp_path, ("ntrex", "word_order"), languages=("en", "he"))
    text = (data / "ntrex" / "he.txt").read_text("utf-8").splitlines()
    documents = (data / "ntrex" / "DOCUMENT_IDS.tsv").read_text().splitlines()
    found, names = samples(tmp_path, "ntrex_he"), list(dict.fromkeys(documents))
    assert [one["doc"]["document"] for one in found] == names
    pairs = list(zip(text, documents, strict=True))
    joined = ["\n".join(line for line, of in pairs if of == name) for name in names]
    nats = -sum(one["filtered_resps"][0][0] for one in found)
    bits = nats / math.log(2) / sum(len(one.encode()) for one in joined)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))["results"]
    np.testing.assert_allclose(results["ntrex_he"]["bits_per_byte,none"], bits)
    # a long text is read in windows, each token once
    assert found[0]["truncated"]
    ids = subject.tokenizer.encode([joined[0]])[0]
    alone = plain(subject.decoder, subject.params, windows([2], ids, 384))
    nats = sum(one.log_likelihood for one in alone)
    np.testing.assert_allclose(found[0]["filtered_resps"][0][0], nats, 1e-5)
    assert 0.1 < results["word_order_en"]["acc,none"] < 0.9


def test_the_suite_of_training_is_the_small_one():
    config.parse(["gin_configs/evaluation/small.gin"], [])
    small = config.get("evaluation")
    config.parse([], [])
    assert (small.tasks, small.protocol, small.limit) == (
        in_training.TASKS,
        in_training.PROTOCOL,
        in_training.LIMIT,
    )


def test_a_runs_own_documents_are_texts_and_lines_with_two_words_swapped(tmp_path):
    (tmp_path / "de").mkdir()
    texts = ["Kurz\nHeute kommt der Zug am Abend an", "Nur eins\n", "Der Hund schläft im Garten"]
    lines = [json.dumps({"text": text, "from": "x"}) for text in texts]
    (tmp_path / "de/valid.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    every = Evaluation(("held_out", "held_out_order"), ("de", "fr")).asked(str(tmp_path))
    [whole, absent], [order, _] = every.values()
    assert [item.choices[0].continuation for item in whole.items] == texts
    assert absent.missing.startswith("no fr/valid.jsonl in")
    assert [item.number for item in order.items] == [0, 1]
    for item, line in zip(order.items, ("Heute kommt der Zug am Abend an", texts[2]), strict=True):
        right, wrong = (item.choices[place].continuation for place in (item.gold, 1 - item.gold))
        assert right == line != wrong
        assert sorted(right.split()) == sorted(wrong.split())


@pytest.mark.parametrize(("protocol", "shots"), [("paper", 1), ("lm_eval", 0)])
def test_results_say_how_many_examples_were_shown(tmp_path, protocol, shots):
    (tmp_path / "wmt20").mkdir()
    (tmp_path / "wmt20/wmt20.de-en.tsv").write_text("Eins.\tOne.\nZwei.\tTwo.\n")
    settings = Evaluation(("wmt20",), ("de-en",), protocol=protocol, folder=str(tmp_path))
    [[asked]] = settings.asked("").values()
    report = evaluate.Report([Result(asked, (share("acc", [True]),), [])], [], [])
    assert table.results({"wmt20": report}, settings, {}, "run")["n-shot"] == {"wmt20-de-en": shots}
    assert ("Two." in asked.items[0].text) == bool(shots)


def test_long_items_are_left_out_if_asked(subject, data, tmp_path):
    said = evaluated(subject, data, tmp_path, ("ntrex",), languages=("he",), too_long="leave_out")
    assert "2 items are left out: too long for the model" in said
    assert len(samples(tmp_path, "ntrex_he")) == 1


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (("xkopa",), {}, 'evaluation.tasks has "xkopa"; the tasks are'),
        (("xcopa",), {"languages": ("xx",)}, 'languages has "xx"'),
        (("xcopa",), {"protocol": "v2"}, "paper, lm_eval"),
        (("belebele",), {"languages": ("ko",)}, "there is no file of any of these tasks"),
    ],
)
def test_what_cannot_be_is_one_sentence(subject, data, tmp_path, names, settings, said):
    with pytest.raises(UserError, match=said):
        evaluated(subject, data, tmp_path / "out", names, **settings)


def test_in_training_what_is_left_out_whole_is_said_and_counts_in_no_mean(subject, data):
    settings = Evaluation(
        languages=("he", "en", "it"), folder=str(data), limit=1, too_long="leave_out"
    )
    said = []
    args = settings, "", subject.decoder, subject.tokenizer, subject.ways, said.append
    record = in_training.make_ask(*args)(subject.variables)
    lost = [line for line in said if "left out as too long" in line]
    assert lost == [
        f"missing: ntrex {code}: all items are left out as too long" for code in ("en", "he")
    ]
    assert record["score"].keys() == {"word_order", "xcopa"}
    assert all(map(math.isfinite, record["score"].values()))


def test_processes_with_other_files_all_say_so_before_they_wait_for_one_another(
    subject, data, tmp_path, monkeypatch
):
    """What a process asks of the others is played by threads, each a process."""
    shutil.copytree(data / "xcopa", tmp_path / "xcopa")
    me, meet = threading.local(), threading.Barrier(2)
    told: dict[str, list[str]] = {}

    def verdict(name, mine, judge):
        told.setdefault(name, ["", ""])[me.number] = mine
        meet.wait(5)
        return judge(told[name])

    monkeypatch.setattr(together, "process", lambda: me.number)
    monkeypatch.setattr(together, "verdict", verdict)

    def ends(number, folder):
        me.number = number
        settings = Evaluation(("xcopa", "mgsm"), folder=str(folder), protocol="lm_eval")
        with store(tmp_path / "out", {"step": 0}) as kept, pytest.raises(RunEnded) as raised:
            evaluate.evaluate(subject, settings, kept, lambda line: None)
        return raised.value.word

    (data / "mgsm").mkdir(exist_ok=True)
    (data / "mgsm/mgsm_de.tsv").write_text("Wie viele?\t1\n")
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(ends, range(2), (data, tmp_path)))
    finally:
        shutil.rmtree(data / "mgsm")
    assert found == ["unequal", "unequal"]


def test_a_damaged_line_takes_no_other_answers_with_it(tmp_path):
    lines = [b'{"a": 1}\n', b"\0\0\0\n", b"[2]\n", b'{"b": 2}\n', b'{"c": ']
    (tmp_path / ANSWERS).write_bytes(b"".join(lines))
    with store(tmp_path, {}) as kept:
        assert [key in kept for key in "abc"] == [True, True, False]
        kept.add({"c": 3})
    with store(tmp_path, {}) as kept:
        assert [kept[key] for key in "abc"] == [1, 2, 3]
    assert (tmp_path / ANSWERS).read_bytes() == b"".join(lines[:-1]) + b'{"c": 3}\n'


def test_a_file_system_without_locks_lets_it_in(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with store(tmp_path, {}) as kept:
        kept.add({"a": 1})
    assert (tmp_path / ANSWERS).read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("task", "code", "file", "content", "said"),
    [
        ("global_mmlu", "de", "global_mmlu/de.jsonl", "4", "right answer among its choices"),
        ("hellaswag", "de", "hellaswag/de_validation.jsonl", "", "right answer among its choices"),
        ("sib200", "de", "sib200/de.test.tsv", b"category\ttext\ntravel\t\xe9t\xe9\n", ":2 is not"),
        ("sib200", "de", "sib200/de.test.tsv", b"text\n" + b"a" * 140_000, "131,072 characters"),
    ],
)
def test_what_would_give_wrong_scores_is_refused(tmp_path, task, code, file, content, said):
    if isinstance(content, str):
        row = dict.fromkeys(tasks.table()[task].form, "x") | {"answer": content, "label": content}
        content = json.dumps(row | {"endings": ["a", "b"]}).encode()
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        tasks.ask(tasks.table()[task], code, "lm_eval", str(tmp_path))


def test_right_answers_that_are_no_choice_are_said_and_count_as_wrong(tmp_path):
    """Numbers from 1 on, as a file of one's own may have them."""
    row = dict.fromkeys(tasks.table()["global_mmlu"].form, "x")
    (tmp_path / "global_mmlu").mkdir()
    lines = [json.dumps(row | {"answer": answer}) + "\n" for answer in (1, 4, 2, 4)]
    (tmp_path / "global_mmlu/de.jsonl").write_text("".join(lines))
    found = tasks.ask(tasks.table()["global_mmlu"], "de", "paper", str(tmp_path))
    [note] = found.notes
    assert note.startswith("2 items, number 2 the first, count as wrong")
    assert [item.gold for item in found.items] == [1, 4, 2, 4]


@pytest.mark.parametrize("quoted", [False, True])
def test_a_sentence_may_begin_with_a_quotation_mark_in_a_file_of_either_kind(tmp_path, quoted):
    texts = ['"Er" sagt ja', 'Sie "sagt" nein', '"Nein', "Ende"]
    fields = ['"' + text.replace('"', '""') + '"' if quoted else text for text in texts]
    (tmp_path / "sib200").mkdir()
    lines = [f"{number}\ttravel\t{field}\n" for number, field in enumerate(fields)]
    text = "index_id\tcategory\ttext\n" + "".join(lines)
    (tmp_path / "sib200/de.test.tsv").write_text(text, "utf-8")
    found = tasks.ask(tasks.table()["sib200"], "de", "paper", str(tmp_path))
    assert [item.document["text"] for item in found.items] == texts


def test_a_line_of_xwinograd_may_hold_what_unicode_calls_its_end(tmp_path):
    line = (BENCHMARKS / "xwinograd/dataset.tsv").read_text("utf-8").split("\n")[0].split("\t")
    (tmp_path / "xwinograd").mkdir()
    line[-4] += "\u2028"
    (tmp_path / "xwinograd/dataset.tsv").write_text("\t".join(line) + "\n", "utf-8")
    found = tasks.ask(tasks.table()["xwinograd"], {"jp": "ja"}.get(line[0], line[0]), "paper",
                      str(tmp_path))  # fmt: skip
    assert len(found.items) == 1


@pytest.mark.parametrize(
    ("broken", "said"), [('{"premise": 3}', "row 1 of"), ("{no", "test.it.jsonl:1 is not")]
)
def test_a_row_that_is_none_names_its_place(tmp_path, broken, said):
    (tmp_path / "xcopa").mkdir()
    (tmp_path / "xcopa" / "test.it.jsonl").write_text(broken + "\n")
    with pytest.raises(UserError, match=said):
        tasks.ask(tasks.table()["xcopa"], "it", "paper", str(tmp_path))


# Averages as the paper prints them, of (base: PolyLM, LLaMA, BLOOM; tuned: the same)
PRINTED = {
    ("xnli", "seen"): (46.1, 34.3, 42.1, 44.2, 34.3, 38.3),
    ("xnli", "unseen"): (34.6, 34.3, 40.3, 34.0, 34.0, 36.3),
    ("pawsx", "all"): (55.9, 50.1, 51.8, 59.3, 50.7, 57.2),
    ("xwinograd", "all"): (73.4, 71.3, 70.0, 72.3, 73.5, 66.5),
    ("xcopa", "seen"): (65.1, 57.5, 60.9, 67.5, 57.8, 56.4),
    ("xcopa", "unseen"): (51.5, 51.4, 52.1, 51.4, 51.8, 52.8),
    ("tydiqa", "seen"): (49.0, 47.8, 37.1, 46.4, 37.1, 20.2),
    ("tydiqa", "unseen"): (12.4, 28.6, 42.6, 4.4, 22.0, 17.5),
    ("mtg_sg", "all"): (8.8, 8.0, 12.1, 10.5, 6.0, 10.4),
    ("mtg_tg", "all"): (14.4, 14.9, 10.7, 16.6, 15.1, 17.9),
    ("mtg_qg", "all"): (14.9, 13.7, 13.0, 22.1, 19.4, 24.2),
    ("mtg_summ", "all"): (15.4, 11.7, 9.7, 16.6, 14.0, 16.8),
    ("wmt20", "into English"): (24.6, 26.5, 16.1, 26.32, 19.14, 10.91),
    ("wmt20", "out of English"): (19.7, 14.3, 3.9, 20.5, 8.5, 3.3),
}


def test_the_papers_cells_have_the_averages_that_it_prints():
    found = {(task, name) for task, name in PRINTED}
    assert found == {(task, name) for task, _ in PRINTED for name in paper.groups(task)}
    for (task, name), printed in PRINTED.items():
        codes, figures = paper.groups(task)[name], paper.figures(task)
        means = [
            np.mean([figures[code][model] for code in codes]) for model in paper.BASE + paper.TUNED
        ]
        np.testing.assert_allclose(means, printed, atol=0.0600001)


def ask(task, language, protocol):
    return tasks.ask(tasks.table()[task], language, protocol, str(BENCHMARKS))


def test_the_paper_and_lm_eval_today_ask_otherwise(data):
    old, new = (ask("pawsx", "fr", protocol) for protocol in tasks.PROTOCOLS)
    first, second = old.items[0].document["sentence1"], old.items[0].document["sentence2"]
    assert [c.continuation for c in old.items[0].choices] == [
        f"{first}, right? {word}, {second}" for word in ("No", "Oui")
    ]
    begin = new.items[0].choices[1].continuation
    assert begin == f"{first[:-1]}, n'est-ce pas? Oui, {second[0].lower()}{second[1:]}"
    assert any("right?" in note for note in old.notes)
    rows = invented.xnli(invented.PAIRS)
    xnli = tasks.table()["xnli"]
    texts = [xnli.items(rows, "de", p)[0].choices[2].continuation for p in tasks.PROTOCOLS]
    assert texts[0] == "Der Zug kam zu spät an, richtig? Nein, Der Zug war pünktlich."
    assert texts[1] == " " + texts[0]
    assert xnli.files["paper"] != xnli.files["lm_eval"]


def test_exams_are_asked_in_lm_evals_words():
    options = {f"option_{name}": answer for name, answer in zip("abcd", "4682", strict=True)}
    row = {
        "question": " Wie viele Seiten hat ein Würfel? ",
        "domain": "STEM",
        "answer": 1,
    } | options
    [item] = tasks.table()["include"].items([row], "de", "lm_eval")
    # rendered from lm-eval 0.4.13's files for German
    asked = "Wie viele Seiten hat ein Würfel?\nA. 4\nB. 6\nC. 8\n"
    assert item.choices[1].context == (
        f"The following is multiple-choice question about STEM.{asked} D. 2\nAnswer:"
    )
    assert (item.choices[1].continuation, item.gold) == (" B", 1)
    row = {"Question": row["question"], "Subject": "college_physics", "Answer": "C"}
    row |= dict(zip("ABCD", "4682", strict=True))
    [item] = tasks.table()["mmmlu"].items([row], "zh", "lm_eval")
    assert item.choices[0].context == (
        "The following are multiple choice questions (with answers) about college physics "
        f"(Simplified Chinese).\n\n{asked}D. 2\nAnswer:"
    )
    assert item.gold == 2


def test_oddities_are_said():
    thai, chinese = ask("xcopa", "th", "paper"), ask("xcopa", "zh", "paper")
    assert thai.notes == ("30 of 30 premises lose their last letter: lm-eval takes it for a stop",)
    assert not chinese.notes
    assert any('1 rows hold "NS"' in note for note in ask("pawsx", "ja", "paper").notes)


def test_the_original_files_of_xnli_are_read(tmp_path):
    folder = tmp_path / "xnli"
    folder.mkdir()
    lines = ["language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2"]
    for code, label in (("de", "neutral"), ("zh", "entailment"), ("de", "contradiction")):
        lines.append(f'{code}\t{label}\t\t"Er" sagt\tSie "sagt')
    (folder / "xnli.test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = tasks.ask(tasks.table()["xnli"], "de", "paper", str(tmp_path))
    assert [item.gold for item in found.items] == [1, 2]
    assert found.items[0].choices[0].continuation == '"Er" sagt, richtig? Ja, Sie "sagt'


def result(task, language, each, numbers=None):
    asked = Asked(tasks.table()[task], language, ())
    numbers = range(len(each)) if numbers is None else numbers
    found = [{"doc_id": n, "arguments": n, "target": 0} for n in numbers]
    return Result(asked, (share("acc", each),), found)


def test_another_suite_leaves_what_the_folder_says_of_other_tasks(tmp_path):
    def write(task, each, step=0, **settings):
        reports = {task: evaluate.Report([result(task, "th", each)], [], [])}
        identity = {"step": step, "dtype": "float32"}
        table.write(tmp_path, reports, Evaluation((task,), **settings), identity, "runs/x")
        return json.loads((tmp_path / "results.json").read_bytes())

    before = write("xcopa", np.arange(8) < 6, limit=8)
    write("sib200", np.arange(9) < 3)
    both = write("sib200", np.arange(9) < 6, protocol="lm_eval")
    for part in ("results", "configs", "task_hashes", "n-samples"):
        assert before[part].items() <= both[part].items()
        assert both[part].keys() == {"xcopa_th", "sib_th_prompt_1"}
    assert both["results"]["sib_th_prompt_1"]["acc,none"] == 6 / 9
    text = (tmp_path / "report.md").read_text("utf-8")
    assert [text.count(f"## {name}\n") for name in ("xcopa", "sib200")] == [1, 1]
    assert "Protocol `paper`, float32, the first 8 items." in text
    assert "Protocol `lm_eval`, float32." in text
    # another model's are not its
    assert write("xcopa", np.ones(8), step=1)["results"].keys() == {"xcopa_th"}
    assert "sib200" not in (tmp_path / "report.md").read_text("utf-8")


def test_translations_of_the_same_items_do_not_make_an_average_surer():
    each = np.random.default_rng(1).random(200) < 0.6
    error = share("acc", each).error
    [_, same] = evaluate.averages(
        "xcopa",
        [result("xcopa", code, each) for code in ("id", "it", "th", "tr", "vi", "zh", "et")],
        0,
    )
    np.testing.assert_allclose(same.error, error, rtol=0.1)
    shares = [np.random.default_rng(n).random(200) < 0.6 for n in range(6)]
    codes = paper.groups("xwinograd")["all"]
    pairs = zip(codes, shares, strict=True)
    [apart] = evaluate.averages("xwinograd", [result("xwinograd", *pair) for pair in pairs], 0)
    np.testing.assert_allclose(apart.error, error / math.sqrt(6), rtol=0.15)
    assert apart.name == "all"


def test_an_average_over_many_items_draws_a_part_at_a_time(monkeypatch):
    each = np.arange(99)
    results = [result("xwinograd", code, each % n == 0) for n, code in ((2, "en"), (3, "ru"))]
    [whole] = evaluate.averages("xwinograd", results, 0)
    monkeypatch.setattr(evaluate, "AT_ONCE", 7 * 99 + 1)
    assert evaluate.averages("xwinograd", results, 0) == [whole]


def test_chance_is_said_to_be_chance():
    half = np.arange(100) % 2 == 0
    assert evaluate.above_chance(result("xcopa", "it", half)) is False
    assert evaluate.above_chance(result("xcopa", "it", np.arange(100) < 60)) is True
    assert evaluate.above_chance(result("xcopa", "it", np.arange(100) < 59)) is False
    # of few, by all that could have come: 4 of 4 come once in 8 times, 6 of 6 once in 32
    assert evaluate.above_chance(result("xcopa", "it", np.ones(4, bool))) is False
    assert evaluate.above_chance(result("xcopa", "it", np.ones(6, bool))) is True
    assert evaluate.above_chance(result("xcopa", "it", np.arange(20) < 15)) is True
    assert evaluate.above_chance(result("xcopa", "it", np.arange(20) < 14)) is False
    report = evaluate.Report([result("xcopa", "it", half)], [], [])
    assert any("not different from chance" in line for line in table.lines({"xcopa": report}))
