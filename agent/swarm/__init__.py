"""Nodes as sources for each other: whom to ask for which chunk, and the links to neighbours."""
