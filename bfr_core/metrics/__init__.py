"""How good faces are: measures of pairs, of sets, their intervals, and networks that are optional."""
