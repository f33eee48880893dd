"""What is evidence and what is noise: intervals, paired tests and corrections. All intervals are of 95 %."""
