"""A test set named by itself: it must have the classes of the train set, and other images."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from ebmhybrid.data.sets import ImageSet
from ebmhybrid.data.streamed import StreamedSet
from ebmhybrid.errors import DataError

SAMPLE = 1000  # pictures of a streamed test set that are looked for among the training pictures
REPEATED = 0.01  # the share of stray duplicates that is let pass


def with_classes_of(train: ImageSet, test: ImageSet) -> ImageSet:
    """The test set under the train set's class names: the same in the same order, or as many plain numbers.

    Raises:
        DataError: other classes.
    """
    if test.num_classes > train.num_classes:
        raise DataError(f"{test.name}: has {test.num_classes} classes, the train set {train.name} {train.num_classes}")
    same = test.classes == train.classes[: test.num_classes]
    one_is_numbered = all(map(str.isdecimal, test.classes)) != all(map(str.isdecimal, train.classes))
    if not same and not (one_is_numbered and test.num_classes == train.num_classes):
        raise DataError(
            f"{test.name}: its classes ({', '.join(test.classes[:5])}, ...) are not those of the train set "
            f"{train.name} ({', '.join(train.classes[:5])}, ...)"
        )
    return replace(test, classes=train.classes)


def unseen(test: ImageSet, whole: ImageSet) -> ImageSet:
    """The test set, when it holds nothing that is trained or validated on; a stray duplicate is let pass.

    Of sets in memory the images are compared, of two streamed sets the files' bytes, of at most 1000 of the test
    pictures. A streamed set is not compared with one in memory, which a note says.

    Raises:
        DataError: more than 1 % of the test images are in the other set.
    """
    streamed = [isinstance(images, StreamedSet) for images in (test, whole)]
    if streamed[0] != streamed[1]:
        return test.noted(f"not compared with the images of {whole.name}")
    looked_at = test.take(SAMPLE) if streamed[0] else test
    if isinstance(looked_at, StreamedSet) and isinstance(whole, StreamedSet):
        repeated = _repeated_files(looked_at, whole)
    elif test.shape == whole.shape:
        seen = {image.numpy().tobytes() for image in whole.images}
        repeated = sum(image.numpy().tobytes() in seen for image in test.images)
    else:
        return test
    if repeated > REPEATED * len(looked_at):
        raise DataError(
            f"{test.name}: {repeated} of its {len(looked_at)} images are also in {whole.name}, which is trained and "
            "validated on"
        )
    return test


def _repeated_files(test: StreamedSet, whole: StreamedSet) -> int:
    """How many files of the one are in the other; only files of the same size are read."""
    wanted = test.pictures.sizes[test.rows]
    candidates = whole.rows[np.isin(whole.pictures.sizes[whole.rows], wanted)]
    seen = {_hashed(whole, int(row)) for row in candidates}
    return sum(_hashed(test, int(row)) in seen for row in test.rows)


def _hashed(images: StreamedSet, row: int) -> bytes:
    try:
        with images.pictures.open(row) as file:
            return hashlib.sha256(file.read()).digest()
    except OSError as error:
        raise DataError(f"{images.pictures.place(row)}: cannot be read ({error.strerror})") from error
