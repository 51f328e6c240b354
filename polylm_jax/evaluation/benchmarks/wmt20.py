"""WMT20: news translated between English and four languages (Barrault et al., 2020)."""

from polylm_jax.data.languages import name_of
from polylm_jax.evaluation import prompts
from polylm_jax.evaluation.items import Prompt
from polylm_jax.evaluation.tasks import Row, Task, both

PAIRS = ("de-en", "ja-en", "ru-en", "zh-en", "en-de", "en-ja", "en-ru", "en-zh")


def translated(rows: list[Row], pair: str, protocol: str) -> list[Prompt]:
    """Prompts for rows {"src", "ref"} in a pair of languages, from the first to the second."""
    source, target = (name_of(code).partition(" (")[0] for code in pair.split("-"))
    if protocol == "lm_eval":
        texts = [f"{source} phrase: {row['src']}\n{target} phrase:" for row in rows]
    else:
        texts = prompts.with_example(
            rows,
            lambda row: f"{row['src']} Translate this sentence from {source} to {target}.",
            lambda row: row["ref"],
            "\n",
        )
    return prompts.prompts_of(rows, texts, lambda row: (row["ref"],))


def notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    if protocol == "lm_eval":
        return ["the prompt of lm-eval's WMT16: it has none of WMT20"]
    return ["the paper does not say what parts the example from the item", prompts.ONE_EXAMPLE]


TASK = Task(
    name="wmt20",
    kind="generated",
    languages=PAIRS,
    key="wmt20-{}",
    files=both("wmt20/wmt20.{}.tsv"),
    origin="sacrebleu -t wmt20 -l PAIR --echo src ref > wmt20/wmt20.PAIR.tsv makes it.",
    form={"src": str, "ref": str},
    items=translated,
    read=prompts.columns("src", "ref"),
    notes=notes,
    measure=prompts.translation("bleu"),
    shots={"paper": 1},
)
