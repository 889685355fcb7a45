"""Verification: only the planned sites changed, and every SimAM is live. Does not change the model."""
