"""Memory derived from the ledger: records, facts, summaries, recall and budgeted context."""
