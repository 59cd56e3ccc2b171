"""The science: average precision, objectives, attacks, training, audits and their reports."""
