"""Solved problems with new numbers: a question's numbers tied to its equations, drawn anew."""
