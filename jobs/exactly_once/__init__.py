"""The parts of the pipeline: the ledger, effects that happen once, the index that follows the ledger, and the audit."""
