"""Blobs of registries on this node: raw packs, fetched like layers' packs, read by the mirror's clients."""
