"""The daemon over HTTP: API, live pictures and events, metrics, one page."""
