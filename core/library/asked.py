"""What is asked of an audit in one's own process, from arguments as people write them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from adap.core.config.attacks import Attack, NoiseAttack, SquareAttack, TransferAttack
from adap.core.config.audits import AuditConfig, Surrogate
from adap.core.errors import ConfigError, ModelError
from adap.core.library.attacks import attack_of, columns_of, refuse_blind
from adap.core.library.examples import listed
from adap.core.library.rankers import hash_of_network
from adap.core.library.refusals import configured
from adap.core.statement import Statement


def configuration(
    fields: Mapping[str, Any],
    *,
    gradients: bool,
    attacks: Sequence[Any] | Any | None,
    surrogate: nn.Module | None,
    corruptions: Sequence[str] | str | None,
    severities: Sequence[int] | None,
) -> AuditConfig:
    """The configuration of these fields, and of arguments that are no fields of it as they are.

    gradients: whether the model gives any; one that gives none is attacked without, and has no
    bounds. Raises ConfigError or ModelError for what cannot be asked of such a model.
    """
    if surrogate is not None and not isinstance(surrogate, nn.Module):
        raise ModelError(
            "expected a surrogate with gradients, an nn.Module, got "
            f"{type(surrogate).__name__}: the transfer attack follows them"
        )
    asked = {**fields, "attacks": _attacks(attacks, surrogate, gradients=gradients)}
    if not gradients:
        if fields["certify"] not in ("auto", "off") or fields["epsilons"]:
            raise ConfigError(
                "expected no epsilons and no bounds for a function, which gives no gradients, got "
                f"epsilons={fields['epsilons']!r} and certify={fields['certify']!r}"
            )
        asked["certify"] = "off"
    if corruptions is None and severities is not None:
        raise ConfigError(f"expected severities= beside corruptions=, got {severities!r} alone")
    if corruptions is not None:
        kinds = [corruptions] if isinstance(corruptions, str) else list(corruptions)
        asked["corruptions"] = {
            **({} if kinds == ["all"] else {"kinds": kinds}),
            **({} if severities is None else {"severities": [int(each) for each in severities]}),
        }
    if surrogate is not None:
        asked["surrogate"] = Surrogate(model_id="mdl_" + hash_of_network(surrogate)[:26])
    return configured(AuditConfig, asked)


def _attacks(
    attacks: Sequence[Any] | Any | None, surrogate: nn.Module | None, *, gradients: bool
) -> list[Attack] | None:
    """The attacks that are named, those of a model without gradients, or None for the preset's."""
    if attacks is None:
        if gradients:
            return None
        transfer: list[Attack] = [TransferAttack()] if surrogate is not None else []
        return [SquareAttack(), *transfer, NoiseAttack()]
    chosen = [
        attack_of(each) for each in (attacks if isinstance(attacks, list | tuple) else [attacks])
    ]
    if not chosen:
        raise ConfigError("expected at least one attack, or attacks=None for the preset's")
    if surrogate is None and any(isinstance(attack, TransferAttack) for attack in chosen):
        raise ConfigError("the transfer attack needs surrogate=, the attacker's own nn.Module")
    if not gradients:
        for attack in chosen:
            refuse_blind(attack, gradients=False)
    return chosen


def statement_of(statement: Statement | Mapping[str, Any] | None) -> Statement | None:
    """The statement, whose fields may come as a mapping."""
    if statement is None or isinstance(statement, Statement):
        return statement
    if not isinstance(statement, Mapping):
        raise ConfigError(
            f"expected statement= as a mapping of field and text, got {type(statement).__name__}"
        )
    return configured(Statement, statement)


def named_by(positive: Any) -> list[str]:
    """The names of the positive labels, sorted; "1" where none is given."""
    if positive is None:
        return ["1"]
    return sorted(str(value) for value in listed(positive))


def columns_by(positive: Any, classes: Sequence[str] | None) -> list[Any] | None:
    """Which of K outputs are positive."""
    if classes is None or positive is None:
        return columns_of(positive)
    wanted = listed(positive)
    missing = [name for name in wanted if name not in classes]
    if missing:
        raise ConfigError(f"expected positive among classes {list(classes)[:20]}, got {missing}")
    return [list(classes).index(name) for name in wanted]
