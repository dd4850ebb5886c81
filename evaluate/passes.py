"""The clean part of an evaluation: one forward pass over each set, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .cache import PredictionCache
from .detectors import needs_of
from .features import head_of
from .on_predictions import of_predictions
from .predictions import ImageSet, Model, Predictions, Progress, predict, set_name
from .scores import MODEL_SCORES, model_score


@dataclass(frozen=True)
class Passes:
    """A model's passes over sets.

    Arguments:
        names: the scores that are wanted.
        limit: at most so many images of each set.
        cache: keeps predictions for the next evaluation.
    """

    model: Model
    names: Sequence[str]
    limit: int | None = None
    device: torch.device | str | None = None
    progress: Progress | None = None
    cache: PredictionCache | None = None

    def over(self, data: ImageSet, name: str | None = None, labelled: bool = True) -> Predictions:
        """The set's predictions, with features where a score needs them."""
        look = predict if self.cache is None else self.cache.predict
        options: dict[str, Any] = {"limit": self.limit, "features": "features" in needs_of(self.names)}
        return look(self.model, data, self.device, self.progress, name=name, labelled=labelled, **options)

    def scores(self, data: ImageSet, name: str) -> dict[str, np.ndarray]:
        """The wanted scores that take the images themselves, as norms of gradients do."""
        wanted = [score for score in self.names if score in MODEL_SCORES]
        options: dict[str, Any] = {"name": name, "limit": self.limit}
        return {one: model_score(self.model, data, one, self.device, self.progress, **options) for one in wanted}

    def results(
        self,
        asked: Sequence[str],
        test_set: ImageSet,
        test: Predictions,
        *,
        validation: ImageSet | None,
        train_set: ImageSet | None,
        ood_sets: Mapping[str, ImageSet],
        id_side: ImageSet | None,
        calibration: bool,
        groups: Mapping[str, str] | None,
    ) -> dict[str, Any]:
        """The parts of a `SuiteResult` that need no attack; `test` holds the test set's predictions.

        The validation and the training set are passed over only where a figure is fitted on them.
        """
        needs = needs_of(self.names)
        fitting = validation is not None and (calibration or "validation" in needs)
        strangers = {name: self.over(data, name, labelled=False) for name, data in ood_sets.items()}
        return of_predictions(
            test,
            self.over(validation) if fitting and validation is not None else None,
            self.over(train_set) if train_set is not None and "train" in needs else None,
            strangers,
            head_of(self.model) if "head" in needs else None,
            asked,
            id_side=None if id_side is None else self.over(id_side, labelled=False),
            test_images=self.scores(test_set, test.name),
            id_images=None if id_side is None else self.scores(id_side, set_name(id_side)),
            ood_images={name: self.scores(data, name) for name, data in ood_sets.items()},
            calibration=calibration,
            groups=groups,
        )
