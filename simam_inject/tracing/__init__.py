"""Tracing: one example forward, then one `torch.fx` graph per module with children."""
