"""A supernode's look at its own packs: a process that proves one, and who has it look and acts on what it says."""
