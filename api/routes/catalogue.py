"""The catalogue: methods, attacks, architectures, with JSON schemas of their parameters."""

from typing import Any, get_args

from fastapi import APIRouter

from adap.api.deps import Reader
from adap.api.errors import problems
from adap.api.guarded import GuardedRoute
from adap.api.schemas import CatalogueEntry
from adap.core import presets
from adap.core.config.attacks import Attack
from adap.core.config.base import Config
from adap.core.config.methods import Method
from adap.models import catalogue

router = APIRouter(prefix="/v1", tags=["catalogue"], route_class=GuardedRoute)


@router.get("/methods", responses=problems())
def list_methods(_caller: Reader) -> list[CatalogueEntry]:
    """The training methods."""
    return _entries(Method)


@router.get("/attacks", responses=problems())
def list_attacks(_caller: Reader) -> list[CatalogueEntry]:
    """The attacks."""
    return _entries(Attack)


@router.get("/presets", responses=problems())
def list_presets(_caller: Reader) -> list[CatalogueEntry]:
    """The presets of a training: what its fields are where they are left out."""
    return [
        CatalogueEntry(name=name, description=presets.DESCRIPTIONS[name], parameters=values)
        for name, values in presets.TRAINING_PRESETS.items()
    ]


@router.get("/architectures", responses=problems())
def list_architectures(_caller: Reader) -> list[catalogue.ArchitectureInfo]:
    """The networks that can be trained, or that uploaded weights can belong to."""
    return list(catalogue.ARCHITECTURES.values())


def _entries(union: Any) -> list[CatalogueEntry]:
    """One entry a member of an annotated union of configurations."""
    members: tuple[type[Config], ...] = get_args(get_args(union)[0])
    return [
        CatalogueEntry(
            name=str(member.model_fields["name"].default),
            description=(member.__doc__ or "").strip(),
            parameters=member.model_json_schema(),
        )
        for member in members
    ]
