"""`python -m aiaas` is `aiaas`."""

from aiaas.cli.main import main

if __name__ == "__main__":
    main()
