"""The supernode as a pull-through registry, for agents' mirrors and for any client that reaches it."""
