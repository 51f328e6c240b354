"""Runs `polylm` in processes that can be killed; they share the imports, which take the longest.

A line of JSON, {"out": FILE, "arguments": […]}, starts one, whose number is answered; a number
waits for that process and answers its exit status, minus the signal that ended it. Forked before
JAX has started, as later no fork may be.
"""

import json
import os
import sys

from polylm_jax.__main__ import main
from polylm_jax.evaluation.results import Store
from polylm_jax.parallel import hosts
from polylm_jax.verbs import module_of

hosts.LOST_AFTER = 10
keep = Store.add


def noted(store, answers):
    """Notes, before it is kept, that a batch is computed."""
    with open(asked["out"] + ".batches", "a") as file:
        file.write("one\n")
    keep(store, answers)


Store.add = noted
module_of("evaluate")
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        continue
    number = os.fork()
    if not number:
        out = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        os._exit(main(asked["arguments"]))
    print(number, flush=True)
