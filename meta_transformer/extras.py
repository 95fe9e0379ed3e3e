"""Packages that only some users need, and the extras that bring them."""

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["needs"]


@contextmanager
def needs(package: str, extra: str) -> Generator[None]:
    """Name the extra that brings a package, where its import fails, with `ImportError`.

    Args:
        package: Its name, and what it is needed for, such as `"soundfile to read audio files"`.
        extra: Of this package.
    """
    try:
        yield
    except (ImportError, OSError) as error:  # OSError: the package is there, but its libraries are not, or do not fit
        raise ImportError(f'This needs {package}: pip install "meta_transformer[{extra}]"') from error
