"""A stage that trains: terms of weight x (data source, reward, gradient coefficient) move the model.

Gradient of one optimiser step: Σ over terms, answers and tokens of  weight · w · GC · ∇head.
Source: Shao et al. 2024, arXiv:2402.03300, section 5.2 and appendix A.1.
"""

from unified import StageContext, StageKind, StageResult, TrainSettings, hookimpl, training


def run(stage: StageContext, settings: TrainSettings) -> StageResult:
    """Train; the stage's folder gets `model/`, metrics.jsonl and samples.jsonl."""
    return training.train_stage(stage, settings)


@hookimpl
def unified_stages() -> list[StageKind]:
    """Offer training to recipes as `kind: train`, the default."""
    return [
        StageKind(
            "train",
            TrainSettings,
            run=run,
            uses=training.uses,
            makes=training.makes,
            check=training.check,
            work=training.work,
            measures=training.measures,
        ),
    ]
