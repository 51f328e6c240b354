"""The command line: polylm VERB --gin_file=FILE --gin.NAME=VALUE."""

import argparse
import contextlib
import difflib
import importlib.util
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, TextIO

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from polylm_jax import console
from polylm_jax.errors import FULL, STORAGE, UserError, first_line, of_storage, out_of_reach
from polylm_jax.verbs.examples import EXAMPLES, FIRST

# A verb is a module in polylm_jax/verbs, see `module_of`: flags(parser) and run(given).
VERBS = {
    "corpus": "fetch real text, or take your own, and hold some out",
    "clean": "clean text of the web: languages, rules, copies; keep every verdict",
    "tokenizer": "train a SentencePiece tokenizer, or take an existing one",
    "rows": "tokenize the corpus into rows; check them; show one",
    "curriculum": "show what a schedule reads over a run",
    "plan": "compile a run for a slice that is not here: memory, time, chip-hours",
    "train": "train, or go on training",
    "tune": "learn to answer from conversations: make their rows, then train",
    "status": "say where a run stands and whether it is healthy",
    "runs": "list all runs in a folder, one line each",
    "compare": "set runs side by side: settings, bits per byte, figures",
    "sweep": "train all combinations of some settings' values, and compare them",
    "report": "show a run: bits per byte, the curriculum, figures, samples",
    "generate": "continue prompts with a trained model",
    "chat": "talk with a model in the terminal",
    "serve": "answer over HTTP in OpenAI's forms, with a page",
    "evaluate": "measure a model with the paper's benchmark, or another",
    "score": "log-likelihood of continuations, the primitive of evaluation",
    "overlap": "see what of a benchmark stands in the rows that a run has read",
    "lm-eval": "run lm-eval's own command line on a run",
    "self-instruct": "have a language model write instructions in many languages",
    "import": "make a run from a Hugging Face GPT-2, in a folder or on the hub",
    "export": "write a trained model for transformers or llama.cpp",
    "bench": "measure a part of the program beside its peers",
    "config": "print every setting in force, as gin",
}
HELP = f"""{__doc__}

First, in an empty folder, a small model on real text in 18 languages, minutes on two cores:
{os.linesep.join(f"  polylm {verb} {EXAMPLES[verb]}" for verb in FIRST)}

{os.linesep.join(f"  {name:14}{what}" for name, what in VERBS.items())}

`polylm VERB --help` shows a verb's flags and an example. Any setting: --gin.BLOCK.FIELD=VALUE;
`polylm config` lists them. The package's gin files are found by name from anywhere; a file here
that is called so comes first. A path may begin with ~, and nothing in it is a pattern. A file of
results takes the place of an older one when it is whole; a folder must be new, or empty."""

INTERRUPTED = 128 + signal.SIGINT  # as a shell has it
NO_READER = 128 + signal.SIGPIPE
# What pip calls the packages that are imported by another name.
DISTRIBUTIONS = {
    "gin": "gin-config",
    "iso639": "python-iso639",
    "orbax": "orbax-checkpoint",
    "tensorflow_text": "tensorflow-text",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; returns its exit status: 0, or another with one sentence on what to mend."""
    console.ready()
    for name in STORAGE:  # what they log with a trace they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    alone = arguments is None  # the process is ours, not a test's
    try:
        try:
            return _run(verb, rest, alone)
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
    except UserError as error:
        _say(f"polylm {verb}: {error}")
        return error.status
    except KeyboardInterrupt as interrupt:
        return _interrupted(verb, alone, str(interrupt))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or importlib.util.find_spec(package):
            raise  # a part is missing of what is there
        wanted = DISTRIBUTIONS.get(package, package)
        _say(
            f"polylm {verb}: the package {wanted} is not installed here; `pip install {wanted}`, "
            "or all of them with `pip install -r requirements.txt`."
        )
        return 1
    except OSError as error:
        if _without_reader(sys.stdout) or _without_reader(sys.stderr):
            return NO_READER
        if of_storage(error):
            return _unreached(verb, error)
        places = " and ".join(str(name) for name in (error.filename, error.filename2) if name)
        mend = "; free some and run the same command again" if error.errno in FULL else ""
        reason = (error.strerror or first_line(error)).rstrip(".")
        _say(f"polylm {verb}: {places + ': ' if places else ''}{reason}{mend}.")
        return 1
    except MemoryError as error:
        _say(f"polylm {verb}: there is not enough memory: {error or 'it is all in use'}.")
        return 1
    except Exception as error:
        if not of_storage(error):
            raise
        return _unreached(verb, error)


def _run(verb: str, rest: list[str], alone: bool) -> int:
    if verb in ("-h", "--help"):
        print(HELP)
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1, 0)[0]
        raise UserError(f"there is no such verb; the nearest is `polylm {near}`.")
    if alone:
        _keep_no_interrupt(verb)
    with _interrupted_at_once(verb) if alone else contextlib.nullcontext():
        from polylm_jax import config
        from polylm_jax.files import local
        from polylm_jax.parallel import platform
        from polylm_jax.verbs import module_of

        module = module_of(verb)
    platform.without_absent_tpu()
    parser = argparse.ArgumentParser(
        prog=f"polylm {verb}",
        description=module.__doc__,
        epilog=f"For example: polylm {verb} {EXAMPLES[verb]}\n"
        "Any setting: --gin.BLOCK.FIELD=VALUE; `polylm config` lists them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        type=partial(local, name="--gin_file"),
        help="gin file; may be given again",
    )
    module.flags(parser)
    if parser.get_default("others") is not None:  # the verb hands on what stands after --
        at = rest.index("--") if "--" in rest else len(rest)
        rest, others = rest[:at], rest[at + 1 :]
        parser.set_defaults(others=others)
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


def _unreached(verb: str, error: Exception) -> int:
    _say(f"polylm {verb}: {out_of_reach('what is not on this machine', first_line(error))}")
    return 1


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        # one line, whatever a name in it holds
        print(
            console.visible(sentence.replace("\n", "\\n"), sys.stderr), file=sys.stderr, flush=True
        )


def _interrupted(verb: str, alone: bool, kept: str = "") -> int:
    """kept: what the verb said when it was interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal shows ^C
    _say(f"polylm {verb}: interrupted{kept and '; '}{kept}.")
    if alone:
        os._exit(INTERRUPTED)  # threads of libraries may be at work, and would crash on the way out
    return INTERRUPTED


def _keep_no_interrupt(verb: str) -> None:
    """Ends the process where Python would drop a Ctrl-C that came while it collected garbage."""
    former = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            _interrupted(verb, alone=True)
        former(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _interrupted_at_once(verb: str) -> Iterator[None]:
    """Ends the process at Ctrl-C: a library that is half imported does not bear an exception."""

    def end(number: int, frame: FrameType | None) -> None:
        _interrupted(verb, alone=True)

    former = signal.getsignal(signal.SIGINT)
    ours = former is signal.default_int_handler  # else a shell has it ignored
    if ours:
        signal.signal(signal.SIGINT, end)
    yield
    if ours:
        signal.signal(signal.SIGINT, former)


def _without_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more; then nothing more goes there."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        gone = any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


if __name__ == "__main__":
    sys.exit(main())
