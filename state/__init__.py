"""Durable state: the ledger, its projections, slots, actions, escalations, grants, ownership and backup."""
