"""The file itself: read without ever unpickling, written so that a crash leaves the old one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from simam_inject.errors import FileError
from simam_inject.persist.tables import Entry

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what `torch.save` and `pickle.dump` write."""
_SUFFIX = ".part"


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Names and shapes of a safetensors file's tensors, and its metadata.

    Raises:
        FileError: it cannot be read, is a pickle, truncated, or no safetensors file.
    """
    _check_first_bytes(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            table = {name: _entry_of(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            return table, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"it is truncated, damaged, or no safetensors file ({error})") from None


def _entry_of(shape: tuple[int, ...], dtype: str) -> Entry:
    """The entry of a tensor of which safetensors tells the dtype: F32, BF16, C64, I64, U8, BOOL, ..."""
    return Entry(shape, dtype.startswith(("F", "BF", "C")), dtype)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        FileError: it cannot be read any more.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"its tensors cannot be read ({error})") from None


def _check_first_bytes(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise FileError(f"it cannot be read: {error.strerror or error}") from None
    if start.startswith(_PICKLES):
        raise FileError(
            "it is a pickle (written by torch.save?), which can run any code when it is read, and is not read here; if "
            "you trust it, load it yourself, inject, and use simam_inject.persist.save"
        )
    if len(start) < 8 or int.from_bytes(start, "little") > size - 8:
        raise FileError(f"it is truncated, or no safetensors file ({size} bytes)")


def write_atomically(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside `path`, flush it to the disk, and put it in the place of `path` in one step.

    A crash, a kill or a full disk leaves what was at `path` before. A killed process leaves its unfinished file behind,
    named `.NAME.HOST.PID.RANDOM.part`; the next call for the same path on the same machine removes it.

    Raises:
        FileError: it cannot be written; what was at `path` is as it was.
    """
    target = path.resolve()  # a link stays a link
    unfinished = target.parent / f"{_stem(target)}{os.getpid()}.{secrets.token_hex(4)}{_SUFFIX}"
    try:
        content = serialize(dict(tensors), metadata)
        _remove_leftovers(target)
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, unfinished)
        unfinished.replace(target)
        _flush_folder(target.parent)
    except (SafetensorError, OSError, ValueError) as error:
        said = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise FileError(f"cannot write {path}: {said}; what was there before is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _stem(path: Path) -> str:
    """What the names of this machine's unfinished files for `path` start with."""
    return f".{path.name}.{zlib.crc32(socket.gethostname().encode()):08x}."


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes of this machine left."""
    if os.name != "posix":
        return  # elsewhere there is no harmless way to ask whether a process is alive
    stem = _stem(path)
    for entry in path.parent.iterdir():
        if entry.name.startswith(stem) and entry.name.endswith(_SUFFIX):
            process = entry.name.removeprefix(stem).partition(".")[0]
            if process.isdigit() and not _is_alive(int(process)):
                entry.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
