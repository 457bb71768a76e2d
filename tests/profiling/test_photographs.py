from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from esvit_pl.profiling.photographs import photograph, photographs_in_a_folder


def test_photographs_are_jpegs_that_the_seed_determines():
    image = Image.open(BytesIO(photograph(3, (30, 40))))
    assert (image.format, image.size, image.mode) == ("JPEG", (40, 30), "RGB")
    assert photograph(3, (30, 40)) == photograph(3, (30, 40)) != photograph(4, (30, 40))
    assert np.asarray(image).std() > 20


def test_the_folder_is_there_as_long_as_it_is_needed():
    with photographs_in_a_folder(2, (8, 10)) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "1.jpg"]
    assert not folder.exists()
