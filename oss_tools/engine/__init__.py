"""Runs a model: loads its weights, keeps its KV cache, batches, shares prefixes, samples, streams tokens."""
