"""Who may have what a supernode has: the registry's word for each client, and proof that a registry has it at all."""
