"""The side of the OCI distribution specification 1.1 that answers: what supernode and agent have in common of it."""
