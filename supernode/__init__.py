"""Per-datacenter daemon: reads the registry once, converts layers to packs, serves chunks."""
