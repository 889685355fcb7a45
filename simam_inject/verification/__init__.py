"""Verification: only the planned sites changed, and every SimAM is live. Does not change the model."""

from simam_inject.verification.checks import tensor_marks as tensor_marks
from simam_inject.verification.verifier import SAME_WAY as SAME_WAY
from simam_inject.verification.verifier import check_model as check_model
