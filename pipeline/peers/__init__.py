"""What the programs of a site agree on: who they are, how they speak to each other, and what they say and promise."""
