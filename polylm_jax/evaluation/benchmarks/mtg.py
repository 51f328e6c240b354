"""MTG: endings, titles, questions and summaries in five languages (Chen et al., 2022)."""

import functools

from polylm_jax.data.languages import name_of
from polylm_jax.evaluation import prompts
from polylm_jax.evaluation.items import Prompt
from polylm_jax.evaluation.tasks import Row, Task, both

# of each part: what is asked for, what the source is called, what the answer is
PARTS = {
    "sg": ("an ending of the story", "story", "story ending"),
    "tg": ("a title of the document", "document", "title"),
    "qg": ("a question about the passage that has the answer", "passage", "question"),
    "summ": ("a summary of the document", "document", "summary"),
}


def _items(part: str, rows: list[Row], language: str, protocol: str) -> list[Prompt]:
    wanted, source, answer = PARTS[part]
    name = name_of(language).partition(" (")[0]

    def asked(row: Row) -> str:
        given = f" answer: {row['answer']}" if part == "qg" else ""
        return f"Write {wanted} in {name}. {source}: {row['source']}{given} {answer}:"

    texts = prompts.with_example(rows, asked, lambda row: row["target"], "\n")
    return prompts.prompts_of(rows, texts, lambda row: (row["target"],))


def _notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    return [
        "the paper does not print its instruction, and lm-eval has no such task",
        "words of ROUGE are letters where no spaces are written; the paper does not say its own",
        prompts.ONE_EXAMPLE,
    ]


def _task(part: str) -> Task:
    form = {"source": str, "target": str} | ({"answer": str} if part == "qg" else {})
    return Task(
        name=f"mtg_{part}",
        kind="generated",
        languages=("zh", "en", "es", "fr", "de"),
        key=f"mtg_{part}_{{}}",
        files=both(f"mtg/{part}.{{}}.jsonl"),
        origin="take MTG's test sets (github.com/zide05/MTG) and write a line of JSON an item: "
        '{"source": TEXT, "target": TEXT}, and "answer" where a question is asked for.',
        form=form,
        items=functools.partial(_items, part),
        notes=_notes,
        measure=prompts.rouge,
        shots={"paper": 1, "lm_eval": 1},
    )


TASKS = [_task(part) for part in PARTS]
