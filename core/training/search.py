"""The next trial of a search, by Optuna's tree-structured Parzen estimator.

No study is kept: each time it is made again from the trials that have ended, so that whoever is at
hand can ask. The answer depends on the search, the trial's number and those trials alone.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adap.core.training.sweeps import Outcome, Parameters, Range, Search

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def suggest(search: Search, *, number: int, seen: Sequence[Outcome]) -> Parameters:
    """Parameters for the trial of this number, after what became of the trials seen.

    Trials without the AP that is sought, as they failed or were cancelled, teach nothing.
    """
    import optuna  # a quarter of a second: only where a search is run

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {path: _distribution(values) for path, values in search.parameters.items()}
    sought = ("robust_ap", "clean_ap") if search.maximise == "both" else (search.maximise,)
    (seed,) = np.random.SeedSequence((search.seed, number)).generate_state(1)
    study = optuna.create_study(
        directions=["maximize"] * len(sought), sampler=optuna.samplers.TPESampler(seed=int(seed))
    )
    for trial in sorted(seen, key=lambda trial: trial.number):
        figures = [getattr(trial, name) for name in sought]
        if None not in figures:
            study.add_trial(
                optuna.trial.create_trial(
                    params=_internal(search, trial.parameters),
                    distributions=space,
                    values=figures,
                )
            )
    asked = study.ask(space)
    return {
        path: asked.params[path] if isinstance(values, Range) else values[asked.params[path]]
        for path, values in search.parameters.items()
    }


def _distribution(values: Range | Sequence[Any]) -> "BaseDistribution":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not isinstance(values, Range):
        return CategoricalDistribution(range(len(values)))  # values may be lists and dicts
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _internal(search: Search, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as the study knows them: values of a list by their place."""
    return {
        path: parameters[path] if isinstance(values, Range) else values.index(parameters[path])
        for path, values in search.parameters.items()
    }
