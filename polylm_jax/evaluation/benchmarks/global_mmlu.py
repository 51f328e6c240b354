"""Global-MMLU: school and university exams with four answers (Singh et al., 2024)."""

from polylm_jax.evaluation.tasks import Task, both, each, letter

OPTIONS = [f"option_{name}" for name in "abcd"]

TASK = Task(
    name="global_mmlu",
    kind="choice",
    languages=("en", "zh", "es", "de", "fr", "it", "pt", "ja", "id", "ar", "ko"),
    key="global_mmlu_{}",
    files=both("global_mmlu/{}.jsonl"),
    origin="take the test split of a language of CohereLabs/Global-MMLU-Lite, as JSONL.",
    form={"question": str, "answer": (str, int)} | dict.fromkeys(OPTIONS, str),
    items=each(
        lambda row: "\n".join(
            [row["question"].strip()]
            + [f"{name}. {row[option]}" for name, option in zip("ABCD", OPTIONS, strict=True)]
            + ["Answer:"]
        ),
        lambda row: "ABCD",
        lambda row: letter(row["answer"]),
    ),
    chance=1 / 4,
    translated=True,
)
