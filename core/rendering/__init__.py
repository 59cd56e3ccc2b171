"""Reports for readers: HTML page, charts, card, JUnit."""
