"""Pillow with settings of our own while we decode, and with everybody's own settings before and afterwards."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType

from PIL import Image, ImageFile


class PillowSettings:
    """A context in which Pillow decodes as we want it, whatever another library has set in the same process.

    Cut files are errors (`LOAD_TRUNCATED_IMAGES` is off). Pillow has no limit of pixels of its own, since
    `PixelRules.max_pixels` is checked. Warnings are not shown but kept in the list that entering gives. The last one to
    leave puts everything back, so that threads may decode side by side.

    >>> with PillowSettings() as heard:
    ...     warnings.warn("Corrupt EXIF data", stacklevel=1)
    >>> [str(warning.message) for warning in heard]
    ['Corrupt EXIF data']
    """

    _lock = threading.Lock()
    _inside = 0
    _before: tuple[int | None, bool]
    _catcher: warnings.catch_warnings[list[warnings.WarningMessage]]
    _heard: list[warnings.WarningMessage]

    def __enter__(self) -> list[warnings.WarningMessage]:
        kind = type(self)
        with self._lock:
            if not kind._inside:
                kind._before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
                kind._catcher = warnings.catch_warnings(record=True)
                kind._heard = kind._catcher.__enter__()
                warnings.simplefilter("always")
            kind._inside += 1
            return kind._heard

    def __exit__(
        self, kind_of_error: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kind = type(self)
        with self._lock:
            kind._inside -= 1
            if not kind._inside:
                kind._catcher.__exit__(kind_of_error, error, trace)
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = kind._before
