"""Hashes of large arrays, computed at the speed of memory."""
