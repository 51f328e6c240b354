"""TyDiQA-GoldP: the answer to a question, which stands in a passage (Clark et al., 2020)."""

from polylm_jax.data.languages import name_of
from polylm_jax.evaluation import prompts
from polylm_jax.evaluation.items import Prompt
from polylm_jax.evaluation.tasks import Row, Task

# as lm-eval 0.4.13 has them: passage, question, answer
WORDS = {
    "ar": ("السياق", "السؤال", "الإجابة"),
    "en": ("Context", "Question", "Answer"),
    "id": ("Konteks", "Pertanyaan", "Jawaban"),
    "ko": ("맥락", "질문", "답변"),
    "ru": ("Контекст", "Вопрос", "Ответ"),
    "fi": ("Konteksti", "Kysymys", "Vastaus"),
    "bn": ("প্রসঙ্গ", "প্রশ্ন", "উত্তর"),
    "sw": ("Muktadha", "Swali", "Jibu"),
    "te": ("సందర్భం", "ప్రశ్న", "సమాధానం"),
}


def _name(language: str) -> str:
    return name_of(language).partition(" (")[0]


def _read(file: str, content: bytes, code: str) -> list[Row]:
    """The rows of one language; the original file has all, told by their ids."""
    rows = prompts.squad(file, content, code)
    name = _name(code).lower()
    return [row for row in rows if row["id"].startswith(f"{name}-")] or [
        row for row in rows if not row["id"].split("-")[0].isalpha()
    ]


def _items(rows: list[Row], language: str, protocol: str) -> list[Prompt]:
    if protocol == "lm_eval":
        passage, question, answer = WORDS[language]
        texts = [
            f"{passage}: {row['context']}\n\n{question}: {row['question']}\n\n{answer}:"
            for row in rows
        ]
    else:
        name = _name(language)

        def asked(row: Row) -> str:
            return (
                f"Answer the question in one or a few words in {name}.\n"
                f"Context ({name}): {row['context']}\nQuestion: {row['question']}\nAnswer:"
            )

        texts = prompts.with_example(rows, asked, lambda row: row["answers"][0], "\n\n")
    return prompts.prompts_of(rows, texts, lambda row: row["answers"])


def _notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    if protocol == "lm_eval":
        return []
    return [
        "training questions, as the paper's numbers of items are theirs",
        "the paper does not print its instruction, the order in it and what parts it",
        prompts.ONE_EXAMPLE,
    ]


TASK = Task(
    name="tydiqa",
    kind="generated",
    languages=tuple(WORDS),
    key="tydiqa_goldp_{}",
    files={
        "paper": ("tydiqa_goldp/tydiqa.goldp.{}.train.json", "tydiqa-goldp-v1.1-train.json"),
        "lm_eval": ("tydiqa_goldp/tydiqa.goldp.{}.dev.json", "tydiqa-goldp-v1.1-dev.json"),
    },
    origin="take tydiqa-goldp-v1.1-train.json and -dev.json of "
    "github.com/google-research-datasets/tydiqa.",
    form=prompts.QUESTION,
    items=_items,
    read=_read,
    notes=_notes,
    measure=prompts.f1,
    shots={"paper": 1},
)
