"""``python -m adapters_pl`` is the same as ``adapters-pl``."""

from adapters_pl.cli.main import console

if __name__ == "__main__":
    console()
