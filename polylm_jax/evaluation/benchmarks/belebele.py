"""Belebele: four answers to a question on a passage (Bandarkar et al., 2023)."""

from polylm_jax.evaluation.tasks import Task, both, each, letter

CODES = {
    **{"en": "eng_Latn", "zh": "zho_Hans", "ru": "rus_Cyrl", "es": "spa_Latn", "de": "deu_Latn"},
    **{"fr": "fra_Latn", "it": "ita_Latn", "pt": "por_Latn", "ja": "jpn_Jpan", "vi": "vie_Latn"},
    **{"id": "ind_Latn", "pl": "pol_Latn", "nl": "nld_Latn", "ar": "arb_Arab", "tr": "tur_Latn"},
    **{"th": "tha_Thai", "he": "heb_Hebr", "ko": "kor_Hang"},
}
ANSWERS = [f"mc_answer{number}" for number in range(1, 5)]

TASK = Task(
    name="belebele",
    kind="choice",
    languages=tuple(CODES),
    key="belebele_{}",
    files=both("belebele/{}.jsonl"),
    origin="take LANGUAGE.jsonl of Belebele (github.com/facebookresearch/belebele).",
    form={"flores_passage": str, "question": str, "correct_answer_num": (str, int)}
    | dict.fromkeys(ANSWERS, str),
    items=each(
        lambda row: "\n".join(
            [f"P: {row['flores_passage']}", f"Q: {row['question'].strip()}"]
            + [f"{name}: {row[answer]}" for name, answer in zip("ABCD", ANSWERS, strict=True)]
            + ["Answer:"]
        ),
        lambda row: "ABCD",
        lambda row: letter(row["correct_answer_num"], 1),
    ),
    codes=CODES,
    chance=1 / 4,
    translated=True,
)
