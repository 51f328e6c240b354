"""The page as it is sent: one file, and the policy by which nothing else runs in it."""

import base64
import re
from functools import cache
from hashlib import sha256
from importlib.resources import files

INSIDE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def read() -> tuple[str, str]:
    """The page and its Content-Security-Policy: its own script and style, by their hashes."""
    content = (files("polylm_jax.serve") / "page.html").read_text("utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INSIDE.findall(content):
        digest = base64.b64encode(sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = {
        "default-src": "'none'",
        **{f"{kind}-src": " ".join(found) for kind, found in hashes.items()},
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return content, "; ".join(f"{name} {value}" for name, value in policy.items())
