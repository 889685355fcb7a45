"""Planning: turn hits into insertions with their edits, and skips with their reasons. Does not change the model."""
