"""From text to report for languages of which the paper knows nothing, and for one alone."""

import json

import pytest

from polylm_jax.__main__ import main
from polylm_jax.runs import log as runs
from tests.conftest import TINY, gin_flags

TEXT = {
    "hi": [
        "सुबह की ठंडी हवा में नदी के किनारे चलना अच्छा लगता है।",
        "मेरी दादी हर शाम बच्चों को एक नई कहानी सुनाती थीं।",
        "बाज़ार में आम, केले और ताज़ी सब्ज़ियाँ मिलती हैं।",
        "रेलगाड़ी आज आधा घंटा देर से स्टेशन पर पहुँची।",
        "उसने पुस्तकालय से तीन किताबें लीं और घर लौट आया।",
        "बारिश रुकते ही सब लोग खेत की ओर निकल पड़े।",
    ],
    "sw": [
        "Asubuhi tulikwenda sokoni kununua ndizi na samaki.",
        "Mtoto anasoma kitabu chini ya mti mkubwa.",
        "Mvua ilinyesha usiku kucha na mto ukajaa maji.",
        "Mwalimu wetu anapenda kutufundisha nyimbo mpya.",
        "Basi la mwisho huondoka mjini saa mbili usiku.",
        "Bibi alipika chakula kitamu kwa wageni wote.",
    ],
    "cs": [
        "Ráno jsme šli podél řeky až k starému mlýnu.",
        "Babička pekla každou neděli koláče s tvarohem.",
        "Vlak měl zpoždění, a tak jsme čekali na nástupišti.",
        "Na zahradě kvetou jabloně a bzučí v nich včely.",
        "Večer si děti přály ještě jednu pohádku o drakovi.",
        "Knihovna je otevřená každý den kromě pondělí.",
    ],
}


def settings_for(folder, languages):
    for code in languages:
        (folder / "text" / code).mkdir(parents=True)
        sentences = TEXT[code.split("-")[0]]
        texts = [" ".join(sentences[i:] + sentences[:i]) + f" {i}." for i in range(6)] * 2
        lines = [json.dumps({"text": f"{n}. {text}"}) for n, text in enumerate(texts)]
        (folder / "text" / code / "a.jsonl").write_text("\n".join(lines))
    folders = ("tokenizer.path", "rows.path", "train.folder")
    paths = {name: folder / name.split(".")[0] for name in folders}
    return (
        TINY
        | {"corpus.text": folder / "text", "corpus.path": folder / "corpus"}
        | {"curriculum.non_english": ((0, 1.0),), "train.steps": 4}
        | {"tokenizer.pieces": 420 if len(languages) > 1 else 340}
        # compiles in less time
        | {"model.layers": 1, "mesh.data": 8, "mesh.fsdp": 1, "mesh.tensor": 1}
        | {"train.validate_every": 4, "curriculum.extras": {}}
        | paths
    )


@pytest.mark.parametrize("languages", [("hi", "sw", "cs"), ("sr-Latn",)])
def test_from_text_to_report(tmp_path, capsys, languages, monkeypatch):
    monkeypatch.setitem(TEXT, "sr", TEXT["cs"])
    settings = settings_for(tmp_path, languages)
    for verb in ("corpus", "tokenizer", "rows", "curriculum", "train"):
        assert main([verb, *gin_flags(settings)]) == 0, capsys.readouterr().err
    made = capsys.readouterr()
    assert "English" not in made.out + made.err
    for verb in ("status", "report"):
        assert main([verb, f"--run={tmp_path / 'train'}"]) == 0
    shown = capsys.readouterr().out
    names = {"hi": "Hindi", "sw": "Swahili", "cs": "Czech", "sr-Latn": "Serbian"}
    for code in languages:
        assert f"{names[code]} ({code})" in shown
    assert f"Mean of {len(languages)} languages: " in shown
    assert "Largest deviation from the schedule over all sources and steps: 0." in shown
    assert "English" not in shown
    figures = {path.name for path in (tmp_path / "train/figures").iterdir()}
    assert {"overview.png", "curriculum.png", "schedule.png", "bits_per_byte.png"} <= figures
    last = runs.of_kind(runs.read_metrics(tmp_path / "train"), "train")[-1]
    counts = last["row_counts"]
    assert set(counts) == set(languages)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_what_is_asked_for_and_not_there_is_one_sentence(tmp_path, capsys):
    settings = settings_for(tmp_path, ("hi", "sw"))
    for verb in ("corpus", "tokenizer", "rows"):
        assert main([verb, *gin_flags(settings)]) == 0
    for changes, words in [
        ({"curriculum.non_english": ((0, 0.3),)}, 'gives "en" a share but'),
        ({"curriculum.smoothing": 1.0}, "no share for hi, sw; set curriculum.smoothing = 0"),
        ({"curriculum.weights": ((0, {"hi": 1.0, "cs": 1.0}),)}, 'gives "cs" a share but'),
        ({"curriculum.extras": {"bilingual": ((0, 0.1),)}}, "asks for bilingual rows but"),
    ]:
        assert main(["curriculum", *gin_flags(settings | changes)]) == 1
        assert words in capsys.readouterr().err
    fine = {"curriculum.weights": ((0, {"hi": 3.0, "sw": 1.0, "cs": 0.0}),)}
    assert main(["curriculum", *gin_flags(settings | fine)]) == 0
    shown = capsys.readouterr().out
    assert "75.00%" not in shown  # smoothing is 0
    assert "cs" not in shown
