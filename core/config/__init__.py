"""Requests and their configurations, each a frozen class with bounds.

One class is the body of the HTTP call, the JSON column of the job and the argument of the pipeline.

Every field has a bound and a description, unknown fields are refused, and nothing is coerced: a
string is never read as a number, but for fractions of pixels. This package imports no torch, so the
web process can use it.

Pixels are in [0, 1] everywhere, and so are `epsilon` and `step_size`: 0.0314, or "8/255".
"""
