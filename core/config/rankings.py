"""A ranking of the images of a data set by a model."""

from pydantic import ConfigDict, Field

from adap.core.config.audits import OtherPositive
from adap.core.config.base import Config, Identifier, Split
from adap.core.config.data import Task


class RankingRequest(Config):
    """`POST /v1/rankings`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_id": "mdl_01k9x2v7m3c5r8t1w4z6y0b2d4",
                    "dataset_id": "ds_01k9x2v7m3c5r8t1w4z6y0b2d4",
                }
            ]
        }
    )

    model_id: Identifier
    dataset_id: Identifier
    split: Split | None = Field(
        None, description="by default the test split where there is one, else every example"
    )
    task: Task | None = Field(
        None,
        description="which examples are shown as positive; needed by a model with a logit for each "
        "class, which ranks these classes first",
    )
    other_positive: OtherPositive = False
    batch_size: int = Field(256, ge=1, le=4096)
