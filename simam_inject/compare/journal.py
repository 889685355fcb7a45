"""Optuna's journal file, made safe against a worker that is killed, or a disk that is full, in the middle of a line."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from typing import Any

from optuna.storages.journal import JournalFileBackend


class Journal(JournalFileBackend):
    """A journal file whose last line is whole again before the next one is written.

    Optuna 5.0 appends to whatever is there: behind half a line a whole one becomes unreadable, and the file with it. It
    also waits 30 s for the lock of a worker that was killed, where this one's lock ends with its process. A network
    folder must honour `flock`, as NFS 4 does.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write all of the lines, or none and raise."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with open(self._file_path, "r+b", buffering=0) as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            end = 0
            if os.path.getsize(self._file_path):  # noqa: PTH202
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as written:
                    end = written.rfind(b"\n") + 1
            file.truncate(end)
            try:
                file.seek(end)
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
