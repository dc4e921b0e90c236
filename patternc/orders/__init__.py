"""Token orders: positions as digits of a mixed-radix system, tiles as boxes of digits, found from the expression."""
