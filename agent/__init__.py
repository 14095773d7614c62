"""Per-node daemon: mounts layers lazily, fetches chunks, answers containerd."""
