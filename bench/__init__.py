"""Benchmarks: poolkeeper and its peers, side by side in one run.

``python -m bench`` runs them, each measurement in a fresh interpreter, the peers interleaved.
"""
