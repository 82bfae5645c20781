"""A job must come out the same, whatever is killed: ``make chaos``, and a short version in the tests."""
