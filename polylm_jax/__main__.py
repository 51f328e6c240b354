"""The command line: polylm VERB --gin_file=FILE --gin.NAME=VALUE."""

import argparse
import difflib
import importlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from polylm_jax import config
from polylm_jax.errors import UserError

# A verb is a module of its name in polylm_jax/verbs: flags(parser) and run(given).
VERBS = {
    "corpus": "fetch real text, or take your own, and hold some out",
    "tokenizer": "train a SentencePiece tokenizer, or take an existing one",
    "rows": "tokenize the corpus into rows; check them; show one",
    "curriculum": "show what a schedule reads over a run",
    "plan": "compile a run for a slice that is not here: memory, time, chip-hours",
    "train": "train, or go on training",
    "status": "say where a run stands and whether it is healthy",
    "report": "show a run: bits per byte, the curriculum, figures, samples",
    "generate": "continue prompts with a trained model",
    "chat": "talk with a model in the terminal",
    "score": "log-likelihood of continuations, the primitive of evaluation",
    "import": "make a run from a Hugging Face GPT-2, in a folder or on the hub",
    "export": "write a trained model for transformers or llama.cpp",
    "bench": "measure a part of the program beside its peers",
    "config": "print every setting in force, as gin",
}
HELP = f"""{__doc__}

{os.linesep.join(f"  {name:12}{what}" for name, what in VERBS.items())}

`polylm VERB --help` shows a verb's flags. Any setting: --gin.BLOCK.FIELD=VALUE;
`polylm config` lists them."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; returns its exit status: 0, or another with one sentence on what to mend."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print(HELP)
        return 0
    try:
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, 1, 0)[0]
            raise UserError(f"there is no such verb; the nearest is `polylm {near}`.")
        module = importlib.import_module(f"polylm_jax.verbs.{verb}")
        parser = argparse.ArgumentParser(
            prog=f"polylm {verb}",
            description=module.__doc__,
            epilog="Any setting: --gin.BLOCK.FIELD=VALUE; `polylm config` lists them.",
            allow_abbrev=False,
        )
        parser.add_argument(
            "--gin_file", action="append", default=[], help="gin file; may be given again"
        )
        module.flags(parser)
        # argparse takes an unknown flag with a space in it for a positional
        gin_flags = [flag for flag in rest if flag.startswith("--gin.")]
        given, unknown = parser.parse_known_intermixed_args(
            [flag for flag in rest if flag not in gin_flags]
        )
        if unknown:
            raise UserError(f"{unknown[0]} is not a flag of `polylm {verb}`; see --help.")
        given.overrides = [flag.removeprefix("--gin.") for flag in gin_flags]
        config.parse(given.gin_file, given.overrides)
        return module.run(given) or 0
    except UserError as error:
        print(f"polylm {verb}: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"polylm {verb}: {error.strerror or error}{where}; nothing whole was lost: "
            "mend that and run the same command again.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
