"""``Child``: a process that answers questions, one JSON line each, and that may die of one."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent


class Child:
    """Runs a script of this folder. Where it ends, the next question starts it again, so that hypothesis can shrink.

    Args:
        script: reads questions from stdin and writes an answer to each to stdout.
        patience: seconds that an answer may take.

    Attributes:
        deaths: how many questions it did not survive.
    """

    def __init__(self, script: str, patience: float = 120):
        self._script, self._patience = FOLDER / script, patience
        self._process: subprocess.Popen | None = None
        self._folder = tempfile.TemporaryDirectory()
        self.deaths = 0

    def _start(self) -> None:
        # a file: nobody empties a pipe while answers are waited for
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(self._script), self._folder.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            # an abort says why, without a stack of C functions
            env={"GGML_NO_BACKTRACE": "1", **os.environ},
        )  # fmt: skip

    def ask(self, question):
        """The answer; "DEAD …" where the process ended, "HANGS …" where it had to be ended."""
        if self._process is None:
            self._start()
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], self._patience)[0]:
            self._process.kill()
            return f"HANGS: no answer in {self._patience} s\n{self._died()}"
        answer = self._process.stdout.readline()
        return json.loads(answer) if answer else f"DEAD: {self._died()}"

    def _died(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()[-3000:]
        self._end()
        self.deaths += 1
        return f"exit status {status}\n{said}"

    def _end(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._process = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_exc) -> None:
        if self._process is not None:
            self._end()
        self._folder.cleanup()


def serve(answer) -> None:
    """What the script does: answers all questions with a function of them."""
    # whatever prints to stdout by itself must not stand between the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
