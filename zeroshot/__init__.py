"""Decide from words: classes known by radiology text alone. Nothing is public yet; only the guard is here."""

from __future__ import annotations

import importlib

__all__: list[str] = []


def _require_ours() -> None:
    """Other distributions install packages with these generic names too; say so at once, in one sentence."""
    for name in ("embeddings", "episodes"):
        module = importlib.import_module(name)
        if getattr(module, "__distribution__", None) != "radshot":
            raise ImportError(
                f"zeroshot needs radshot's own package '{name}', but Python found another one at "
                f"{getattr(module, '__file__', None) or 'an unknown place'}: uninstall the distribution that owns it, "
                f"then reinstall radshot."
            )


_require_ours()
