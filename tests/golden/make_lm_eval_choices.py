"""Make lm_eval_choices.json: what lm-eval with transformers says of some items of each benchmark.

Made with lm-eval 0.4.13, torch 2.13.0 (CPU) and transformers 5.24.0, by

    JUDGES_PYTHON=PATH python -m tests.golden.make_lm_eval_choices

in our own environment, where PATH is a Python that has the three. The model is
tests.scripted.babbles, random from a seed, with the tokenizer that this file holds; it is exported
and read by transformers. Items are the first of tests/evaluation/benchmarks and the invented rows;
lm-eval reads them as JSON by its own configurations, with nothing changed but where the data are.
The file holds
    tokenizer    the SentencePiece model, base64
    tasks        lm-eval's name -> its samples: [contexts and continuations, log-likelihoods,
                 greedy, right choice, lm-eval's acc, and its acc_norm or null]
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parent / "lm_eval_choices.json"
CONTEXT, PIECES, ITEMS, FEWER = 384, 1500, 20, 5  # of SIB-200, whose prompts are long

# lm-eval's name -> its configuration, and the split it reads
CONFIGS = {
    **{
        f"xcopa_{code}": (f"xcopa/default_{code}.yaml", "test") for code in ("it", "zh", "th", "ta")
    },
    **{f"paws_{code}": (f"paws-x/paws_{code}.yaml", "test") for code in ("fr", "ja", "de")},
    "xwinograd_ru": ("xwinograd/xwinograd_ru.yaml", "test"),
    **{f"xnli_{code}": (f"xnli/xnli_{code}.yaml", "validation") for code in ("de", "ar", "zh")},
    "belebele_deu_Latn": ("belebele/belebele_deu_Latn.yaml", "test"),
    "xstorycloze_zh": ("xstorycloze/default_zh.yaml", "validation"),
    "hellaswag_de": ("okapi/hellaswag_multilingual/hellaswag_de.yaml", "validation"),
    "arc_de": ("okapi/arc_multilingual/arc_de.yaml", "test"),
    "global_mmlu_de": ("global_mmlu/default/de/_de_template_yaml", "test"),
    "sib_de_prompt_1": ("afrobench/sib/prompt_1/sib_eng.yaml", "test"),
    "sib_th_prompt_1": ("afrobench/sib/prompt_1/sib_eng.yaml", "test"),
}


def prepare(folder: Path) -> bytes:
    """The exported model and the rows of each task into a folder; the tokenizer."""
    from polylm_jax.__main__ import main
    from polylm_jax.evaluation import tasks
    from tests import scripted
    from tests.evaluation import invented

    here = Path(__file__).parents[1] / "evaluation" / "benchmarks"
    files = sorted(path for path in here.rglob("*") if path.suffix in (".jsonl", ".txt", ".tsv"))
    texts = [line for path in files for line in path.read_text("utf-8").splitlines()]
    model, _ = scripted.tokenizer(
        sentence_iterator=iter(texts), vocab_size=PIECES, character_coverage=0.98
    )
    for path in files:
        target = folder / "data" / path.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    invented.write(folder / "data")
    run = scripted.babbles(folder, model, CONTEXT)
    assert main(["export", f"--run={run}", f"--to={folder}/exported", "--dtype=float32"]) == 0
    rows = {}
    for task in tasks.table().values():
        for code in task.languages:
            if (key := task.lm_eval_name(code)) in CONFIGS:
                limit = FEWER if task.name == "sib200" else ITEMS
                asked = tasks.ask(task, code, "lm_eval", str(folder / "data"), limit)
                rows[key] = [item.document for item in asked.items]
    (folder / "rows.json").write_text(json.dumps(rows))
    return model


def make() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(Path(folder))
        command = [os.environ["JUDGES_PYTHON"], __file__, folder]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": ""})
        found = json.loads(Path(folder, "found.json").read_text())
    content = {"tokenizer": base64.b64encode(model).decode(), "tasks": found}
    GOLDEN.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size / 1024:.0f} KiB")


def judge(folder: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    import lm_eval
    import yaml
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    given = Path(lm_eval.__file__).parent / "tasks"
    settings = {}
    for name, rows in json.loads((folder / "rows.json").read_text()).items():
        config, split = CONFIGS[name]
        if name.startswith("paws"):
            rows = [row | {"label": int(row["label"])} for row in rows]
        data = folder / f"{name}.json"
        data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        task = {
            "include": str(given / config),
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(data)}},
            **dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split")),
            f"{split}_split": split,
        }
        if name.startswith("sib"):
            task["metric_list"] = [{"metric": "acc"}]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True))
        settings[f"local_{name}"] = name
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model = HFLM(pretrained=str(folder / "exported"), dtype="float32", device="cpu", batch_size=8)
    done = simple_evaluate(
        model, tasks=list(settings), task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    found = {}
    for local, name in settings.items():
        samples = sorted(done["samples"][local], key=lambda sample: sample["doc_id"])
        found[name] = [
            [
                sample["arguments"],
                [round(float(pair[0]), 5) for pair in sample["filtered_resps"]],
                [bool(pair[1]) for pair in sample["filtered_resps"]],
                sample["target"],
                sample["acc"],
                sample.get("acc_norm"),
            ]
            for sample in samples
        ]
    (folder / "found.json").write_text(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    judge(Path(sys.argv[1])) if len(sys.argv) > 1 else make()
