"""Optuna's journal file, made safe against a worker that is killed, or a disk that is full, in the middle of a line."""

from __future__ import annotations

import fcntl
import json
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
            end = _cut_half_line(file)
            try:
                file.seek(end)
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise


def _cut_half_line(file: Any) -> int:
    """Cut off what stands behind the last line break; the length that is left."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        last = file.read(end - start).rfind(b"\n")
        if last >= 0:
            end = start + last + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    return int(end)
