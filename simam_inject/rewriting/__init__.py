"""Rewriting: the only stage that changes a model. Every edited module gets a subclass of its own class."""
