"""Imported by Python at its start where this folder is on the path: see `tests.mutants.planting`."""

from tests.mutants.planting import plant_if_asked

plant_if_asked()
