"""`python -m simam_inject` is `simam-inject`."""

from simam_inject.cli import main

if __name__ == "__main__":
    main()
