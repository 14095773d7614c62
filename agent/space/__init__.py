"""What this node's disk holds and what may go: decided in `policy`, carried out by `keeper`."""
