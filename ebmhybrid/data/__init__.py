"""Images to train and test on: sets by name, splits, augmentation, and reference images."""

from ebmhybrid.data.augment import augment, batches, mixup
from ebmhybrid.data.order import batch_indices, count_batches
from ebmhybrid.data.reference import random_images, reference_images
from ebmhybrid.data.reference_families import FAMILIES
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.data.sources import data_names, load_set, load_splits
from ebmhybrid.data.splits import Splits, stratified_split
from ebmhybrid.data.streamed import StreamedSet

__all__ = [
    "FAMILIES",
    "ImageSet",
    "Splits",
    "StreamedSet",
    "augment",
    "batch_indices",
    "batches",
    "count_batches",
    "data_names",
    "load_set",
    "load_splits",
    "mixup",
    "random_images",
    "reference_images",
    "stratified_split",
]
