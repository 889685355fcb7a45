"""Verification: nothing else changed, and every SimAM is live. Leaves the model as found."""

from simam_inject.verification.verifier import check_model as check_model

__all__ = ["check_model"]
