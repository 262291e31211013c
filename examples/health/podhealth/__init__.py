"""A health check over TCP: a service that answers `ok`, and the probe that asks it."""

from podhealth.probe import Health, probe
from podhealth.service import HealthService

__all__ = ["Health", "HealthService", "probe"]
