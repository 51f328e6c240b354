"""Rows in the forms of benchmarks whose own may not be here, or are not to be had; invented."""

import json

PAIRS = (
    ("Der Zug kam zu spät an", "Der Zug war pünktlich.", 2),
    ("Sie hat zwei Brüder und eine Schwester", "Sie hat Geschwister.", 0),
    ("Er trank am Morgen Kaffee", "Er trank den Kaffee mit Milch.", 1),
    ("Alle Fenster des Hauses sind offen", "Kein Fenster ist offen.", 2),
)
FOREIGN = (
    ("الجو بارد اليوم في المدينة", "الجو ليس حارا.", 0),
    ("اشترت أمي الخبز", "اشترت أمي الخبز في الصباح.", 1),
    ("昨天下了一整天的雨", "昨天没有下雨。", 2),
    ("他每天走路去学校", "他去学校。", 0),
)


def xnli(pairs):
    return [
        {"premise": premise, "hypothesis": hypothesis, "label": label}
        for premise, hypothesis, label in pairs
    ]


BELEBELE = [
    {
        "flores_passage": "Der Markt öffnet um acht Uhr. Am Sonntag bleibt er geschlossen.",
        "question": f"Wann öffnet der Markt{mark}? ",
        **{f"mc_answer{n}": answer for n, answer in enumerate(answers, 1)},
        "correct_answer_num": str(right),
    }
    for mark, answers, right in (
        ("", ("um sechs", "um sieben", "um acht", "um neun"), 3),
        (" am Sonntag", ("um acht", "nie", "um zwei", "immer"), 2),
        (" am Montag", ("um acht", "nie", "um zwei", "immer"), 1),
    )
]
GLOBAL_MMLU = [
    {
        "question": " Wie viele Seiten hat ein Würfel?",
        **{f"option_{name}": answer for name, answer in zip("abcd", "4682", strict=True)},
        "answer": "B",
    },
    {
        "question": "Was ist 3 mal 4?",
        **{f"option_{name}": answer for name, answer in zip("abcd", "7123", strict=True)},
        "answer": "C",
    },
]
XSTORYCLOZE = [
    {
        **{f"input_sentence_{n}": text for n, text in enumerate(story, 1)},
        "sentence_quiz1": first,
        "sentence_quiz2": second,
        "answer_right_ending": right,
    }
    for story, first, second, right in (
        (
            ("小明丢了钥匙。", "他找遍了家里。", "天黑了。", "他很着急。"),
            "他找到了钥匙。",
            "他去游泳。",
            1,
        ),
        (
            ("妈妈做了蛋糕。", "大家都饿了。", "蛋糕很香。", "桌子摆好了。"),
            "下雪了。",
            "大家吃了蛋糕。",
            2,
        ),
    )
]
HELLASWAG = [
    {
        "activity_label": "Kochen",
        "ctx_a": "Eine Frau schneidet Zwiebeln [title] für die Suppe.",
        "ctx_b": "dann nimmt sie",
        "endings": ["einen Topf.", "ein  Fahrrad [step] mit.", "den Zug.", "nichts mehr."],
        "label": "0",
    },
    {
        "activity_label": "Laufen",
        "ctx_a": "Ein Mann läuft durch den Park.",
        "ctx_b": "er",
        "endings": ["schläft.", "fliegt.", "wird müde.", "kocht."],
        "label": "2",
    },
]
ARC = [
    {
        "id": "1",
        "instruction": "Was braucht eine Pflanze zum Wachsen?",
        **{f"option_{n}": a for n, a in zip("abcd", ("Licht", "Eis", "Sand", "Öl"), strict=True)},
        "option_e": None,
        "answer": "A",
    },
    {
        "id": "2",
        "instruction": "Welcher Stern ist der Erde am nächsten?",
        **{
            f"option_{n}": a
            for n, a in zip("abcd", ("Mond", "Mars", "Sonne", "Sirius"), strict=True)
        },
        "option_e": "Venus",
        "answer": "C",
    },
]
# file in the evaluation folder -> its rows
FILES = {
    "xnli/validation.de.jsonl": xnli(PAIRS),
    "xnli/validation.ar.jsonl": xnli(FOREIGN[:2]),
    "xnli/validation.zh.jsonl": xnli(FOREIGN[2:]),
    "belebele/deu_Latn.jsonl": BELEBELE,
    "global_mmlu/de.jsonl": GLOBAL_MMLU,
    "xstorycloze/eval.zh.jsonl": XSTORYCLOZE,
    "hellaswag/de_validation.jsonl": HELLASWAG,
    "arc/de_test.jsonl": ARC,
}


def write(folder):
    """All files into an evaluation folder."""
    for name, rows in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
