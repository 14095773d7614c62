"""Who takes part in which swarm: told by agents over WebSockets, kept in memory, rebuilt when they join again."""
