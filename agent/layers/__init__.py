"""Layers on a node: loop devices, mounts, and the small directories that mend implied attributes."""
