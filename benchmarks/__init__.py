"""Functions that return numbers; ``esvit-bench`` prints them."""
