"""`python -m caudal.cli`: the same as `caudal`."""

from caudal.cli import main

if __name__ == "__main__":
    main()
