"""How strongly a prompt pulls at every point of a trajectory: the rules, and the engine that applies them."""
