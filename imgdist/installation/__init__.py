"""Putting imgdist on a node and taking it off again: files, containerd's configuration, what the kernel holds."""
