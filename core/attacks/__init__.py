"""Attacks: what an attacker may do to an image, and how the worst of it is searched for."""
