"""XQuAD: SQuAD's questions and passages in other languages (Artetxe et al., 2020)."""

from polylm_jax.evaluation import prompts
from polylm_jax.evaluation.items import Prompt
from polylm_jax.evaluation.tasks import Row, Task, both

# as lm-eval 0.4.13 has them: passage, question, answer
WORDS = {
    "ar": ("سيا", "سؤال", "إجابة"),
    "de": ("Kontext", "Frage", "Antwort"),
    "el": ("Συμφραζόμενα", "Ερώτηση", "Απάντηση"),
    "en": ("Context", "Question", "Answer"),
    "es": ("Contexto", "Pregunta", "Respuesta"),
    "hi": ("प्रसंग", "सवाल", "उत्तर"),
    "ro": ("Context", "Întrebare", "Răspuns"),
    "ru": ("Контекст", "Вопрос", "Ответ"),
    "th": ("บริบท", "คำถาม", "คำตอบ"),
    "tr": ("Bağlam", "Soru", "Cevap"),
    "vi": ("Bối cảnh", "Câu hỏi", "Trả lời"),
    "zh": ("语境", "问题", "回答"),
}


def _items(rows: list[Row], language: str, protocol: str) -> list[Prompt]:
    passage, question, answer = WORDS[language]
    texts = [
        f"{passage}: {row['context']}\n\n{question}: {row['question']}\n\n{answer}:" for row in rows
    ]
    return prompts.prompts_of(rows, texts, lambda row: row["answers"][:1])


def _notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    notes = []
    if language in ("zh", "th"):
        notes.append("words are parted by spaces, which are not written: f1 is all or nothing")
    if language == "ar":
        notes.append('lm-eval\'s word of passage, "سيا", is cut short')
    return notes


TASK = Task(
    name="xquad",
    kind="generated",
    languages=tuple(WORDS),
    key="xquad_{}",
    files=both("xquad/xquad.{}.json"),
    origin="take xquad.LANGUAGE.json of github.com/google-deepmind/xquad.",
    form=prompts.QUESTION,
    items=_items,
    read=prompts.squad,
    translated=True,
    notes=_notes,
    measure=prompts.f1,
)
