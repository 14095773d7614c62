"""Blobs as registries have them: read once, kept as raw packs, handed out while they arrive."""
