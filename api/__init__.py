"""The HTTP service: validates, writes rows, rings. Imports no torch."""
