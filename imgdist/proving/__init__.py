"""Proving that packs are what their layers convert to: the proof, the process that makes it, and who waits for it."""
