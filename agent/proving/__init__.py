"""This node's look at its packs: the process that proves one, who has it look, and when."""
