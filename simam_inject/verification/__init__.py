"""Verification: nothing else changed, and every SimAM is live. Leaves the model as found."""

from simam_inject.verification.verifier import bypassed as bypassed
from simam_inject.verification.verifier import check_model as check_model
from simam_inject.verification.verifier import tensor_marks as tensor_marks

__all__ = ["bypassed", "check_model", "tensor_marks"]
