"""ARC-Challenge, machine-translated by Okapi: school science (Lai et al., 2023)."""

from polylm_jax.evaluation.benchmarks.hellaswag import cleaned
from polylm_jax.evaluation.tasks import Task, both, each, letter

OPTIONS = [f"option_{name}" for name in "abcde"]

TASK = Task(
    name="arc",
    kind="choice",
    languages=("zh", "ru", "es", "de", "fr", "it", "pt", "vi", "id", "nl", "ar"),
    key="arc_{}",
    files=both("arc/{}_test.jsonl"),
    origin="take the test split of a language of alexandrainst/m_arc, as JSONL.",
    form={"instruction": str, "option_a": str, "option_b": str, "answer": str},
    items=each(
        lambda row: f"Question: {cleaned(row['instruction'])}\nAnswer:",
        lambda row: [cleaned(row[name]) for name in OPTIONS if row.get(name)],
        lambda row: letter(row["answer"]),
    ),
    chance=1 / 4,
    translated=True,
)
