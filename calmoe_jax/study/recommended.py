"""The recipe that we recommend: routing, objective and calibrator.

It was chosen by `experiments.our_study` (see the page there), before the figures that reports print
of it: of what needs no label of the target, the least calibration error under shift that costs
neither accuracy nor calibration in distribution.
"""

from typing import NamedTuple

from calmoe_jax.routing.kinds import RoutingKind


class Recipe(NamedTuple):
    """What to train, and what to do after it.

    Attributes:
        method: name among `METHODS`.
        routing: routing kind of training and prediction.
        calibrator: name of the calibrator that is applied to a split.
    """

    method: str
    routing: RoutingKind
    calibrator: str


RECOMMENDED = Recipe("vanilla", "dense", "safe")
