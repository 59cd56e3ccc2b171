"""What scores are worth: AP, intervals, groups, operation, worst case. Imports no torch."""
