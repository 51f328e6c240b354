"""Answer over HTTP in OpenAI's forms, many at once, with a page to talk in and to see the run."""

import argparse
import os
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.files import existing
from polylm_jax.ranges import Range
from polylm_jax.verbs import number
from polylm_jax.verbs.model_of import for_decoding, model_of, open_engine

PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; another than this machine's own needs a key",
    )
    parser.add_argument(
        "--port",
        type=number("--port", Annotated[int, Range(0, 65_535)]),
        default=8000,
        help="0 takes one that is free",
    )
    parser.add_argument("--int8", action="store_true", help="weights of one byte")
    parser.add_argument(
        "--page_only",
        action="store_true",
        help="the page of a run alone, such as of one that trains; no model is read",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    try:
        from polylm_jax.serve import http, server, story
        from polylm_jax.serve.access import check_host, read_key
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise UserError(
            f'serving needs {error.name}; pip install "polylm_jax[serve]" and run it again.'
        ) from None
    settings, name = config.get("serve"), called(given.run)
    key, told = read_key(settings), story.told_often(given.run)
    check_host(given.host, key, settings)
    # the port is ours before the long work, and opens after it
    listening = server.bind(given.host, given.port)
    host = f"[{given.host}]" if ":" in given.host else given.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    locked = "with the key" if key else "for this machine alone"
    if given.page_only:
        app = http.make_app(None, key, settings.origins, told, name)
        server.serve(app, None, listening, 0, f"The page of {given.run} is {url}, {locked}.")
        return
    with model_of(given) as model:
        model, settings = for_decoding(model, given.int8), config.get("serve")
        engine = open_engine(model, settings)
        most = engine.slots + settings.queue
        served = http.Served(name, model.tokenizer, engine.context, config.get("chat"), most)
        desk = http.Desk(served, engine)
        app = http.make_app(desk, key, settings.origins, told, name)
        said = (
            f"Step {model.step} of {given.run} answers at {url}/v1, {engine.slots} at a time, "
            f"{locked}; its page is {url}. Ctrl-C stops."
        )
        server.serve(app, desk, listening, settings.drain_seconds, said)


def called(run: str) -> str:
    """What the model is called: as the run's folder is, whatever way leads there."""
    path = run if "://" in run else os.path.abspath(run)
    return os.fsencode(PurePosixPath(path).name).decode(errors="replace") or "model"
