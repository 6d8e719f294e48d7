"""Studies that need more than one service: what a context policy and a depth cost, and what they give."""
