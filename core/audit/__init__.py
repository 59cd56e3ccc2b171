"""Audits: what is planned, measured and joined, and whether it can be believed."""
