"""Every figure of the paper's benchmark (Tables 18-31), as printed there.

Accuracy, F1, ROUGE and BLEU, all from 0 to 100. Likelihood tasks are zero-shot, generated ones
one-shot for base models and zero-shot for tuned ones.
"""

BASE = ("PolyLM-13B", "LLaMA-13B", "BLOOM-7.1B")
TUNED = ("PolyLM-MultiAlpaca-13B", "LLaMA-Alpaca-13B", "BLOOMZ-MT-7.1B")

# of each task: its languages by group, then a line of figures for each model
_TABLES = {
    "xnli": (
        "seen: en zh ar es fr ru th tr vi de; unseen: bg el hi sw ur",
        """
54.6 35.9 33.6 50.0 52.1 49.0 44.6 44.5 46.7 50.2 36.3 33.8 34.9 34.4 33.5
35.5 34.6 34.1 33.4 33.6 33.6 34.6 34.0 34.1 35.2 33.9 34.5 35.7 33.2 34.1
53.9 35.5 33.8 48.7 49.8 42.6 34.9 34.9 47.4 39.6 39.3 35.5 46.7 37.9 41.9
54.3 36.0 33.3 47.0 49.6 46.7 38.4 44.1 44.6 48.0 36.1 32.7 34.1 33.1 33.8
35.7 34.6 33.2 33.3 33.4 33.4 36.2 34.7 34.6 33.7 34.3 34.1 35.8 33.0 32.8
44.9 33.2 36.0 36.1 47.5 38.1 33.5 33.4 37.9 42.5 35.5 35.1 39.6 33.2 37.9
""",
    ),
    "pawsx": (
        "all: en zh es fr ja ko de",
        """
60.9 56.0 59.7 56.6 51.0 46.8 60.3
53.7 45.2 52.1 54.5 45.0 47.1 53.0
61.3 47.3 59.4 50.9 45.5 45.1 52.9
65.3 55.9 63.0 59.8 52.3 53.7 64.9
53.3 45.3 53.5 54.1 46.0 48.3 54.3
61.2 58.5 58.8 61.1 54.4 49.5 56.7
""",
    ),
    "xwinograd": (
        "all: en zh ja pt ru fr",
        """
84.6 76.6 65.7 74.9 65.1 73.5
86.8 70.0 59.9 71.5 70.8 68.7
82.2 74.4 58.5 76.8 56.8 71.1
83.9 73.6 65.2 72.2 67.9 71.1
88.6 67.3 61.4 73.0 72.1 78.3
83.5 71.0 56.4 65.4 53.7 68.7
""",
    ),
    "xcopa": (
        "seen: id it th tr vi zh; unseen: et ht qu sw ta",
        """
70.2 66.0 58.6 57.8 70.8 67.0 49.8 50.4 50.4 51.8 55.0
57.8 67.2 54.6 53.0 53.8 58.4 48.2 52.8 50.2 51.2 54.4
69.8 52.8 55.4 51.2 70.8 65.2 48.2 50.8 50.8 51.6 59.2
71.6 66.8 60.2 58.8 71.8 75.6 48.4 52.0 50.4 50.8 55.4
55.4 70.8 54.6 53.0 53.0 60.0 47.2 53.0 51.8 51.0 56.0
58.6 51.8 53.6 53.2 58.8 62.2 49.6 53.8 49.4 53.0 58.2
""",
    ),
    "tydiqa": (
        "seen: ar en id ko ru; unseen: fi bn sw te",
        """
44.9 58.0 48.6 53.8 39.5 20.9 2.9 22.0 3.7
49.7 54.4 43.4 49.7 41.8 40.2 32.0 33.5 8.5
42.6 51.6 48.7 8.6 33.8 17.5 55.1 56.8 40.9
50.7 58.7 52.1 30.1 40.3 8.5 2.5 4.6 1.9
20.8 59.2 48.6 19.3 37.7 50.6 11.0 20.7 5.7
36.6 22.4 26.9 5.8 9.1 2.4 26.7 14.4 26.5
""",
    ),
    "mtg_sg": (
        "all: zh en es fr de",
        """
10.3 10.3 7.8 9.2 6.3
16.5 12.5 2.0 8.1 0.7
16.6 13.2 11.0 13.1 6.6
13.9 9.5 9.6 11.5 8.0
3.8 10.0 4.8 5.7 5.6
12.1 12.6 9.8 12.1 5.6
""",
    ),
    "mtg_tg": (
        "all: zh en es fr de",
        """
16.8 16.5 14.2 14.3 10.1
11.5 19.6 15.9 16.8 10.6
12.4 14.2 10.1 10.9 5.7
15.3 23.7 16.6 15.9 11.7
9.3 25.1 15.5 15.5 10.1
18.5 25.7 18.9 16.8 9.6
""",
    ),
    "mtg_qg": (
        "all: zh en es fr de",
        """
20.0 15.9 17.1 13.9 7.5
20.2 16.3 14.6 13.1 4.5
13.8 15.5 15.0 13.5 7.3
21.8 25.7 27.2 19.3 16.3
4.7 27.5 27.3 19.2 18.1
23.8 31.9 29.6 26.4 9.2
""",
    ),
    "mtg_summ": (
        "all: zh en es fr de",
        """
16.6 17.0 16.9 15.1 11.6
14.6 18.1 8.1 10.3 7.6
11.0 10.3 10.0 9.7 7.5
15.4 21.5 18.1 15.2 13.0
2.6 22.0 16.9 15.2 13.4
16.5 18.4 19.7 18.4 11.0
""",
    ),
    "wmt20": (
        "into English: de-en ja-en ru-en zh-en; out of English: en-de en-ja en-ru en-zh",
        """
33.9 10.2 32.4 22.0 24.8 17.0 17.8 19.0
36.9 13.6 32.7 22.6 23.6 9.6 16.8 7.4
23.9 6.5 17.7 16.3 3.7 2.1 1.4 8.3
34.2 14.3 31.8 25.0 25.9 16.2 17.9 21.9
30.0 9.9 20.3 16.4 16.8 3.6 10.6 3.0
17.99 5.09 7.67 12.89 2.94 0.99 0.77 8.40
""",
    ),
}


def groups(task: str) -> dict[str, tuple[str, ...]]:
    """The groups of languages that the paper averages over; none for a task it has not."""
    if task not in _TABLES:
        return {}
    parts = (part.split(":") for part in _TABLES[task][0].split(";"))
    return {name.strip(): tuple(codes.split()) for name, codes in parts}


def figures(task: str) -> dict[str, dict[str, float]]:
    """language -> model -> the paper's figure."""
    if task not in _TABLES:
        return {}
    codes = [code for some in groups(task).values() for code in some]
    lines = _TABLES[task][1].split("\n")[1:-1]
    rows = [list(map(float, line.split())) for line in lines]
    return {
        code: dict(zip(BASE + TUNED, column, strict=True))
        for code, column in zip(codes, zip(*rows, strict=True), strict=True)
    }
