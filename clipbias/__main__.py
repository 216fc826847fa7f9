"""`python -m clipbias`, the same as `clipbias`."""

from clipbias.cli import main

if __name__ == "__main__":
    main()
