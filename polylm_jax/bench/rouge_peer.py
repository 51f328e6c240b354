"""rouge_score's ROUGE-L of all pairs of texts, timed in a process of its own; needs only that.

Reads a JSON list of texts, cut at spaces, and writes {"seconds": of its own time, "f": [[…]]}.
"""

import json
import sys
import time

from rouge_score import rouge_scorer


class Spaces:
    """Words as they come."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def main() -> None:
    texts = json.load(sys.stdin)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Spaces())
    started = time.process_time()
    f = [[scorer.score(a, b)["rougeL"].fmeasure for b in texts] for a in texts]
    print(json.dumps({"seconds": time.process_time() - started, "f": f}))


if __name__ == "__main__":
    main()
