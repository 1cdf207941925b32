"""The hash by which two backends show that they were asked the same tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def hash_ids(tokens: Sequence[int]) -> str:
    """SHA-256 of token ids, each as a decimal followed by a space."""
    return hashlib.sha256("".join(f"{token} " for token in tokens).encode()).hexdigest()
