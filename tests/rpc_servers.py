"""RPC servers on loopback for the tests: child processes that can be stopped, killed and started again."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Server:
    """One server; its port stays when it is started again.

    Args:
        memory: bytes of address space that it may have; None: no limit.
    """

    def __init__(self, memory: int | None = None):
        self.port, self._process, self._memory = 0, None, memory
        self.start()

    @property
    def device(self) -> str:
        return f"rpc://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "interp.cli", "rpc-server", "--port", str(self.port), "--threads", "1"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            preexec_fn=self._limit if self._memory else None,
        )  # fmt: skip
        line = self._process.stdout.readline()
        assert line.startswith("RPC server at 127.0.0.1:"), f"the server did not start: {line!r}"
        self.port = int(line.split(",")[0].rpartition(":")[2])

    def _limit(self) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (self._memory, self._memory))

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> int:
        """End it without a word, as a crash does; its exit status."""
        self._process.kill()
        return self._end()

    def _end(self) -> int:
        self._process.stdout.close()
        return self._process.wait()
