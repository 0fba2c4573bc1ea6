"""``python -m qskd`` is the ``qskd`` command."""

from qskd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
