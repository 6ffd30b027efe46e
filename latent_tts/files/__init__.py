"""Files that are there whole or not at all, and folders that one run at a time works in."""
