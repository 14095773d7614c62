"""The registry mirror of a node: what clients that know nothing of layers on demand pull through."""
