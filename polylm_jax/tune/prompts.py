"""What a writer is asked: to go on with a list of tasks, or to translate a seed.

The first says what the paper's prompt says (Table 6), in our words: how varied the tasks shall be,
the language, lengths, and the form in which they come back.
"""

from collections.abc import Sequence

from polylm_jax.tune.parse import Task

NOTHING = "<noinput>"


def of_tasks(language: str, demonstrations: Sequence[Task], total: int) -> str:
    """Asks for a list of `total` tasks, the first of which are the demonstrations.

    language: its English name.
    """
    shown = len(demonstrations)
    return "\n\n".join(
        [
            f"Below is the beginning of a list of {total} tasks for a language model. Write the "
            f"other {total - shown}, numbers {shown + 1} to {total}, in the same form.",
            "\n".join(
                [
                    f"- Everything is in {language}, unless the task is about another language.",
                    "- No two tasks begin with the same verb or ask for the same thing.",
                    "- Some instructions are questions, others are requests.",
                    "- Mix the kinds: open questions, classification, rewriting, summaries, "
                    "arithmetic, planning, stories, letters, code and others.",
                    "- A model that only reads and writes text can do each task: nothing to see, "
                    "hear, draw, open or look up, and no links.",
                    "- An instruction has one or two sentences.",
                    "- An input is a real example that the task works on, of up to 100 words, and "
                    f"no placeholder; where a task needs none, write {NOTHING}.",
                    "- An output answers the task well, in fewer than 200 words.",
                ]
            ),
            *(_numbered(number, task) for number, task in enumerate(demonstrations, 1)),
        ]
    )


def of_translation(language: str, task: Task) -> str:
    """Asks for a task in another language, in the same form."""
    return "\n\n".join(
        [
            f"Translate this task into {language}, as a native speaker would write it. Keep the "
            "number, the three English headers and everything in angle brackets as they are, and "
            "write nothing else.",
            _numbered(1, task),
        ]
    )


def _numbered(number: int, task: Task) -> str:
    return (
        f"{number}. Instruction: {task.instruction}\n"
        f"{number}. Input: {NOTHING if task.input is None else task.input}\n"
        f"{number}. Output: {task.output}"
    )
