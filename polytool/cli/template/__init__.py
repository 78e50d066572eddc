"""Write starting points for one's own scripts."""
