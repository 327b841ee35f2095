"""The words in which this host admits failure: codes from the closed list, texts that cannot carry a secret or a path."""

from __future__ import annotations

from typing import Final

from fabric.model.faults import FAULT_TEXT, FaultCode, as_fault_code

__all__ = ["FAULT_TEXT", "MAX_FAULT_TEXT", "FaultCode", "as_fault_code", "fault_text"]

MAX_FAULT_TEXT: Final = 512
"""Characters of a fault's text that a conductor accepts (security.md, section 5)."""


def fault_text(code: FaultCode, detail: str = "") -> str:
    """The fixed text of `code`, then `detail` (which must come from our own code, never from a guest or a library).

    What is not printable is replaced, and the whole cut at `MAX_FAULT_TEXT` characters.
    """
    text = f"{FAULT_TEXT[code]}: {detail}" if detail else FAULT_TEXT[code]
    return "".join(character if character.isprintable() else "?" for character in text)[:MAX_FAULT_TEXT]
