"""Triton's language where Triton is installed; elsewhere what lets the kernels' files be imported, and nothing more."""

from __future__ import annotations

from typing import Any

__all__ = ["interpreted", "jit", "missing", "tl"]

missing: str | None = None
"""Why there is no Triton, if there is none."""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    missing, tl = f"{type(error).__name__}: {error}", None


def jit(function: Any) -> Any:
    """``triton.jit``. It reads ``TRITON_INTERPRET`` now, when a kernel's file is imported."""
    return function if missing else triton.jit(function)


def interpreted(kernel: Any) -> bool:
    """Whether Triton's interpreter runs a kernel: on the CPU, without a compiler."""
    return type(kernel).__name__ == "InterpretedFunction"
