"""How good a tracker is and what it costs: sequences with truth, metrics, arms side by side, rivals, reports."""
