"""Profiles of hypothesis; here, because it looks for them before tests are imported."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "long",
    max_examples=3_000,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
