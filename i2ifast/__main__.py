"""`python -m i2ifast` says what runs where on this machine."""

from ._report import report

print(report())
