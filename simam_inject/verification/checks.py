"""What `verify` returns: its checks, and what each of them found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from simam_inject.errors import shortened


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that verification looked at."""

    name: str
    ok: bool | None
    """None: it could not be run on this model; `detail` says why."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one verification."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No check failed."""
        return all(check.ok is not False for check in self.checks)

    def __str__(self) -> str:
        passed = sum(check.ok is True for check in self.checks)
        head = f"verified: {passed} checks" if self.ok else "verification failed"
        words = {True: "ok", False: "failed", None: "not run"}
        lines = [
            f"  {words[check.ok]}: {check.name}" + f": {check.detail}" * bool(check.detail)
            for check in self.checks
            if check.ok is not True
        ]
        return "\n".join([head, *lines])


def unless(problems: Iterable[str], check: Check) -> Check:
    """The check, failed if there are problems."""
    found = shortened([*problems], joint="; ")
    return Check(check.name, False, found) if found else check
