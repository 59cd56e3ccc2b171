"""What a model file says about itself, read without torch and without touching its weights.

A model is a safetensors file and a manifest: the architecture that the tensors belong to, and how
images become its input. The manifest may travel inside the file, under the metadata key `adap`.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

MANIFEST_KEY = "adap"


class InputSpec(BaseModel):
    """How images in [0, 1] become the network's input: (x - mean) / std, channel by channel."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    channels: int = Field(ge=1, le=4)
    height: int = Field(ge=1, le=1024)
    width: int = Field(ge=1, le=1024)
    mean: list[float] = Field(description="one value a channel", examples=[[0.485, 0.456, 0.406]])
    std: list[float] = Field(description="one value a channel", examples=[[0.229, 0.224, 0.225]])

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> "InputSpec":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"expected {self.channels} values in {name}, one a channel, got {len(values)}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"expected std above 0, got {self.std}")
        return self


class Manifest(BaseModel):
    """Everything that loading a model's tensors needs, and where the model comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    architecture: str = Field(max_length=64)
    input: InputSpec
    positive: list[str] | None = Field(
        None, description="classes that the model was trained to rank first, where known"
    )
    training: dict[str, Any] | None = Field(
        None, description="how the service trained it: configuration and figures"
    )
