"""Calibration to a tenant: statistics of their own speech, kept while they call, in place of those of training."""
