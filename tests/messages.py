"""What a message must say, without its wording."""

import re


def says(*facts: str) -> str:
    """A pattern for `match=`: every fact is in the message, in any order, on any line."""
    return "(?s)\\A" + "".join(f"(?=.*{re.escape(fact)})" for fact in facts)
