"""The list of shapes. It lives in the package because ``mmkern bench`` reads the same table."""

from mmkern.cases import CASES, Case, Ints, T

__all__ = ["CASES", "Case", "Ints", "T"]
