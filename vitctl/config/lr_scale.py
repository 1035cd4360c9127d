"""Factors of the learning rate by role of the parameters, as in ``--lr-scale head=0.5,norm_bias=64``."""

from __future__ import annotations

from collections.abc import Mapping

from vitctl.errors import RequestError
from vitctl.optim import ROLES
from vitctl.registry import convert, unknown


def parse_lr_scale(value: object, what: str) -> dict[str, float]:
    """Parse ``head=0.5,norm_bias=64``, or the mapping of a file, to factors by role in the order of :data:`ROLES`.

    Raises:
        RequestError: ``value`` is of another form, or has an unknown or repeated role or an invalid factor.
    """
    pairs = list(value.items()) if isinstance(value, Mapping) else _pairs(value, what)
    factors: dict[str, float] = {}
    for name, number in pairs:
        role = str(name).strip().replace("-", "_")
        if role not in ROLES:
            raise unknown(f"role in {what}", name, ROLES)
        if role in factors:
            raise RequestError(f"{what} sets {role} twice", hint=f"use {role}=... once")
        factors[role] = convert(number, float, f"{what} {role}=...")
        if factors[role] < 0:
            raise RequestError(f"{what} {role}={factors[role]:g} is negative", hint=f"use {role}=0 or more")
    return {role: factors[role] for role in ROLES if role in factors}


def format_lr_scale(factors: Mapping[str, float]) -> str:
    """Return factors as :func:`parse_lr_scale` reads them."""
    return ",".join(f"{role}={factor:g}" for role, factor in factors.items())


def _pairs(value: object, what: str) -> list[tuple[str, str]]:
    pairs = [part.partition("=") for part in str(value).split(",")]
    if any(not (role.strip() and equals and factor.strip()) for role, equals, factor in pairs):
        raise RequestError(
            f"{what} {value} is not of the form ROLE=FACTOR",
            hint=f"use {what} head=0.5 or {what} head=0.5,norm_bias=64",
        )
    return [(role, factor.strip()) for role, _, factor in pairs]
