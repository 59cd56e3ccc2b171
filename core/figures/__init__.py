"""Figures computed from scores: AP, intervals, groups, operation, worst case. Imports no torch."""
