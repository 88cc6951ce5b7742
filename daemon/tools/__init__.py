"""Tools: what an action can do, each with its schema, effect class and probe."""
