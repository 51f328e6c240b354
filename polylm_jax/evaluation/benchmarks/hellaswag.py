"""HellaSwag, machine-translated by Okapi: how does a text go on (Lai et al., 2023)."""

import re

from polylm_jax.evaluation.tasks import Task, both, each, letter


def cleaned(text: str) -> str:
    """Without the marks of WikiHow, as lm-eval cleans it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


TASK = Task(
    name="hellaswag",
    kind="choice",
    languages=("ru", "es", "de", "fr", "it", "pt", "vi", "id", "nl", "ar"),
    key="hellaswag_{}",
    files=both("hellaswag/{}_validation.jsonl"),
    origin="take the val split of a language of alexandrainst/m_hellaswag, as JSONL.",
    form={"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": [str], "label": (str, int)},
    items=each(
        lambda row: cleaned(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"),
        lambda row: [cleaned(ending) for ending in row["endings"]],
        lambda row: letter(row["label"]),
    ),
    chance=1 / 4,
    translated=True,
)
