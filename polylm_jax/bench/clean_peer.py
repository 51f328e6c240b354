"""datatrove's rules and MinHash signatures and rensa's signatures, in a process of their own.

Needs datatrove and rensa. Told the file of a JSON list of [language, text] in its first argument,
it says its versions, then answers each number on a line of its input with the seconds of its own
time that a step took: 0 rules, 1 signatures, 2 rensa's signatures; or why it could not.
"""

import json
import sys
import time
from importlib.metadata import version

THREE = {"en": "eng", "de": "deu", "ru": "rus", "es": "spa", "fr": "fra", "zh": "zho"}


def main() -> None:
    with open(json.loads(sys.argv[1])["file"], encoding="utf-8") as file:
        documents = json.load(file)
    print(json.dumps({name: version(name) for name in ("datatrove", "rensa")}), flush=True)
    steps = [rules(documents), signatures(documents), others(documents)]
    for line in sys.stdin:
        step = steps[int(line)]
        step(documents[:2])  # models are loaded at the first call
        started = time.process_time()
        step(documents)
        print(json.dumps({"seconds": time.process_time() - started}), flush=True)


def rules(documents):
    """All rules look at each document in turn, so that what they keep of its words serves."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    kinds = (GopherRepetitionFilter, GopherQualityFilter, FineWebQualityFilter)
    filters = {
        language: [kind(language=THREE[language]) for kind in kinds]
        for language in {language for language, _ in documents}
    }

    def step(documents):
        for language, text in documents:
            document = Document(text=text, id="")
            for some in filters[language]:
                some.filter(document)

    step(documents[:: max(len(documents) // 12, 1)])  # each language's splitter is loaded
    return step


def signatures(documents):
    """Words in runs of five, 14 buckets of 8, 64 bits: as FineWeb."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(
        n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64)
    )
    makers = {
        language: MinhashDedupSignature("/tmp", config=config, language=THREE[language])
        for language in {language for language, _ in documents}
    }

    def step(documents):
        for language, text in documents:
            maker = makers[language]
            shingles = maker.get_shingles(text)
            if shingles.size:
                maker.get_signature(shingles)

    return step


def others(documents):
    """rensa's, of as many values, of our shingles: windows of 24 characters, 8 of Chinese."""
    from rensa import RMinHash

    def step(documents):
        for language, text in documents:
            size = 8 if language == "zh" else 24
            one = RMinHash(num_perm=112, seed=1)
            one.update([text[at : at + size] for at in range(len(text) - size + 1)])
            one.digest()

    return step


main()
