"""Planners propose the next action: a playbook's steps, or a model."""
