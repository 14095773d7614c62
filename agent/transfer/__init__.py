"""How a layer's bytes come onto this node: what to fetch next (policy), from whom, and landing it verified."""
