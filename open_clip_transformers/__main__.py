"""`python -m open_clip_transformers`: the command line."""

from .cli import main


if __name__ == "__main__":
    main()
