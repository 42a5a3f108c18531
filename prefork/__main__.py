"""`python -m prefork` is the same program as the `prefork` command."""

from prefork.cli.main import main

if __name__ == "__main__":
    main()
