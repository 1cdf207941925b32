"""What a study would ask, take and be able to show, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.artifacts.inspect import inspect_artifact
from quantverdict.artifacts.sources import resolve
from quantverdict.asking import open_file, stored_builds
from quantverdict.collect.manifest import RENDERED, Bundle
from quantverdict.collect.prompts import Plan, make_plan
from quantverdict.collect.schedule import read_outcomes
from quantverdict.collect.store import read_responses, responses_path
from quantverdict.config import Study
from quantverdict.costing import Spent, scoring_costs, spent_on
from quantverdict.policy import Policy
from quantverdict.stages import samples_of

if TYPE_CHECKING:
    from quantverdict.collect.estimate import Speed, StudyEstimate
    from quantverdict.collect.prospects import Gating, Observed
    from quantverdict.tasks.catalog import Task


def forecast(study: Study, tasks: Sequence[Task], earlier: Path | None, *, measure: bool) -> StudyEstimate:
    """What a study would ask, take and be able to show.

    Args:
        earlier: a bundle whose tokens, speed and discordance are taken; None to time a short batch instead.
        measure: time that batch; without it the time is not known.
    """
    from quantverdict.collect import estimate as estimates
    from quantverdict.collect.prospects import prospects

    model = study.models[0]
    source = model.source or model.variants[0].source
    path = resolve(source, study.folder) if source and study.collect.backend == "llamacpp" else None
    file = None if path is None else inspect_artifact(path)
    asked = make_plan(
        study, tasks, file.chat_template if file else None, file.special_tokens if file else {}, model.name
    )
    observed: dict[str, Observed] = {}
    spent = Spent()
    # All of them: which builds are duplicates only this study's own files can tell, once they are made.
    builds = sum(len(each.variants) - 1 for each in study.models)
    if earlier is not None:
        with Bundle.reopen(earlier) as bundle:
            bundle.refuse_differing((*RENDERED, "timings/"))
            speed, observed = speed_of(bundle, asked), pairs_seen(bundle, study.policy)
            spent = spent_on(bundle, study)
    elif measure and path is not None:
        speed = estimates.measured_speed(asked, partial(open_file, study, path))
    else:
        speed = estimates.Speed({}, None, "no measurement; answers are taken to reach their limit")
    estimated = estimates.estimate(
        tasks,
        asked,
        speed,
        cells=builds + len(study.models) * (1 + study.nulls),
        disk_bytes=estimates.made_bytes(study),
        shows=(
            estimates.detectable_differences(tasks, study.statistics.power, observed),
            prospects(tasks, gating(study, builds), observed),
        ),
    )
    return replace(estimated, scoring=scoring_costs(study, tasks, asked, speed, spent))


def gating(study: Study, builds: int) -> Gating:
    """What the outcomes of `builds` builds, baselines not counted, would be decided by."""
    from quantverdict.collect.prospects import Gating
    from quantverdict.collect.rounds import SEQUENTIAL_SHARE
    from quantverdict.matrix.columns import METRICS

    policy = study.policy
    # Looking early has a share of alpha; what is left is the least that a build's tests have.
    share = 1 - SEQUENTIAL_SHARE if study.stopping == "sequential" else 1.0
    return Gating(
        margins={metric: float(margin / 100) for metric, margin in policy.gates.items()},
        means=[metric for metric in policy.gates if not METRICS[metric].proportion],
        builds=builds,
        required=policy.demanded if policy.rules == "paired" else (),
        alpha=policy.alpha / 2 * share,
        power=study.statistics.power,
    )


def speed_of(bundle: Bundle, asked: Plan) -> Speed:
    """Speed and answer lengths of an earlier run, for what will be asked."""
    from quantverdict.collect.estimate import speed_of_run

    outcomes = read_outcomes(bundle)
    baseline = next((b.cell for b in stored_builds(bundle) if b.is_baseline and b.cell in outcomes), None)
    answers = () if baseline is None else read_responses(responses_path(bundle.root, baseline))
    return speed_of_run(outcomes.values(), answers, asked)


def pairs_seen(bundle: Bundle, policy: Policy) -> dict[str, Observed]:
    """Of each share of an earlier run: how its builds' answers differ from those of their baselines."""
    from quantverdict.matrix.observed import observed_pairs

    builds, samples = stored_builds(bundle), samples_of(bundle)
    bases = {build.cell.base_model: build.cell for build in builds if build.is_baseline}
    compared = [build.cell for build in builds if not (build.is_baseline or build.null)]
    return observed_pairs(samples or {}, {cell: bases[cell.base_model] for cell in compared}, policy.alpha / 2)
