"""oss-tools: convert, requantize, run, score and compare open-weight language models on one machine."""

__version__ = "0.2.0"
