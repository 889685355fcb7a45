"""Matching: recipe and anatomy -> hits and near misses. No torch, no model."""
