"""Planners: what proposes the next action."""
