"""`python -m hf_dbmtl train config.yaml`, for `torchrun -m` and `accelerate launch -m`."""

from .cli import main


if __name__ == "__main__":
    main()
