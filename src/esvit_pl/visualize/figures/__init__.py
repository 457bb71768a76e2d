"""Figures of a run, one kind a file. The only room that knows matplotlib; it opens no window and keeps no state."""
