"""The production loop in virtual time, over fakes, with faults and checkers."""
