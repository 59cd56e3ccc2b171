"""The routes, a file a noun: parse, ask the store, answer."""
