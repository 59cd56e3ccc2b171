"""Common corruptions: what happens to images without an attacker, at five severities."""
