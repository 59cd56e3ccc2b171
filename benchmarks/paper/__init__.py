"""The paper's tables and figures, run again at a chosen scale (`python -m benchmarks.paper`)."""
