"""Perdure: a long-running agent daemon with bounded sessions, budgeted memory, policy files and an auditable ledger."""

from perdure.errors import PerdureError, Problem, Problems

__all__ = ["PerdureError", "Problem", "Problems", "__version__"]
__version__ = "0.1.0"
