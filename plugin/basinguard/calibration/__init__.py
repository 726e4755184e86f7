"""From measurements to a promise: which rule, and which strength, keeps the risk at most alpha."""
