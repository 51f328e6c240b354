"""XStoryCloze: which of two sentences ends a story of four (Lin et al., 2021)."""

from polylm_jax.evaluation.tasks import Task, both, each

STORY = [f"input_sentence_{number}" for number in range(1, 5)]
ENDS = ["sentence_quiz1", "sentence_quiz2"]

TASK = Task(
    name="xstorycloze",
    kind="choice",
    languages=("en", "zh", "ru", "es", "id", "ar", "hi", "sw", "te", "eu", "my"),
    key="xstorycloze_{}",
    files=both("xstorycloze/eval.{}.jsonl"),
    origin="take the eval split of a language of juletxara/xstory_cloze, as JSONL.",
    form={"answer_right_ending": range(1, 3)} | dict.fromkeys(STORY + ENDS, str),
    items=each(
        lambda row: " ".join(row[name] for name in STORY),
        lambda row: [row[name] for name in ENDS],
        lambda row: row["answer_right_ending"] - 1,
    ),
    chance=1 / 2,
    translated=True,
)
