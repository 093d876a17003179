"""The dashboard: what a run is doing, in a browser. `collector` sees, `board` keeps, `server` shows."""
