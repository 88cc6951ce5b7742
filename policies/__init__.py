"""The policy language: load, check, decide and explain. Pure: facts and resolved paths are handed in."""
