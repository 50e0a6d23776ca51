"""Runs and what they leave behind: recorded tracks, resumable sessions."""
