"""How much work checking a value takes, bounded before it is done.

JSON Schema validators and pydantic try the members of a union one after the other. Where a member leads back to
the union, each level of a value multiplies the work: 24 levels in 300 bytes of JSON take hours and hold the
interpreter meanwhile. A time-out cannot end that, so the work is bounded beforehand, in operations:

- `graph` has what both kinds of checks have in common, and two bounds for it: a static one, computed once, which
  is enough for nearly every record, and the price of one value, by dynamic programming over (check, value) pairs;
- `schema` makes the graph of a JSON Schema, and `flowpilot.authoring.bounds` that of a pydantic type;
- `patterns` says what a regular expression costs for each character.

Both bounds assume that every branch is tried. They are deterministic: the same record is refused by every
process, however busy it is.
"""
