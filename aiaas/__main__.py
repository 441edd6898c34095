"""`python -m aiaas` is `aiaas`."""

from aiaas.cli.entry import main

if __name__ == "__main__":
    main()
