"""``python -m diffcert_ray``: the command line, where its script is not on the path."""

from diffcert_ray.commands.main import main

if __name__ == "__main__":
    main()
