"""Benchmarks: `python -m bench NAME`. Each measures what the design promises and says whether it holds."""

from __future__ import annotations
