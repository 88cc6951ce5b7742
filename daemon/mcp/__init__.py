"""Tools from MCP servers, under the same policies, ledger and bounds as Perdure's own."""
