"""Texts on which two readings of one SentencePiece model are most likely to part."""

_SPACES = [
    "",
    " ",
    "  ",
    "   a",
    "a   ",
    " two  spaces ",
    "\t tab\t\t",
    "\n",
    "a\n\n\nb",
    "\r\nline\r\n",
]
_CODE = [
    "if x:\n          return",
    "def f(a, b=1):\n    '''Doc.'''\n    return {**a, 'b': b[::-1]}  # 10%\n",
    "\t\tfor (int i = 0; i < n; ++i) { s += a[i]; }",
    "a = 0x0A; print(f'<{a:#04x}>')",
    "=" * 79,
    "-" * 40 + "\n" + "#" * 33,
    "https://example.org/a_b?c=%20d&e=f#g",
    "3.14159e-10 1,234,567.89 ½ ¾ №5",
    "snake_case CamelCase SCREAMING kebab-case",
]
_LIKE_PIECES = ["<0x0A>", "code <0x41> x", "<0xE4><0xBD><0xA0>", "<unk>x"[5:], "▁", "a▁b", " ▁ ▁▁ "]
_RUNS = [
    "aaaaaaaaaaaaaaaaaaaaaaa",
    " " * 10,
    " " * 37,
    "。" * 12,
    "ー" * 9,
    "哈" * 11,
    "…" * 8,
    "!" * 17,
]
_RUNS += ["ha" * 15, "na na na na na na na na", "0" * 24, "\n" * 9]
_FORMS = [
    "ﾊﾟｿｺﾝ ｶﾞｲﾄﾞ ﾊﾝｶｸ ｳﾞ",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３",
    "ﬁﬂ ①② ㎏ ㍿ Ⅷ ª º ™",
    "e\u0301 é a\u0308 ä o\u0302\u0301 ố \u1e0b\u0323 q\u0323\u0307",
    "각 \u1100\u1161\u11a8 \u1112\u1161\u11ab한글",
    "が か\u3099 パ ハ\u309a",
    "tiếng Việt rất hay; Tie\u0302\u0301ng Vie\u0323\u0302t",
    "ﷺ ﷲ لا ﻻ",
    "a\u00a0b\u2009c\u3000d\u200be\ufefff",
    "soft\u00adhyphen\u2060join\u200d",
    "I\u0307 ı ſ ẞ Å \u212b K Ω",
    "～〜 − - – — ‐ ‑",
]
_SCRIPTS = [
    "请点击下面的链接，然后输入您的姓名。",
    "このフィールドは必須です。カタカナとひらがな。",
    "กรุณากรอกข้อมูลให้ครบถ้วน น้ำ",
    "नमस्ते दुनिया क्षत्रिय र्‍य",
    "مرحبا بالعالم ١٢٣ يُرجى",
    "שלום עולם שָׁלוֹם",
    "Привет, как дела? ё е\u0308",
    "Ünïcödé Straße Œuvre Ærø Łódź",
    "வணக்கம் உலகம் বাংলা ລາວ ខ្មែរ မြန်မာ",
    "ᠮᠣᠩᠭᠣᠯ ქართული Հայերեն አማርኛ",
    "𠮷野家 𝒜𝓑 𓀀 \U0002b740",
]
_SIGNS = [
    "👩‍👧 👍🏽 🇩🇪🇫🇷 ☺️ ☺ 🏴‍☠️",
    "\x00\x01\x1b[0m\x7f\x85",
    "\ue000\uffff\ufffd\U0010ffff",
    "\u202eabc\u202c \u2066x\u2069",
    "z\u0335\u0321\u0322a\u0336l\u0337g\u0338o\u0330\u0331\u0332\u0333",
]
# `<s>`, `</s>` and `<unk>` are not among them: they are known in text, as chat templates need it.
HARD_TEXTS = [*_SPACES, *_CODE, *_LIKE_PIECES, *_RUNS, *_FORMS, *_SCRIPTS, *_SIGNS]
HARD_TEXTS.append(" ".join([*_CODE, *_SCRIPTS, *_RUNS]))
