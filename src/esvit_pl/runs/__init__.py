"""What a run leaves behind: its folder, its results, its pictures, and tables of many runs."""
