"""Runs and what they leave behind: recorded tracks, resumable sessions, and the daemon that follows many streams."""
