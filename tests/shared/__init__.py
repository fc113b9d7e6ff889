"""Tests of plait.shared."""
