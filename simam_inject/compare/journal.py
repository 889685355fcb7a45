"""Optuna's journal file, made safe against a worker that is killed, or a disk that is full, in the middle of a line."""

from __future__ import annotations

import json
import os
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file


class Journal(JournalFileBackend):
    """A journal file whose last line is whole again before the next one is written.

    Optuna 5.0 appends to whatever is there: behind half a line, a whole one becomes unreadable, and the file with it.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write all of the lines, or none and raise."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(self._lock), open(self._file_path, "r+b", buffering=0) as file:  # noqa: PTH123
            end = _whole_lines(file)
            try:
                file.seek(end)
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise


def _whole_lines(file: Any) -> int:
    """Length of the file up to its last line break; what stands behind it is cut off."""
    size = file.seek(0, os.SEEK_END)
    end = size
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
