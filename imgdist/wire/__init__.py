"""What the processes of imgdist say to each other: addresses, control messages, chunk bodies."""
