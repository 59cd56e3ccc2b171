"""Certified bounds: what no attack within a threat model can do to a logit, and so to the AP."""
