"""Networks, and the only place where somebody else's weights are opened."""
