"""Install, or name, the browser that the robot's page is tried in; about 90 MB to load."""

import shutil

from ensure_gl import install


def main() -> None:
    """Where there is no Chromium, get it."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        install("chromium", "No Chromium: the tests of the robot's page are left out.")


if __name__ == "__main__":
    main()
